"""The lists of routes of an application, of its routers and of mounted applications."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.routing import Host, Mount

from howdah.fastapi.access import unwrap_protected


def iterate_routers(router: Any, *, mounted: bool) -> Iterator[Any]:
    """This router and those that it includes, with `mounted` also those of mounted applications."""
    yield router
    for each in router.routes:
        inner = getattr(each, "original_router", None)
        if inner is None and mounted and isinstance(each, Mount | Host):
            inner = unwrap_protected(each.app)
            inner = getattr(inner, "router", inner)
        if isinstance(getattr(inner, "routes", None), list):
            yield from iterate_routers(inner, mounted=mounted)


class RouteLists:
    """Notices that a route was added to an application, to one of its routers, or to an application mounted in it.

    `version` grows with each such change. Only the numbers of routes are compared, because each request does this.
    """

    def __init__(self, router: Any) -> None:
        self.version = 0
        self._router = router
        self._lists: list[list[Any]] = []
        self._counts: list[int] = []

    def update(self) -> int:
        """The version of the current routes."""
        if not self._counts or [*map(len, self._lists)] != self._counts:
            routers = [*iterate_routers(self._router, mounted=True)]
            self._lists = [each.routes for each in routers]
            self._lists += [getattr(each, "_low_priority_routes", []) for each in routers]
            self._counts = [*map(len, self._lists)]
            self.version += 1
        return self.version
