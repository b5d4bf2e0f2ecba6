"""The rules of all routes of an application. Each route needs one, which is checked before anything else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Depends, FastAPI
from fastapi.dependencies.utils import get_parameterless_sub_dependant
from fastapi.routing import APIRoute
from starlette.routing import Host, Mount, WebSocketRoute
from starlette.types import Receive, Scope, Send

from howdah.fastapi._layers import find_layers
from howdah.fastapi._route_lists import RouteLists
from howdah.fastapi._routes import iterate_all_routes, iterate_dependants
from howdah.fastapi.access import TAKEN_RULE, AccessRule, find_rules, get_protecting_rule

WEBSOCKET: Final = "WEBSOCKET"
"""The method of a WebSocket in the list of routes."""

_MAX_LISTED: Final = 20


@dataclass(frozen=True)
class RouteRules:
    """A route and its rules. `path` begins with the paths of its mounts. A page of FastAPI has `is_own_page`."""

    path: str
    methods: frozenset[str]
    rules: tuple[AccessRule, ...]
    route: Any
    is_own_page: bool = False

    def __str__(self) -> str:
        methods = ",".join(sorted(self.methods - {"HEAD"})) or "*"
        return f"{methods} {self.path}"


def iterate_route_rules(app: FastAPI, *, prefix: str = "") -> Iterator[RouteRules]:
    """All routes, with those of included routers and mounted applications.

    A mounted application with `authenticate` is left out, because it checks its own routes.
    """
    yield from _iterate(app.routes, prefix)
    # The routes of `app.frontend()`, which newer versions of FastAPI try after all others. FastAPI has no public list.
    for each in getattr(app.router, "_iter_low_priority_routes", tuple)():
        group = getattr(each, "original_route", each)
        for frontend in group.routes:
            yield _describe(each, f"{prefix}{getattr(each, 'frontend_prefix', '')}{frontend.path}/*".replace("//", "/"))


def _iterate(routes: Sequence[Any], prefix: str) -> Iterator[RouteRules]:
    for each in iterate_all_routes(routes):
        original = getattr(each, "original_route", each)
        path = f"{prefix}{getattr(each, 'path', None) or ''}"
        if not isinstance(original, Mount | Host):
            yield _describe(each, path)
        elif (rule := get_protecting_rule(original.app)) is not None:
            yield RouteRules(f"{path}/*", frozenset(), (rule,), original)
        elif isinstance(original.app, FastAPI):
            layers = find_layers(original.app)
            if layers is None or layers.authentication is None:
                yield from iterate_route_rules(original.app, prefix=path)
        elif inner := getattr(original.app, "routes", None):
            yield from _iterate(inner, path)
        else:
            yield RouteRules(f"{path}/*", frozenset(), (), original)


def _describe(route: Any, path: str) -> RouteRules:
    original = getattr(route, "original_route", route)
    methods = frozenset({WEBSOCKET} if isinstance(original, WebSocketRoute) else getattr(route, "methods", None) or ())
    rules = {id(rule): rule for rule in find_rules(route)}
    endpoint = getattr(route, "endpoint", None)
    return RouteRules(
        path,
        methods,
        tuple(rules.values()),
        original,
        # `/openapi.json`, and the pages of `/docs` that `configure_app` doesn't replace in a mounted application
        is_own_page=not isinstance(original, APIRoute) and getattr(endpoint, "__module__", None) == FastAPI.__module__,
    )


class RuleCheck:
    """Checks that every route has one rule, and lets each route check its rule first. For `Authentication`.

    The check runs when the application starts, and again if a route was added since.
    """

    def __init__(self, app: FastAPI, lists: RouteLists) -> None:
        self._app = app
        self._lists = lists
        self._checked_version = 0
        self._unauthenticated_paths: frozenset[str] = frozenset()

    def __call__(self) -> Collection[str]:
        """The paths whose requests aren't authenticated. Raises `RuntimeError` if a route has no rule."""
        version = self._lists.update()
        if version != self._checked_version:
            self._run()
            self._checked_version = version
        return self._unauthenticated_paths

    def _run(self) -> None:
        found = [*iterate_route_rules(self._app)]
        _reject_routes_without_rule(found)
        for each in found:
            _check_rule_first(each.route)
        self._unauthenticated_paths = frozenset(
            each.path for each in found if each.is_own_page or any(rule.is_unauthenticated for rule in each.rules)
        )


