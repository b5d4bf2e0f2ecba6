"""Who may call a route: each route of an application with `authenticate` declares one rule.

@router.get("/orders", dependencies=[allow("customer", "operator", scope="orders:read")])
@router.post("/sign-in", dependencies=[PUBLIC])
"""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of `__call__` as texts.

from http import HTTPStatus
from typing import Any, Final

from fastapi import Depends
from starlette.requests import HTTPConnection

from howdah.fastapi.authentication import NotAuthenticated, find_principal
from howdah.fastapi.problem import ProblemException


class NotAllowed(ProblemException):
    """The principal's role, or the scopes of its API key, don't allow the request (403)."""

    def __init__(self, detail: str) -> None:
        super().__init__(HTTPStatus.FORBIDDEN, "not-allowed", detail)


class AccessRule:
    """The rule of a route: the roles that may call it, and the scope that an API key needs. FastAPI calls it."""

    def __init__(self, roles: frozenset[str], *, scope: str | None = None, is_public: bool = False) -> None:
        self.roles = roles
        self.scope = scope
        self.is_public = is_public

    async def __call__(self, connection: HTTPConnection) -> None:
        """Raises `NotAuthenticated` (401) without a principal, and `NotAllowed` (403) for another role or scope."""
        if self.is_public:
            return
        principal = find_principal(connection)
        if principal is None:
            raise NotAuthenticated
        if principal.role not in self.roles:
            raise NotAllowed(f"the role {principal.role} may not do this")
        if principal.scopes is not None and self.scope not in principal.scopes:
            raise NotAllowed(f"the API key needs the scope {self.scope}")


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
