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


class RouteLists:
    """Notices that a route was added to an application, to one of its routers, or to an application in it."""

    def __init__(self, router: Any) -> None:
        self._router = router
        self._lists: list[list[Any]] = []
        self._counts: list[int] = []

    def have_changed(self) -> bool:
        """Whether a list has another length than at the last call of `note`. True before the first call."""
        return not self._counts or [*map(len, self._lists)] != self._counts

    def note(self) -> None:
        """Remember the current routes."""
        self._lists = [*_iterate_route_lists(self._router)]
        self._counts = [*map(len, self._lists)]


def _iterate_route_lists(router: Any) -> Iterator[list[Any]]:
    """The lists to which routes are added: of the application, of included routers, and of mounted applications."""
    yield router.routes
    yield getattr(router, "_low_priority_routes", [])
    for each in router.routes:
        inner = getattr(each, "original_router", None)
        if inner is None and isinstance(each, Mount | Host):
            inner = getattr(each.app, "wrapped", each.app)  # the application that was given to `protect`
            inner = getattr(inner, "router", inner)
        if isinstance(getattr(inner, "routes", None), list):
            yield from _iterate_route_lists(inner)
