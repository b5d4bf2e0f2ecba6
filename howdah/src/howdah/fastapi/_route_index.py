"""Finds the route of a path by its segments, so that the time doesn't grow with the number of routes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from starlette.routing import BaseRoute, Host, Route, WebSocketRoute

from howdah.fastapi._routes import iterate_all_routes

# A parameter that is a whole segment, with Starlette's default convertor: any text without a slash.
_PARAMETER: Final = re.compile(r"\{([a-zA-Z_][a-zA-Z0-9_]*)\}")


class FoundRoute:
    """A route with its position in the order of the routes, and the names of its path parameters by segment."""

    __slots__ = ("methods", "parameters", "position", "route")

    def __init__(self, position: int, route: Any, parameters: Sequence[tuple[int, str]]) -> None:
        self.position, self.route, self.parameters = position, route, parameters
        self.methods = frozenset(route.methods or ())  # none: all methods, as in Starlette


class _Node:
    """The routes that end at a segment, and the segments that may follow."""

    __slots__ = ("literals", "parameter", "routes")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.routes: list[FoundRoute] = []


class RouteIndex:
    """All HTTP routes of an application, by the segments of their paths.

    As in Starlette, the first declared route with the path and the method is found. The index has only the routes whose
    path parameters are whole segments. Others, such as mounts, may match many paths: if one of them comes first and
    could match, nothing is found, and Starlette must search.
    """

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self.found: list[FoundRoute] = []
        self._root = _Node()
        self.others: list[Any] = []
        self._prefixes: list[tuple[int, str]] = []  # of the others: the position, and the beginning of the path
        for position, each in enumerate(iterate_all_routes(routes)):
            original = getattr(each, "original_route", each)
            path = getattr(each, "path", None) or ""
            if isinstance(original, WebSocketRoute):
                continue
            if isinstance(original, Host) or not isinstance(original, Route) or not _is_simple(path):
                prefix = "" if isinstance(original, Host) else path.partition("{")[0]
                self.others.append(each)
                self._prefixes.append((position, prefix.rstrip("/")))
            else:
                self._add(position, each, path)

    def _add(self, position: int, route: Any, path: str) -> None:
        node, parameters = self._root, []
        for number, segment in enumerate(path.split("/")):
            if match := _PARAMETER.fullmatch(segment):
                parameters.append((number, match[1]))
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        added = FoundRoute(position, route, parameters)
        node.routes.append(added)
        self.found.append(added)

    def find(self, method: str, segments: Sequence[str], path: str) -> FoundRoute | None:
        """The route for this method and path, or None. `segments` are the parts of `path` between slashes."""
        if path.endswith("\n"):
            # Starlette's patterns end with `$`, which also matches before a line break. So a route without a parameter
            # at the end may come first.
            return None
        best: FoundRoute | None = None
        for node in _iterate_ends(self._root, segments, 0):
            for each in node.routes:
                if (not each.methods or method in each.methods) and (best is None or each.position < best.position):
                    best = each
        if best is not None:
            for position, prefix in self._prefixes:
                if position < best.position and path.startswith(prefix):
                    return None
        return best


def _iterate_ends(node: _Node, segments: Sequence[str], number: int) -> Iterator[_Node]:
    """The nodes at the end of all ways that these segments can take."""
    while number < len(segments):
        segment = segments[number]
        literal, parameter = node.literals.get(segment), node.parameter if segment else None
        number += 1
        if literal is None:
            if parameter is None:
                return
            node = parameter
        else:
            if parameter is not None:
                yield from _iterate_ends(parameter, segments, number)
            node = literal
    yield node


def _is_simple(path: str) -> bool:
    return all("{" not in each or _PARAMETER.fullmatch(each) for each in path.split("/"))
