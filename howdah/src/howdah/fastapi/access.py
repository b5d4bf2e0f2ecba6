"""Who may call a route: each route of an application with `authenticate` declares one rule.

@router.get("/orders", dependencies=[allow("customer", "operator", scope="orders:read")])
@router.post("/sign-in", dependencies=[PUBLIC])

app.mount("/static", protect(StaticFiles(directory="static"), PUBLIC))
"""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of `__call__` as texts.

import functools
import inspect
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final, TypeVar

from fastapi import Depends
from fastapi.dependencies.models import Dependant
from fastapi.params import Depends as DependsMarker
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.fastapi._routes import iterate_dependants
from howdah.fastapi.authentication import PRINCIPAL_KEY, NotAuthenticated, find_principal
from howdah.fastapi.problem import ProblemException

ProtectedT = TypeVar("ProtectedT")

# The key in the ASGI scope of the rule that was checked before the body was read.
_CHECKED_KEY: Final = "howdah.checked_rule"
# The name of the attribute in which a protected endpoint keeps its rule.
_RULE_ATTRIBUTE: Final = "howdah_rule"

_ASGI_PARAMETERS: Final = 3

TAKEN_RULE: Final = "howdah_taken_rule"
"""The name of the attribute in which a route keeps its rule after the rule was removed from its dependencies."""


class NotAllowed(ProblemException):
    """The principal's role, or the scopes of its API key, don't allow the request (403).

    `scope` is the scope that the API key lacks. The header `WWW-Authenticate` names it, as RFC 6750 demands.
    """

    def __init__(self, detail: str, *, scope: str | None = None) -> None:
        challenge = (
            None if scope is None else {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
        )
        super().__init__(HTTPStatus.FORBIDDEN, "not-allowed", detail, headers=challenge)


class AccessRule:
    """The rule of a route: the roles that may call it, and the scope that an API key needs. Made by `allow`.

    It is a dependency of FastAPI. An application with `authenticate` also checks it before all other dependencies and
    before the body is read.
    """

    def __init__(
        self,
        roles: frozenset[str],
        *,
        scope: str | None = None,
        is_public: bool = False,
        is_unauthenticated: bool = False,
    ) -> None:
        self.roles = roles
        self.scope = scope
        self.is_public = is_public
        # for a path whose requests aren't authenticated, such as a probe: wrong credentials don't matter
        self.is_unauthenticated = is_unauthenticated

    def __repr__(self) -> str:
        if self.is_public:
            return "PUBLIC"
        scope = "" if self.scope is None else f", scope={self.scope!r}"
        return f"allow({', '.join(repr(str(role)) for role in sorted(self.roles))}{scope})"

    def check(self, principal: Any) -> None:
        """Raises `NotAuthenticated` (401) without a principal, and `NotAllowed` (403) for another role or scope."""
        if self.is_public:
            return
        if principal is None:
            raise NotAuthenticated
        if principal.role not in self.roles:
            raise NotAllowed(f"the role {principal.role} may not do this")
        if principal.scopes is not None and self.scope not in principal.scopes:
            if self.scope is None:
                raise NotAllowed("an API key with scopes may not do this: sign in")
            raise NotAllowed(f"the API key needs the scope {self.scope}", scope=self.scope)

    def check_first(self, scope: Scope) -> None:
        """Check the principal of a request before its dependencies run. `__call__` doesn't check it again then."""
        self.check(scope.get(PRINCIPAL_KEY))
        scope[_CHECKED_KEY] = self

    async def __call__(self, connection: HTTPConnection) -> None:
        """FastAPI calls this."""
        if connection.scope.get(_CHECKED_KEY) is not self:
            self.check(find_principal(connection))


def allow(*roles: str, scope: str | None = None) -> Any:
    """The rule of a route, for `dependencies` of the route or of its router.

    A principal with one of the roles may call the route. An API key with scopes needs `scope`, too; without `scope` no
    API key with scopes may call the route.
    """
    if not roles:
        raise ValueError("allow() needs a role: use PUBLIC for a route that everyone may call")
    return Depends(AccessRule(frozenset(roles), scope=scope))


PUBLIC: Final[Any] = Depends(AccessRule(frozenset(), is_public=True))
"""The rule of a route that everyone may call, also without credentials."""


UNAUTHENTICATED: Final[Any] = Depends(AccessRule(frozenset(), is_public=True, is_unauthenticated=True))
"""The rule of the probes, the metrics and the docs. Requests for them are not authenticated, unlike with `PUBLIC`."""


def protect(endpoint: ProtectedT, rule: Any) -> ProtectedT:
    """Return the endpoint or ASGI application with a rule: for routes of Starlette and for mounts.

        app.mount("/static", protect(StaticFiles(directory="static"), PUBLIC))
        app.add_route("/report", protect(report, allow("operator")))

    Routes of FastAPI have the rule in `dependencies`. A mounted application of FastAPI needs no `protect` if its own
    routes have rules. With `protect`, all its paths have this rule.
    """
    protected: ProtectedT = _protect(endpoint, to_rule(rule))
    return protected


def _protect(endpoint: Any, rule: AccessRule) -> Any:
    function = endpoint
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isfunction(function) or inspect.ismethod(function)) or _is_asgi(endpoint):
        return _Protected(endpoint, rule)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def protected(connection: HTTPConnection) -> Any:
            rule.check(find_principal(connection))
            return await endpoint(connection)
    else:

        @functools.wraps(function)
        def protected(connection: HTTPConnection) -> Any:
            rule.check(find_principal(connection))
            return endpoint(connection)

    setattr(protected, _RULE_ATTRIBUTE, rule)
    return protected


