"""The classes of Shop's routes, and their rate limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from howdah.fastapi import RateLimit, RateLimits, get_route_path
from shop.settings import Settings

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# One request of these routes reads or writes any number of rows.
_BULK_SUFFIXES: Final = ("/batch", "/bulk", "/export")
# One request of these routes may read many rows, for example all entries of an account.
_LISTS: Final = frozenset({"/users", "/orders", "/accounts", "/transfers", "/audit-events"})
_LIST_SUFFIXES: Final = ("/entries", "/balance", "/order-summary")
_SIGN_IN_PREFIXES: Final = ("/auth/", "/sign-in")
# Browsers send these requests by themselves, and nobody can guess a password with them.
_SESSION_SUFFIXES: Final = ("/refresh", "/sign-out")


def classify(scope: Mapping[str, Any]) -> str:
    """The class of a request: `list`, `read`, `write`, `money`, `bulk` or `sign-in`."""
    path = get_route_path(scope)
    if path.endswith(_BULK_SUFFIXES):
        return "bulk"
    if scope.get("method", "GET") in _SAFE_METHODS:
        return "list" if path in _LISTS or path.endswith(_LIST_SUFFIXES) else "read"
    if path.startswith("/transfers") or path.endswith("/pay"):
        return "money"
    if path.startswith(_SIGN_IN_PREFIXES) and not path.endswith(_SESSION_SUFFIXES):
        return "sign-in"
    return "write"


def build_rate_limits(settings: Settings) -> RateLimits | None:
    """The limits of the settings, or None if they are off."""
    if not settings.rate_limits:
        return None
    return RateLimits(
        address=RateLimit.parse(settings.rate_limit_address),
        classes={
            "list": RateLimit.parse(settings.rate_limit_list),
            "read": RateLimit.parse(settings.rate_limit_read),
            "write": RateLimit.parse(settings.rate_limit_write),
            "money": RateLimit.parse(settings.rate_limit_money),
            "bulk": RateLimit.parse(settings.rate_limit_bulk),
            "sign-in": RateLimit.parse(settings.rate_limit_sign_in),
        },
        classify=classify,
        # so that one principal with slow lists leaves connections of its pool to the others
        max_in_progress={"list": max(1, min(settings.pool_size // 4, settings.staff_pool_size // 2))},
        max_entries=settings.rate_limit_entries,
    )
