"""Rate limits for each client address, and for each principal and class of routes. A request over a limit gets a 429.

configure_app(
    app,
    database=...,
    authenticate=authenticate,
    rate_limits=RateLimits(classes={"read": RateLimit(6_000), "write": RateLimit(600)}, address=RateLimit(30_000)),
)

The counts are in the memory of the process. So with four processes, a client may send four times as many requests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from ipaddress import IPv6Address, IPv6Network
from typing import Any, Final

from starlette.types import ASGIApp, Scope

from howdah.fastapi._rate_table import RateLimit, RateTable
from howdah.fastapi.authentication import PRINCIPAL_KEY
from howdah.fastapi.problem import problem_response

__all__ = ["RateLimit", "RateLimits"]

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_ADDRESS: Final = "address"
# One customer of a provider usually has a whole /64 or more, and can use any address of it.
_IPV6_PREFIX: Final = 64


def classify_by_method(scope: Scope) -> str:
    """`read` for GET, HEAD, OPTIONS and the opening of a WebSocket, and `write` for every other method."""
    return "read" if scope.get("method", "GET") in _SAFE_METHODS else "write"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """The rate limits of an application. Each process counts for itself. Raises `ValueError`.

    - `classes` limit the requests of a principal, by the class of the route. A request without a principal counts for
      its address.
    - `classify` returns the class of a request from its ASGI scope: its method and its path, which `get_route_path`
      returns. It is called for each request, before the body is read and before the route is chosen. A class without a
      limit isn't limited. By default the classes are `read` and `write`.
    - `address` limits all requests of an address, before they are authenticated. Many people may share an address.
    - `max_in_progress` limits how many requests of a class each principal has in progress at a time. It is for routes
      whose requests may take long: a few clients with many of them at once would otherwise use all connections of the
      pool, although their rate is low. The excess gets a 429 at once.
    - `max_entries` bounds the memory of each limit. Principals and addresses are counted separately, so a flood from
      many addresses doesn't reset the count of a principal.

    The addresses of an IPv6 network with the prefix /64 count as one.
    """

    classes: Mapping[str, RateLimit]
    classify: Callable[[Scope], str] = classify_by_method
    address: RateLimit | None = None
    max_in_progress: Mapping[str, int] = field(default_factory=dict)
    max_entries: int = 20_000

    def __post_init__(self) -> None:
        for name, count in self.max_in_progress.items():
            if name not in self.classes or count < 1:
                raise ValueError(f"max_in_progress: {name!r} must be one of `classes`, and {count} at least 1")
        if _ADDRESS in self.classes:
            raise ValueError(f"{_ADDRESS!r} is the name of the limit for addresses: use another name for the class")


@dataclass(slots=True)
class Limited:
    """The tables of one limit, and the headers that describe it."""

    name: str
    principals: RateTable
    addresses: RateTable
    max_in_progress: int | None = None
    in_progress: Counter[tuple[bool, str]] = field(default_factory=Counter)
    """The requests in progress, by whether they have a principal, and its key or the address."""
    policy: tuple[bytes, bytes] = field(init=False)
    _name: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._name = self.name.encode()
        limit = self.principals.limit
        self.policy = (
            b"ratelimit-policy",
            f'"{self.name}";q={limit.requests};w={math.ceil(limit.seconds)}'.encode(),
        )

    def describe(self, excess: float) -> tuple[bytes, bytes]:
        """The header `RateLimit` after a request."""
        return b"ratelimit", b'"%b";r=%d;t=%d' % (self._name, *self.principals.remaining(excess))


class RateLimiter:
    """The counts of one application."""

    def __init__(self, limits: RateLimits, *, exempt_paths: Collection[str]) -> None:
        self.rejected: Counter[str] = Counter()
        self.exempt_paths = frozenset(exempt_paths)
        self._classify = limits.classify
        self._classes = {
            name: _build(name, limit, limits.max_entries, max_in_progress=limits.max_in_progress.get(name))
            for name, limit in limits.classes.items()
        }
        self.address = None if limits.address is None else _build(_ADDRESS, limits.address, limits.max_entries)

    def count_entries(self) -> int:
        """The number of clients that are counted, in all limits."""
        limited = [*self._classes.values(), *([] if self.address is None else [self.address])]
        return sum(len(each.principals) + len(each.addresses) for each in limited)

    def list_names(self) -> list[str]:
        return [*self._classes, *([] if self.address is None else [_ADDRESS])]

    def count_address(self, address: str, now: float) -> ASGIApp | None:
        """Count a request before it is authenticated. Returns the response if the address exceeds its limit.

        `now` is a time of `time.monotonic()`.
        """
        limited = self.address
        if limited is None:
            return None
        excess = limited.addresses.hit(address, now)
        return self._reject(limited, excess) if excess > 0 else None

    def count_principal(self, request: CountedRequest, scope: Scope, address: str, now: float) -> ASGIApp | None:
        """Count an authenticated request in its class. Returns the response if the principal exceeds the limit.

        A request without a principal is counted for its address. `now` is a time of `time.monotonic()`.
        """
        limited = self._classes.get(self._classify(scope))
        if limited is None:
            return None
        principal = scope.get(PRINCIPAL_KEY)
        table, key = (limited.addresses, address) if principal is None else (limited.principals, principal.key)
        slot: tuple[bool, str] | None = None
        if limited.max_in_progress is not None:
            slot = (principal is not None, key)
            if limited.in_progress.get(slot, 0) >= limited.max_in_progress:
                return self._reject_concurrent(limited)
        excess = table.hit(key, now)
        if excess > 0:
            return self._reject(limited, excess)
        request.limited, request.excess = limited, excess
        if slot is not None:
            request.take_slot(limited, slot)
        return None

    def _reject(self, limited: Limited, excess: float) -> ASGIApp:
        self.rejected[limited.name] += 1
        seconds, limit = math.ceil(excess), limited.principals.limit
        response = problem_response(
            HTTPStatus.TOO_MANY_REQUESTS,
            "rate-limited",
            detail=f"at most {limit.requests} requests in {limit.seconds:g} s are allowed here: try again in "
            f"{seconds} s, and send fewer requests",
            headers={"Retry-After": str(seconds)},
            limit=limited.name,
        )
        response.raw_headers += [limited.policy, limited.describe(excess)]
        return response

    def _reject_concurrent(self, limited: Limited) -> ASGIApp:
        self.rejected[limited.name] += 1
        return problem_response(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too-many-in-progress",
            detail=f"{limited.max_in_progress} of your requests of this kind are in progress: wait for their responses",
            headers={"Retry-After": "1"},
            limit=limited.name,
        )


class CountedRequest:
    """A request, and the limit of its class that has counted it.

    `excess` is the result of `RateTable.hit`. If `has_slot` is true, call `release_slot` when the request has ended.
    """

    limited: Limited | None = None
    excess = 0.0
    has_slot = False
    _slot: tuple[bool, str]

    def take_slot(self, limited: Limited, slot: tuple[bool, str]) -> None:
        """Count the request as one in progress."""
        limited.in_progress[slot] += 1
        self.has_slot, self._slot = True, slot

    def release_slot(self) -> None:
        """Stop counting the request as one in progress."""
        assert self.limited is not None
        in_progress = self.limited.in_progress
        in_progress[self._slot] -= 1
        if not in_progress[self._slot]:
            del in_progress[self._slot]


def find_network(scope: Mapping[str, Any]) -> str:
    """The client's address, or its network for IPv6. Empty for a client without an address, such as a Unix socket."""
    client = scope.get("client")
    return find_client_network(client[0] if client else "")


def find_client_network(address: str) -> str:
    """The key by which a client is counted: its IPv4 address, or the /64 network of its IPv6 address.

    Another text, such as an empty one, is returned as it is.
    """
    return _find_ipv6_network(address) if ":" in address else address


@lru_cache(maxsize=4_096)
def _find_ipv6_network(host: str) -> str:
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address) >> _IPV6_PREFIX << _IPV6_PREFIX, _IPV6_PREFIX)))


def _build(name: str, limit: RateLimit, max_entries: int, *, max_in_progress: int | None = None) -> Limited:
    return Limited(
        name,
        RateTable(limit, max_entries=max_entries),
        addresses=RateTable(limit, max_entries=max_entries),
        max_in_progress=max_in_progress,
    )
