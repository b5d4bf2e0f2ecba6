"""Reject requests before the application is called, and cancel those whose client has gone."""

from __future__ import annotations

from typing import Any, Final, Protocol

from howdah.serving._cycle import RequestCycle
from howdah.serving._parsing import ParsingProtocol
from howdah.serving._scope_keys import ADMIT_KEY, REPORTS_DISCONNECTS_KEY, REQUEST_KEY

_STATUS: Final = 503

# A request with one of these headers may have a body, or need more than a response.
_BODY_HEADERS: Final = (b"\ncontent-length", b"\ntransfer-encoding", b"\nexpect", b"\nupgrade")
_KEEP_ALIVE: Final = b"\nconnection: keep-alive\r\n"


class Admission(Protocol):
    """The application's decisions about requests that have not been started."""

    def is_full(self) -> bool: ...

    def reject(self, path: str) -> bytes | None: ...

    def admit(self, scope: Any) -> bytes | None: ...


class AdmittingHttpProtocol(ParsingProtocol):
    """An HTTP protocol that asks the application whether to start each request.

    A rejection here needs no task and no middleware, so it takes about a quarter of the time. This matters under
    overload: at four times the sustainable rate, there are three rejections for each response.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.admission: Admission | None = self.app_state.get(ADMIT_KEY)
        self.running: RequestCycle | None = None  # the last request that was started

    def reject_unparsed(self, data: bytes) -> bool:
        """Reject a GET request without parsing it. Returns false if it may be started, or must be parsed.

        This takes half the time of a rejection after parsing. `data` are the bytes after the client's last request.
        They are handled here only if they are certainly one whole request without a body.
        """
        admission = self.admission
        if admission is None or not admission.is_full():
            return False
        if not data.startswith(b"GET ") or data.find(b"\r\n\r\n") != len(data) - 4:
            return False
        path, _, rest = data[4:].partition(b" ")
        lower = rest.lower()
        if (
            not rest.startswith(b"HTTP/1.1\r\n")
            or rest.count(b"\n") != rest.count(b"\r\n")
            or any(name in lower for name in _BODY_HEADERS)
            or (b"\nconnection" in lower and _KEEP_ALIVE not in lower)
        ):
            return False
        rejection = admission.reject(path.partition(b"?")[0].decode("latin-1"))
        if rejection is None:
            return False
        self.server_state.total_requests += 1
        self._send_rejection(self._encode_beginning() + rejection)
        return True

    def _send_rejection(self, response: bytes) -> None:
        """Send it, and read no further requests of a client that doesn't read its responses.

        The tasks of requests wait until it does. Rejected requests have none, so their responses would fill the memory.
        """
        self.transport.write(response)
        if self.flow.write_paused:
            self.flow.pause_reading()

    def _encode_beginning(self) -> bytes:
        return self.responses.heads.encode_beginning(_STATUS, self.server_state.default_headers) + b"\r\n"

    def start(self, cycle: RequestCycle) -> None:
        """Start the request, or reject it."""
        rejection = None if self.admission is None else self.admission.admit(cycle.scope)
        if rejection is None:
            self.running = cycle
            cycle.scope[REPORTS_DISCONNECTS_KEY] = self.transport.is_closing
            cycle.start(self.app)
            return
        if cycle.waiting_for_100_continue:
            cycle.keep_alive = False  # the client may still send the body, or omit it
        connection = b"" if cycle.keep_alive else b"connection: close\r\n"
        self._send_rejection(self._encode_beginning() + connection + rejection)
        cycle.response_started = cycle.response_complete = True
        # The caller hasn't finished starting this request, so it ends in the next iteration. Its body is ignored.
        self.loop.call_soon(self._end_rejected, cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that the client of the request in progress has gone."""
        super().connection_lost(exc)
        running = self.running
        if running is not None and not running.response_complete:
            running.disconnect()
            request = running.scope.get(REQUEST_KEY)
            if request is not None:
                request.handle_disconnect()

    def _end_rejected(self, cycle: RequestCycle) -> None:
        if not cycle.keep_alive and not self.transport.is_closing():
            self.finish()
        running = self.running
        if (running is None or running.response_complete) and (self.cycle is cycle or self.pipeline):
            self.on_response_complete()
        else:  # a request that came after this one is in progress, or is rejected next
            self.server_state.total_requests += 1
