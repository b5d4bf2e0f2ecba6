"""The methods of a path, from all routes of an application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from starlette.routing import Host, Match, Mount
from starlette.types import Scope

from howdah.fastapi._routes import iterate_all_routes

# The key in the ASGI scope for the route's path in the metrics. FastAPI's router doesn't set it.
ROUTE_PATH_KEY: Final = "howdah.route_path"

_NO_METHODS: Final[frozenset[str]] = frozenset()


class PathMethods:
    """Finds the methods of the path of a request.

    Starlette's 405 lists only the methods of the first route that has the path. It also gives `GET /orders/status` to
    `GET /orders/{order_id}`, even if `/orders/status` is the path of another route. In OpenAPI a path without
    parameters comes first, so the methods of that path are those of its own routes.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._fixed: Mapping[str, frozenset[str]] | None = None

    def find(self, scope: Scope) -> frozenset[str]:
        """The methods that the routes of this path declare. Empty if no route has the path.

        A mounted application counts as having every method, because it checks the method itself.
        """
        fixed = self._list_fixed_paths().get(get_route_path(scope))
        if fixed is not None:
            return fixed
        routes = self._app.routes
        declared = {
            scope["method"],
            "GET",
            *(method for route in iterate_all_routes(routes) for method in _get_methods(route)),
        }
        return frozenset(
            method
            for method in declared
            if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
        )

    def rejects(self, path: str, method: str) -> bool:
        """Whether the path has no parameters, and none of its routes has this method. See `get_route_path`."""
        if self._fixed is None:
            self._fixed = self._list_fixed_paths()
        methods = self._fixed.get(path)
        if methods is None or method in methods:
            return False
        self._fixed = self._list_fixed_paths()  # a route may have been added since
        return method not in self._fixed.get(path, {method})

    def _list_fixed_paths(self) -> dict[str, frozenset[str]]:
        """The paths without parameters, and their methods. Paths that a mounted application may handle aren't listed.

        It is empty if the application has a `Host` route, because then the path alone doesn't determine the route.
        """
        methods: dict[str, frozenset[str]] = {}
        mounts: list[str] = []
        for each in iterate_all_routes(self._app.routes):
            route = getattr(each, "original_route", each)
            path = getattr(each, "path", None) or ""
            if isinstance(route, Host):
                return {}
            if isinstance(route, Mount):
                mounts.append(f"{path.partition('{')[0].rstrip('/')}/")
            elif "{" not in path and (declared := _get_methods(each)):
                methods[path] = methods.get(path, _NO_METHODS) | declared
        return {path: declared for path, declared in methods.items() if not path.startswith(tuple(mounts))}


def _get_methods(route: Any) -> frozenset[str]:
    return frozenset(getattr(route, "methods", None) or ())


def get_route_path(scope: Mapping[str, Any]) -> str:
    """The path of a request for the routes: without the prefix at which the application is mounted. As in Starlette."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    if not prefix or not path.startswith(prefix):
        return path
    rest = path[len(prefix) :]
    return path if rest and rest[0] != "/" else rest
