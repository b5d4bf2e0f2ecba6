"""Encode the status line and the headers of responses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, NoReturn, TypeAlias

RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]

# What uvicorn rejects: control characters, and in a name most separators of HTTP, too.
_INVALID_IN_NAMES: Final = re.compile(rb'[\x00-\x1f\x7f()<>@,;:\\[\]={} \t"]')
_VALID_IN_VALUES: Final = bytes(each for each in range(256) if each == 0x09 or (each >= 0x20 and each != 0x7F))
# Names come from the code of the application, so there are few. At this number, all of them are forgotten.
_MAX_NAMES: Final = 500
# The values of these are read: they say how the body is sent, and whether the connection stays open.
_LENGTH: Final = b"content-length: "
_ENCODING: Final = b"transfer-encoding: "
_CONNECTION: Final = b"connection: "
_SPECIAL: Final = {b"content-length": _LENGTH, b"transfer-encoding": _ENCODING, b"connection": _CONNECTION}
_NO_CONTENT: Final = 204
_WITHOUT_BODY: Final = frozenset({_NO_CONTENT, 304})


def _encode_status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}".encode()


# A client would take a status below 200 for an interim response, and would wait for another one.
_STATUS_LINES: Final = {status: _encode_status_line(status) for status in range(200, 600)}


class HeadEncoder:
    """Encodes the headers of one server's responses.

    The names of headers are checked once, because responses have the same ones again and again. The values of a
    response are checked together.
    """

    def __init__(self) -> None:
        self._prefixes: dict[bytes, bytes] = {}  # by the name as the application writes it
        self._default_headers: RawHeaders = ()
        self._beginnings: dict[int, bytes] = {}  # by status

    def encode_beginning(self, status: int, default_headers: RawHeaders) -> bytes:
        """The status line and the server's own headers, without the last line break.

        uvicorn creates a new list of these headers once per second. `default_headers` must be that list.
        """
        if default_headers is not self._default_headers:
            self._default_headers = default_headers
            self._beginnings = {}
        beginning = self._beginnings.get(status)
        if beginning is None:
            if status not in _STATUS_LINES:
                raise RuntimeError(f"the status of a response must be between 200 and 599, not {status}")
            lines = [b"\r\n%b: %b" % (name, value) for name, value in default_headers]
            beginning = self._beginnings[status] = b"".join([_STATUS_LINES[status], *lines])
        return beginning

    def encode(
        self, status: int, headers: RawHeaders, default_headers: RawHeaders, keep_alive: bool, is_head: bool
    ) -> tuple[bytes, int | None, bool]:
        """The head of a response, the length of its body (None: in chunks), and whether the connection stays open.

        Raises `RuntimeError` if a name or value has a character that HTTP doesn't allow, such as a line break, if the
        status isn't one of a response, or if a 204 declares a body: the client would take it for the next response.
        """
        prefixes = self._prefixes
        lines = [self.encode_beginning(status, default_headers)]
        length: int | None = None
        is_chunked = is_last = False
        for name, value in headers:
            prefix = prefixes.get(name)
            if prefix is None:
                prefix = _SPECIAL.get(name) or self._encode_name(name)
                if prefix is _LENGTH:
                    if length is None:
                        length = int(value)
                elif prefix is _ENCODING:
                    is_chunked = is_chunked or value.lower() == b"chunked"
                elif prefix is _CONNECTION and b"close" in [token.strip() for token in value.lower().split(b",")]:
                    is_last = True
            lines.append(prefix + value)
        values = b"".join(lines[1:])
        if values.translate(None, _VALID_IN_VALUES):
            self._raise_invalid(lines[1:])
        if not (keep_alive or is_last):
            lines.append(b"connection: close")
        if is_chunked:
            length = None
        elif length is None and (is_head or status in _WITHOUT_BODY):
            length = 0
        elif length is None:
            lines.append(b"transfer-encoding: chunked")
        if status == _NO_CONTENT and length != 0:
            raise RuntimeError("a response with the status 204 has no body: it can't declare a length or an encoding")
        lines.append(b"\r\n")
        return b"\r\n".join(lines), length, keep_alive and not is_last

    def _raise_invalid(self, lines: list[bytes]) -> NoReturn:
        invalid = next(line for line in lines if line.translate(None, _VALID_IN_VALUES))
        text = invalid.partition(b":")[0].decode("latin-1")
        raise RuntimeError(f"the value of the response's header {text} has a control character such as a line break")

    def _encode_name(self, name: bytes) -> bytes:
        """Check the name, and keep it, unless it is a special one."""
        if not name or _INVALID_IN_NAMES.search(name):
            raise RuntimeError(
                f"the response has a header whose name is empty or has a character that HTTP forbids: {name!r}"
            )
        lower = name.lower()
        if lower in _SPECIAL:
            return _SPECIAL[lower]
        if len(self._prefixes) >= _MAX_NAMES:
            self._prefixes.clear()
        prefix = self._prefixes[name] = lower + b": "
        return prefix
