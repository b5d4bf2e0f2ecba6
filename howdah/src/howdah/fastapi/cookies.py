"""Read a cookie that authenticates a request."""

from __future__ import annotations

from starlette.requests import HTTPConnection


def find_cookie(connection: HTTPConnection, name: str) -> str | None:
    """The value of the cookie with exactly this name. None if there is no such cookie, or more than one.

    Use it for cookies with the prefix `__Host-` or `__Secure-`. `connection.cookies` also removes the bytes 0x85 and
    0xA0 around a name. So another subdomain could set a cookie whose name begins with such a byte: the browser doesn't
    see the prefix and accepts the cookie, but the service would read it under the name without the byte.
    """
    prefix = f"{name}=".encode()
    found = [
        pair.strip(b" \t")[len(prefix) :]
        for header, value in connection.scope["headers"]
        if header == b"cookie"
        for pair in value.split(b";")
        if pair.strip(b" \t").startswith(prefix)
    ]
    return found[0].decode("latin-1") if len(found) == 1 else None
