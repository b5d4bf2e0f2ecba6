"""The routes of an application, and their dependencies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from fastapi import routing
from fastapi.dependencies.models import Dependant

COMPLETE_DEPENDANT: Final = "howdah_complete_dependant"
"""An attribute of a direct route while its handler is made: its dependant, with the dependencies of `include_router`.

With it, the class of the route needn't call `find_dependant` for each request.
"""


def iterate_all_routes(routes: Sequence[Any]) -> Iterator[Any]:
    """All routes, also WebSockets and mounts, with those of included routers. Each may have an `original_route`."""
    # In newer versions of FastAPI an included router is one route, and this function lists the routes in it.
    yield from getattr(routing, "iter_route_contexts", iter)(routes)


def iterate_dependants(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for each in dependant.dependencies:
        yield from iterate_dependants(each)
