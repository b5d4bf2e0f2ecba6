"""The client's address and the scheme of a request that came through proxies.

A client can send `X-Forwarded-For` itself. So the header is used only if the connection comes from a trusted proxy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

UNIX_SOCKET: Final = "unix"
# No chain of proxies is that long. A client can send any number of entries, and only the last ones are read.
_MAX_HOPS: Final = 16
# An IPv6 address with an IPv4 address at its end, brackets and a port has 53 characters.
_MAX_ENTRY_LENGTH: Final = 64
_SCHEMES: Final = {"http": ("http", "ws"), "https": ("https", "wss")}


class TrustedProxies:
    """ASGI middleware that sets `scope["client"]` and `scope["scheme"]` from the headers of trusted proxies.

    Each proxy appends the address of its own client to `X-Forwarded-For`. So the client is the rightmost address that
    isn't a trusted proxy. The addresses before it may be forged, and are ignored. If an entry isn't an address, the
    client is the proxy that sent it. The scheme is the last value of `X-Forwarded-Proto`.

    `X-Forwarded-Host` and `Forwarded` are never used. Most proxies don't set `Forwarded`, and pass on the one that the
    client has sent.
    """

    def __init__(self, app: ASGIApp, networks: Iterable[str]) -> None:
        """Raises `ValueError` for an invalid network, such as `10.0.0.1/8`."""
        if isinstance(networks, str):
            raise TypeError(f"trusted_proxies must be a list of networks, not the text {networks!r}")
        self._app = app
        chosen = [*networks]
        self._trusts_unix_socket = UNIX_SOCKET in chosen
        self._networks = [_parse_network(each) for each in chosen if each != UNIX_SOCKET]
        self._is_trusted = lru_cache(maxsize=1_024)(self._find_trusted)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if (self._networks or self._trusts_unix_socket) and scope["type"] in ("http", "websocket"):
            client = scope.get("client")
            if self._is_trusted(client[0]) if client else self._trusts_unix_socket:
                self._read_headers(scope)
        return self._app(scope, receive, send)

    def _read_headers(self, scope: Scope) -> None:
        forwarded: list[str] = []
        scheme = ""
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                forwarded += value.decode("latin-1").split(",")
            elif name == b"x-forwarded-proto":
                scheme = value.decode("latin-1").rpartition(",")[2].strip().lower()
        if scheme in _SCHEMES:
            scope["scheme"] = _SCHEMES[scheme][scope["type"] == "websocket"]
        for entry in reversed(forwarded[-_MAX_HOPS:]):
            address = _parse_entry(entry)
            if address is None:
                break
            scope["client"] = (address, 0)
            if not self._is_trusted(address):
                break

    def _find_trusted(self, host: str) -> bool:
        try:
            address = _unmap(ip_address(host))
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(
            f"trusted_proxies: {text!r} is not a network ({error}): write one such as 10.0.0.0/8 or ::1, or "
            f"{UNIX_SOCKET} for a Unix socket"
        ) from None


def _parse_entry(text: str) -> str | None:
    """The address of an entry, which may have a port: `192.0.2.1:80`, `[2001:db8::1]:80`, `2001:db8::1`."""
    host = text.strip()
    return None if len(host) > _MAX_ENTRY_LENGTH else _parse_host(host)  # so that the memory of the cache is bounded


@lru_cache(maxsize=4_096)
def _parse_host(host: str) -> str | None:
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return str(_unmap(ip_address(host)))
    except ValueError:
        return None


def _unmap(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address in the form `::ffff:192.0.2.1` is that IPv4 address."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped
