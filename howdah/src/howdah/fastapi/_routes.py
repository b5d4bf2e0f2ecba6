"""The routes of an application, and their dependencies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import routing
from fastapi.dependencies.models import Dependant
from starlette.routing import Host, Mount


def iterate_all_routes(routes: Sequence[Any]) -> Iterator[Any]:
    """All routes, also WebSockets and mounts, with those of included routers. Each may have an `original_route`."""
    # In newer versions of FastAPI an included router is one route, and this function lists the routes in it.
    yield from getattr(routing, "iter_route_contexts", iter)(routes)


def iterate_dependants(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for each in dependant.dependencies:
        yield from iterate_dependants(each)


def iterate_routers(router: Any, *, mounted: bool) -> Iterator[Any]:
    """This router and those that it includes, with `mounted` also those of mounted applications."""
    yield router
    for each in router.routes:
        inner = getattr(each, "original_router", None)
        if inner is None and mounted and isinstance(each, Mount | Host):
            inner = getattr(each.app, "wrapped", each.app)  # the application that was given to `protect`
            inner = getattr(inner, "router", inner)
        if isinstance(getattr(inner, "routes", None), list):
            yield from iterate_routers(inner, mounted=mounted)


class RouteLists:
    """Notices that a route was added to an application, to one of its routers, or to an application in it.

    `version` is another number after each change.
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