class _Protected:
    """An ASGI application with a rule."""

    def __init__(self, app: ASGIApp, rule: AccessRule) -> None:
        self.wrapped = app
        setattr(self, _RULE_ATTRIBUTE, rule)
        self._rule = rule

    @property
    def routes(self) -> Any:
        """The routes of the application, by which Starlette builds URLs."""
        return getattr(self.wrapped, "routes", [])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            self._rule.check(scope.get(PRINCIPAL_KEY))
        await self.wrapped(scope, receive, send)


def _is_asgi(endpoint: Any) -> bool:
    """Whether the function is an ASGI application, and not an endpoint, which has one parameter."""
    return len(inspect.signature(endpoint).parameters) == _ASGI_PARAMETERS


def to_rule(rule: Any) -> AccessRule:
    """The rule in the result of `allow`, in `PUBLIC`, or itself. Raises `TypeError` for anything else."""
    found = rule.dependency if isinstance(rule, DependsMarker) else rule
    if not isinstance(found, AccessRule):
        raise TypeError(f"a rule must be PUBLIC or the result of allow(), not {rule!r}")
    return found


def unwrap_protected(app: Any) -> Any:
    """The application that was given to `protect`, or the same application."""
    return app.wrapped if isinstance(app, _Protected) else app


def find_rules(route: Any) -> Iterator[AccessRule]:
    """All rules of a route, or of one of its inclusions. The same rule may occur several times."""
    taken = getattr(route, TAKEN_RULE, None)
    if taken is not None:
        yield taken
    dependant = getattr(route, "dependant", None)
    if isinstance(dependant, Dependant):
        yield from (each.call for each in iterate_dependants(dependant) if isinstance(each.call, AccessRule))
    protecting = get_protecting_rule(getattr(route, "endpoint", None))
    if protecting is not None:
        yield protecting


def get_protecting_rule(endpoint: Any) -> AccessRule | None:
    """The rule that `protect` gave to this endpoint or application."""
    rule = getattr(endpoint, _RULE_ATTRIBUTE, None)
    return rule if isinstance(rule, AccessRule) else None
