"""The host names for which an application answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from starlette.types import Scope

# The characters of a name, an IPv4 address, or an IPv6 address in brackets.
_HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{0,5})?", re.ASCII)
_PATTERN: Final = re.compile(r"(\*\.)?([a-z0-9_-]+\.)*[a-z0-9_-]+|\[[0-9a-f:.]+\]", re.ASCII)


class AllowedHosts:
    """Compares the header `Host` with the names of a service. Raises `ValueError` for an invalid pattern.

    A pattern is a name, an address, or `*.example.com` for every name below `example.com`. It has no port.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        if isinstance(patterns, str):
            raise TypeError(f"allowed_hosts must be a list of names, not the text {patterns!r}")
        names = [pattern.lower().rstrip(".") for pattern in patterns]
        for name in names:
            if name != "*" and _PATTERN.fullmatch(name) is None:
                raise ValueError(
                    f"allowed_hosts: {name!r} is not a host: write a name such as api.example.com or *.example.com, "
                    "or an address such as 10.0.0.5 or [::1], without a port"
                )
        self._allows_all = "*" in names
        self._names = frozenset(name for name in names if not name.startswith("*"))
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*."))
        self._is_allowed = lru_cache(maxsize=256)(self._compare)

    def allow(self, scope: Scope) -> bool:
        """Whether the request has one `Host`, and it is allowed."""
        if self._allows_all:
            return True
        host: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"host":
                if host is not None:
                    return False
                host = value
        return host is not None and self._is_allowed(host)

    def _compare(self, value: bytes) -> bool:
        match = _HOST.fullmatch(value.decode("latin-1"))
        if match is None:
            return False
        host = match[1].lower().rstrip(".")
        return host in self._names or host.endswith(self._suffixes)
