"""The table of the matrix test: who may call an operation, and the parts of its requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Literal, TypeAlias

from howdah.testing._access_responses import SUCCESS

Access: TypeAlias = Literal["all", "own"]
ObjectKind: TypeAlias = Literal["own", "foreign", "missing"]
Headers: TypeAlias = Mapping[str, str]


@dataclass(frozen=True)
class Expectation:
    """Who may call an operation. Made by `expect`."""

    roles: Mapping[str, Access]
    scope: str | None = None
    has_objects: bool | None = None
    is_public: bool = False
    more_scopes: Collection[str] = ()

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes that an API key needs. Empty if no API key may call the operation."""
        return frozenset() if self.scope is None else frozenset({self.scope, *self.more_scopes})


def expect(
    *,
    scope: str | None = None,
    more_scopes: Collection[str] = (),
    has_objects: bool | None = None,
    **roles: Access,
) -> Expectation:
    """Who may call an operation: a keyword for each role, `"all"` or `"own"`. Other roles get 403.

    - `"all"`: the role reaches every object. A missing object is 404.
    - `"own"`: a foreign object gets the same response as a missing one. In a list, only own rows occur.

    `scope` is the scope that an API key needs. Without it, API keys get 403. `more_scopes` are scopes that it needs,
    too, because the response has rows of several features. `has_objects` tells whether the operation
    is called for an own, a foreign and a missing object. By default this follows from its path parameters. Set it to
    True if the object is in the body, and to False if the path parameter isn't an object.
    """
    return Expectation(roles, scope, has_objects, more_scopes=more_scopes)


EVERYONE: Final = Expectation({}, is_public=True)
"""The expectation of an operation that everyone may call, also without credentials."""


@dataclass(frozen=True)
class Case:
    """One request of the matrix. `kind` is None if the operation has no object."""

    operation: str
    role: str
    credential: str
    kind: ObjectKind | None

    def __str__(self) -> str:
        kind = "" if self.kind is None else f", {self.kind} object"
        return f"{self.operation} as {self.role} with {self.credential}{kind}"


@dataclass(frozen=True, kw_only=True)
class RequestData:
    """The parts of a request that the service's test chooses.

    - `path`: the values of path parameters, if they aren't those of `path_values`.
    - `success` and `missing`: the statuses of an allowed request, and of one for a missing object.
    - `own_marks` and `foreign_marks`: texts, such as ids, of own and of foreign rows that a list returns. The response
      to a role with the access `"all"` must have both. With `"own"` it must have only the own ones.
    - `url` and `method`: the whole path and the method, for an operation that doesn't fix them, such as a mount.
    - `ends_session`: the credentials are invalid afterwards, as after a sign-out. The next request gets new ones.
    """

    path: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    content: bytes | None = None
    headers: Headers = field(default_factory=dict)
    success: Collection[int] = SUCCESS
    missing: Collection[int] = (HTTPStatus.NOT_FOUND,)
    own_marks: Collection[str] = ()
    foreign_marks: Collection[str] = ()
    url: str | None = None
    method: str | None = None
    ends_session: bool = False
