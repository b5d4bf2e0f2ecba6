"""Encode the status line and the headers of responses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, TypeAlias

RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]

# What uvicorn rejects: control characters, and in a name most separators of HTTP, too.
_INVALID_IN_NAMES: Final = re.compile(rb'[\x00-\x1f\x7f()<>@,;:\\[\]={} \t"]')
_VALID_IN_VALUES: Final = bytes(each for each in range(256) if each == 0x09 or (each >= 0x20 and each != 0x7F))
# Names come from the code of the application, so there are few. If not, the first ones are forgotten.
_MAX_NAMES: Final = 500
# These say how the body is sent, so each of their values is read.
_SPECIAL: Final = {name: name + b": " for name in (b"content-length", b"transfer-encoding", b"connection")}
_SPECIAL_PREFIXES: Final = frozenset(_SPECIAL.values())


def _encode_status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


_STATUS_LINES: Final = {status: _encode_status_line(status) for status in range(100, 600)}


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
        """The status line and the server's own headers. uvicorn creates a new list of them once per second."""
        if default_headers is not self._default_headers:
            self._default_headers = default_headers
            self._beginnings = {}
        beginning = self._beginnings.get(status)
        if beginning is None:
            lines = b"".join([b"%b: %b\r\n" % (name, value) for name, value in default_headers])
            beginning = self._beginnings[status] = _STATUS_LINES[status] + lines
        return beginning

    def encode(self, headers: RawHeaders) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """The lines of the headers, and those headers that say how the body is sent.

        Raises `RuntimeError` if a name or value has a character that HTTP doesn't allow, such as a line break.
        """
        prefixes = self._prefixes
        special: list[tuple[bytes, bytes]] = []
        lines = []
        for name, value in headers:
            prefix = prefixes.get(name)
            if prefix is None:
                prefix = _SPECIAL.get(name) or self._encode_name(name)
                if prefix in _SPECIAL_PREFIXES:
                    special.append((prefix[:-2], value))
            lines.append(prefix + value)
        line_breaks = b"\r\n" * len(lines)
        lines.append(b"")
        encoded = b"\r\n".join(lines)
        if encoded.translate(None, _VALID_IN_VALUES) != line_breaks:
            invalid = next(line for line in lines if line.translate(None, _VALID_IN_VALUES))
            text = invalid.partition(b":")[0].decode("latin-1")
            raise RuntimeError(
                f"the value of the response's header {text} has a control character such as a line break"
            )
        return encoded, special

    def _encode_name(self, name: bytes) -> bytes:
        """Check the name, and keep it, unless it is a special one."""
        if _INVALID_IN_NAMES.search(name):
            raise RuntimeError(f"the response has a header whose name has a character that HTTP forbids: {name!r}")
        lower = name.lower()
        if lower in _SPECIAL:
            return _SPECIAL[lower]
        if len(self._prefixes) >= _MAX_NAMES:
            self._prefixes.clear()
        prefix = self._prefixes[name] = lower + b": "
        return prefix