def _reject_routes_without_rule(found: Sequence[RouteRules]) -> None:
    without = [f"{each}: no rule" for each in found if not each.rules and not each.is_own_page]
    several = [f"{each}: {' and '.join(map(repr, each.rules))}" for each in found if len(each.rules) > 1]
    faults = without + several
    if not faults:
        return
    more = [f"and {len(faults) - _MAX_LISTED} more"] if len(faults) > _MAX_LISTED else []
    listed = "".join(f"\n- {each}" for each in faults[:_MAX_LISTED] + more)
    raise RuntimeError(
        "the application has `authenticate`, so each route needs exactly one rule that says who may call it. Add "
        "`dependencies=[allow(<role>, ...)]`, or `[PUBLIC]` for everyone, to the route or its router. For a mount or a "
        f"route of Starlette, write protect(<application or endpoint>, <rule>):{listed}"
    )


def _check_rule_first(route: Any) -> None:
    """Let a route of FastAPI check its rule before it reads the body.

    FastAPI reads the body before it calls the dependencies, and it calls them in the order of their declaration. A
    route class, such as `IdempotentRoute`, may also run code before them. `handle` is called before all of that.
    """
    if isinstance(route, APIRoute) and not isinstance(route.handle, RuleFirst):
        route.handle = RuleFirst(route)  # type: ignore[method-assign]


class RuleFirst:
    """Replaces the method `handle` of a route: it checks the rule first.

    The route may be included several times, with further dependencies. So there is a rule for each inclusion.
    """

    def __init__(self, route: APIRoute) -> None:
        self._route = route
        self._handle: Callable[[Scope, Receive, Send], Any] = route.handle

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Check the rule, and call `handle`. For another method only `handle` is called, which answers 405."""
        route: Any = self._route
        if scope["method"] in route.methods:
            included = scope["fastapi"].get("effective_route_context") if "fastapi" in scope else None
            if included is None or included.original_route is not route:
                included = route
            rule = getattr(included, TAKEN_RULE, None) or _take_rule(included)
            if rule is not None:
                overrides = scope["app"].dependency_overrides
                if overrides and rule in overrides:
                    _give_back_rule(included, rule)
                else:
                    rule.check_first(scope)
        return self._handle(scope, receive, send)


def _take_rule(included: Any) -> AccessRule | None:
    """The rule of a route. It is removed from the dependencies, because FastAPI needs 10 µs to call a dependency.

    This happens at the first request of an inclusion, and not before: so it is certain that FastAPI calls `handle` for
    it. A rule that isn't in `dependencies`, but a parameter of the endpoint or of another dependency, stays there.
    """
    dependant = included.dependant
    for each in iterate_dependants(dependant):
        if isinstance(each.call, AccessRule):
            # a new list, because another request may iterate over the old one
            dependant.dependencies = [one for one in dependant.dependencies if one.call is not each.call or one.name]
            setattr(included, TAKEN_RULE, each.call)
            return each.call
    return None


def _give_back_rule(included: Any, rule: AccessRule) -> None:
    """Add the rule to the dependencies again, so that FastAPI calls the function that overrides it."""
    dependant = included.dependant
    if all(each.call is not rule for each in iterate_dependants(dependant)):
        added = get_parameterless_sub_dependant(depends=Depends(rule), path=dependant.path or "")
        dependant.dependencies = [added, *dependant.dependencies]
    if hasattr(included, TAKEN_RULE):
        delattr(included, TAKEN_RULE)
