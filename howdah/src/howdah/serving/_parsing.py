"""uvicorn's HTTP protocol with our own request cycle. The parser's callbacks do only what each request needs."""

from __future__ import annotations

import urllib.parse
from typing import Any, Final

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from howdah.serving._cycle import RequestCycle, Responses

_SLASH: Final = ord("/")


class ParsingProtocol(HttpToolsProtocol):
    """One connection: it parses requests and starts them one after the other.

    uvicorn's class provides the set-up of the connection and the change to a WebSocket. A subclass handles the
    beginning and the end of a message, and the end of a response.
    """

    cycle: Any  # the newest request
    headers: list[tuple[bytes, bytes]]
    pipeline: Any
    scope: Any
    responses: Responses

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._asgi_version = self.config.asgi_version

    def finish(self) -> None:
        """Close the connection after its last response."""
        self.transport.close()

    def start(self, cycle: RequestCycle) -> None:
        """Start the request."""
        cycle.start(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, and drop the requests in the pipeline."""
        self.connections.discard(self)
        self.pipeline.clear()
        if self.cycle is not None:
            self.cycle.disconnect()
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # type: ignore[assignment]

    def feed(self, data: bytes) -> bool:
        """Give the data to the parser. Returns true if the connection must become a WebSocket.

        The server may ignore any other upgrade. After a header with one, the parser takes the body for the next
        request. So such a request is parsed again, without this header, and with the rest of the data.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    return True
                scope = self.scope
                lines = [f"{scope['method']} ".encode() + self.url + f" HTTP/{scope['http_version']}".encode()]
                lines += [b"%b: %b" % each for each in self.headers if each[0] != b"upgrade"]
                data = b"\r\n".join((*lines, b"", data[upgrade.args[0] :]))
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
            else:
                return False

    # The parser's callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        """Create the request, unless it becomes a WebSocket. Start it if no other one is in progress."""
        parser = self.parser
        version = parser.get_http_version()
        scope = self.scope = {
            "type": "http",
            "asgi": {"version": self._asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "method": parser.get_method().decode("ascii"),
        }
        if parser.should_upgrade():
            if scope["method"] == "CONNECT":
                raise httptools.HttpParserError("this server isn't a proxy")
            return  # `feed` goes on
        url = self.url
        if url[0] == _SLASH and b"#" not in url:
            raw_path, _, query = url.partition(b"?")
        else:
            parsed = httptools.parse_url(url)
            raw_path, query = parsed.path or b"/", parsed.query or b""
        path = raw_path.decode("ascii")
        if "%" in path:
            path = urllib.parse.unquote(path)
        if self.root_path:
            path, raw_path = self.root_path + path, self.root_path.encode("ascii") + raw_path
        scope["path"] = path
        scope["raw_path"] = raw_path
        scope["query_string"] = query
        previous: RequestCycle | None = self.cycle
        cycle = self.cycle = RequestCycle(
            scope, self, version != "1.0" and parser.should_keep_alive(), self.expect_100_continue
        )
        # uvicorn adds trailers to the list of headers. A proxy may not have checked them. With a new list they don't
        # become headers of the request.
        self.headers = []
        if previous is None or previous.response_complete:
            self.start(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft(cycle)

    def on_body(self, body: bytes) -> None:
        cycle = self.get_receiving()
        if cycle is not None and cycle.add_body(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def get_receiving(self) -> RequestCycle | None:
        """The request that is being received, or None if nobody needs its body."""
        cycle: RequestCycle | None = self.cycle
        # A WebSocket has a scope, but no cycle.
        if cycle is None or cycle.response_complete or cycle.scope is not self.scope:
            return None
        return cycle
