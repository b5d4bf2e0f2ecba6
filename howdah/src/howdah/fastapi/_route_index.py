"""Finds the route of a path by its segments, so that the time doesn't grow with the number of routes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from fastapi.routing import APIRoute
from starlette.routing import Mount, Route, WebSocketRoute

# A parameter that is a whole segment, with Starlette's default convertor: any text without a slash.
_PARAMETER: Final = re.compile(r"\{([a-zA-Z_][a-zA-Z0-9_]*)(?::str)?\}")


class FoundRoute:
    """A route with its position in the order of the routes, and the names of its path parameters by segment.

    `prefixes` are the beginnings of the paths of earlier routes that aren't in the index. A path with one of these
    beginnings may match such a route.
    """

    __slots__ = ("methods", "parameters", "position", "prefixes", "route")

    def __init__(
        self, position: int, route: Any, parameters: Sequence[tuple[int, str]], prefixes: Sequence[str]
    ) -> None:
        self.position, self.route, self.parameters, self.prefixes = position, route, parameters, tuple(prefixes)
        self.methods = frozenset(route.methods or ())

    def find_hiding_prefix(self) -> str | None:
        """The first of the prefixes with which all paths of this route begin. Then the index never finds it."""
        path: str = self.route.path
        return next((each for each in self.prefixes if path.startswith(each)), None)


class _Node:
    """The routes that end at a segment, and the segments that may follow."""

    __slots__ = ("literals", "parameter", "routes")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.routes: list[FoundRoute] = []


class RouteIndex:
    """The HTTP routes of an application, by the segments of their paths. `routes` are those of `iterate_all_routes`.

    As in Starlette, the first declared route with the path and the method is found. The index has only the routes whose
    path parameters are whole segments. Others, such as mounts, may match many paths: if one of them comes first and
    could match, nothing is found, and Starlette must search.
    """

    def __init__(self, routes: Sequence[Any]) -> None:
        self.found: dict[int, FoundRoute] = {}  # by position
        self._root = _Node()
        self._depth = 0
        prefixes: list[str] = []
        for position, each in enumerate(routes):
            original = getattr(each, "original_route", each)
            path: str = getattr(each, "path", None) or ""
            if isinstance(original, WebSocketRoute):
                continue
            if not _has_own_matches(original) and isinstance(original, Route) and _is_simple(path):
                self._add(path, position, each, prefixes)
            else:
                # a host, and a class with a method `matches` of its own, may match every path
                prefixes.append("" if _has_own_matches(original) else path.partition("{")[0].rstrip("/"))

    def _add(self, path: str, position: int, route: Any, prefixes: Sequence[str]) -> None:
        node, parameters = self._root, []
        segments = path.split("/")
        self._depth = max(self._depth, len(segments))
        for number, segment in enumerate(segments):
            if match := _PARAMETER.fullmatch(segment):
                parameters.append((number, match[1]))
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        added = FoundRoute(position, route, parameters, prefixes)
        node.routes.append(added)
        self.found[position] = added

    def split(self, path: str) -> list[str]:
        """The parts of the path between slashes. No path gets more than one part more than the longest route.

        Without this limit, a path of 16,000 slashes would take 0.3 ms.
        """
        return path.split("/", self._depth)

    def find(self, method: str, path: str, segments: Sequence[str]) -> FoundRoute | None:
        """The route for this method and path, or None. `segments` are those of `split`."""
        found = _find(self._root, method, segments, 0)
        # Starlette's patterns end with `$`, so they match a path with a newline at its end, too.
        if found is None or path.startswith(found.prefixes) or path.endswith("\n"):
            return None
        return found


def _find(node: _Node, method: str, segments: Sequence[str], number: int) -> FoundRoute | None:
    """The first declared route for the segments from `number` on, below this node."""
    count = len(segments)
    while number < count:
        segment = segments[number]
        number += 1
        literal, parameter = node.literals.get(segment), node.parameter if segment else None
        if literal is not None and parameter is not None:
            both = (_find(literal, method, segments, number), _find(parameter, method, segments, number))
            return min((each for each in both if each is not None), key=lambda each: each.position, default=None)
        following = literal or parameter
        if following is None:
            return None
        node = following
    for each in node.routes:
        if method in each.methods or not each.methods:
            return each
    return None


def _has_own_matches(route: Any) -> bool:
    """Whether the class of the route decides itself which paths match."""
    return type(route).matches not in (Route.matches, APIRoute.matches, Mount.matches)


def _is_simple(path: str) -> bool:
    return all("{" not in each or _PARAMETER.fullmatch(each) for each in path.split("/"))
