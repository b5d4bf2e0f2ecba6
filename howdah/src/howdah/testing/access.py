"""The matrix test: every route × role × own, foreign or missing object × credentials.

    matrix = AccessMatrix(
        app,
        expected={
            "GET /orders/{order_id}": expect(customer="own", operator="all", scope="orders:read"),
            "POST /sign-in": EVERYONE,
        },
        valid={"token": sign_in},
        scoped={"API key": create_key},
        invalid={"expired token": sign_in_expired},
        path_values={"order_id": choose_order},
        requests={"POST /sign-in": lambda case: RequestData(json={"email": "a@example.com", "password": "x"})},
    )
    await matrix.check(committed_client)

The routes are those of the OpenAPI description, and those that are hidden from it, also `WEBSOCKET /path`. The
expectations are written without the rules, so that the test notices a changed rule. A route without an entry is a gap,
and so is an entry without a route.

With `disabled(rule)` the matrix must have a gap, for each rule of `list_rules(app)`:

    for rule, operations in list_rules(app).items():
        with disabled(rule):
            assert await matrix.find_gaps(committed_client, operations=operations)
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from unittest import mock
from urllib.parse import quote

import pytest

from howdah.fastapi.access import AccessRule, to_rule
from howdah.fastapi.openapi_security import ROLES_EXTENSION, SCOPE_EXTENSION
from howdah.fastapi.route_rules import WEBSOCKET, RouteRules, iterate_route_rules
from howdah.testing._access_responses import (
    can_tell_apart,
    describe,
    describe_statuses,
    get_sent,
    remember_sent,
    shorten,
)
from howdah.testing._access_table import (
    EVERYONE,
    Access,
    Case,
    Expectation,
    Headers,
    ObjectKind,
    RequestData,
    expect,
)
from howdah.testing._websockets import open_websocket
from howdah.testing.clients import find_application

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

__all__ = [
    "EVERYONE",
    "Access",
    "AccessMatrix",
    "Case",
    "Expectation",
    "Headers",
    "ObjectKind",
    "RequestData",
    "disabled",
    "expect",
    "list_operations",
    "list_rules",
]

_KINDS: Final[tuple[ObjectKind, ...]] = ("own", "foreign", "missing")
_PARAMETER: Final = re.compile(r"\{(\w+)(?::\w+)?\}")
_NO_CREDENTIALS: Final = "no credentials"
_MAX_SHOWN: Final = 40


@dataclass(frozen=True)
class _Credential:
    """A way to send credentials. `status` is the expected status if they are rejected, otherwise None."""

    name: str
    make: Callable[[str], Headers | Awaitable[Headers]]
    status: int | None = None

    @property
    def kind(self) -> str:
        """The name without scopes."""
        return self.name.partition(" (")[0]


class AccessMatrix:
    """The requests of the matrix test, and the expected responses.

    - `expected`: an `Expectation` for each operation, such as `GET /orders/{order_id}`.
    - `valid`: functions that get a role, and return the headers of valid credentials. They may be `async`.
    - `scoped`: functions that get a role and scopes, and return the headers of an API key with these scopes.
    - `invalid`: functions that get a role, and return the headers of credentials that get a 401. Requests without
      credentials are always sent.
    - `path_values`: functions that get a `Case`, and return the value of the path parameter with this name.
    - `requests`: functions that get a `Case`, and return the `RequestData` of the operation. They are called for each
      request that the rule allows, so they may create the object that the request changes or deletes. `case.kind`
      tells which object the request needs: an own, a foreign or a missing one.
    - `foreign_marks`: texts, such as the ids and e-mail addresses of foreign rows, that no response to a role with the
      access `"own"` may contain. A text that was sent in the request may occur.

    The roles are those of `expected`, or `roles`. Every request is sent by the same `client`, one after the other.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        expected: Mapping[str, Expectation],
        valid: Mapping[str, Callable[[str], Headers | Awaitable[Headers]]],
        scoped: Mapping[str, Callable[[str, frozenset[str]], Headers | Awaitable[Headers]]] | None = None,
        invalid: Mapping[str, Callable[[str], Headers | Awaitable[Headers]]] | None = None,
        path_values: Mapping[str, Callable[[Case], Any]] | None = None,
        requests: Mapping[str, Callable[[Case], RequestData | Awaitable[RequestData]]] | None = None,
        foreign_marks: Collection[str] = (),
        roles: Sequence[str] = (),
    ) -> None:
        self._app = app
        self._expected = expected
        self._valid, self._scoped, self._invalid = valid, scoped or {}, invalid or {}
        self._path_values = path_values or {}
        self._requests = requests or {}
        self._foreign_marks = foreign_marks
        self._roles = [*roles] or sorted({str(role) for each in expected.values() for role in each.roles})
        self._scopes = frozenset(scope for each in expected.values() for scope in each.scopes)
        self._headers: dict[tuple[str, str], Headers] = {}

    async def check(self, client: httpx.AsyncClient) -> None:
        """Fail the test if there is a gap."""
        gaps = await self.find_gaps(client)
        if gaps:
            more = [f"and {len(gaps) - _MAX_SHOWN} more"] if len(gaps) > _MAX_SHOWN else []
            listed = "".join(f"\n- {each}" for each in gaps[:_MAX_SHOWN] + more)
            pytest.fail(f"the access matrix has {len(gaps)} gaps:{listed}", pytrace=False)

    async def find_gaps(
        self,
        client: httpx.AsyncClient,
        *,
        operations: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        credentials: Collection[str] | None = None,
        first_only: bool = False,
    ) -> list[str]:
        """The differences between what is expected and what the application does, as sentences.

        With `operations`, only these are requested, and the list of routes isn't compared with `expected`. With `roles`
        and `credentials`, requests are sent only with these; the latter are names in `valid`, `scoped` and `invalid`.
        With `first_only`, an operation is requested until its first gap, which is enough to show that a rule is tested.
        """
        gaps = [*self._compare_with_description()] if operations is None else []
        for operation in self._expected:
            if operations is None or operation in operations:
                async for gap in self._check_operation(
                    client, operation, self._roles if roles is None else roles, credentials
                ):
                    gaps.append(gap)
                    if first_only:
                        break
        return gaps

    def _compare_with_description(self) -> Iterator[str]:
        """Compare the list of operations, and the roles and scopes of the OpenAPI description."""
        operations = list_operations(self._app)
        for name in operations.keys() - self._expected.keys():
            yield f"{name} has no entry in `expected`: say who may call it"
        for name in self._expected.keys() - operations.keys():
            yield f"{name} is in `expected`, and the application has no such route: remove the entry"
        for name, described in operations.items():
            expectation = self._expected.get(name)
            if expectation is None or described is None:
                continue
            for extension, wanted in (
                (ROLES_EXTENSION, sorted(map(str, expectation.roles)) or None),
                (SCOPE_EXTENSION, expectation.scope),
            ):
                found = described.get(extension)
                if found != wanted:
                    yield f"{name}: `{extension}` of the OpenAPI description is {found}, not {wanted}"

    async def _check_operation(
        self,
        client: httpx.AsyncClient,
        operation: str,
        roles: Collection[str],
        credentials: Collection[str] | None,
    ) -> AsyncIterator[str]:
        """The gaps of one operation."""
        expectation = self._expected[operation]
        has_objects = expectation.has_objects
        if has_objects is None:
            has_objects = _PARAMETER.search(operation) is not None
        kinds: tuple[ObjectKind | None, ...] = _KINDS if has_objects else (None,)
        first_role = next(iter(roles), None)
        for role in roles:
            rejected_data: dict[ObjectKind | None, RequestData] = {}
            for credential in self._iterate_credentials(expectation):
                if credentials is not None and credential.kind not in credentials:
                    continue
                if credential.kind == _NO_CREDENTIALS and role != first_role:
                    continue  # it would be the same request
                answers: dict[ObjectKind | None, httpx.Response] = {}
                for kind in kinds:
                    case = Case(operation, role, credential.name, kind)
                    status = _find_rejection(expectation, role, credential)
                    # A rejected request changes nothing, so its object can be used again.
                    data = rejected_data.get(kind) if status is not None else None
                    if data is None:
                        data = await self._build(case)
                    if status is not None:
                        rejected_data[kind] = data
                    response = await self._send(client, case, data, await self._find_headers(credential, role))
                    if data.ends_session:
                        del self._headers[credential.name, role]
                    for gap in self._compare(case, data, response, status, expectation):
                        yield gap
                    answers[kind] = response
                if has_objects and expectation.roles.get(role) == "own":
                    foreign, missing = answers["foreign"], answers["missing"]
                    if can_tell_apart(foreign, missing):
                        yield (
                            f"{operation} as {role} with {credential.name}: a foreign object can be told from a "
                            f"missing one: {describe(foreign)} and {describe(missing)}"
                        )

    def _iterate_credentials(self, expectation: Expectation) -> Iterator[_Credential]:
        """The credentials for this operation.

        One API key has the needed scopes. For each of them, another key has all scopes but this one.
        """
        unauthorized, forbidden = int(HTTPStatus.UNAUTHORIZED), int(HTTPStatus.FORBIDDEN)
        yield from (_Credential(name, make) for name, make in self._valid.items())
        needed = expectation.scopes
        for name, make in self._scoped.items():
            if needed:
                yield _Credential(f"{name} ({', '.join(sorted(needed))})", _with_scopes(make, needed))
            status = None if expectation.is_public else forbidden
            for scope in (*sorted(needed),) or (None,):
                others = self._scopes - {scope}
                shown = "all scopes" if scope is None else f"all scopes but {scope}"
                yield _Credential(f"{name} ({shown})", _with_scopes(make, others), status)
        yield _Credential(_NO_CREDENTIALS, lambda role: {}, None if expectation.is_public else unauthorized)
        yield from (_Credential(name, make, unauthorized) for name, make in self._invalid.items())

    async def _find_headers(self, credential: _Credential, role: str) -> Headers:
        key = credential.name, role
        if key not in self._headers:
            self._headers[key] = await _resolve(credential.make(role))
        return self._headers[key]

    async def _build(self, case: Case) -> RequestData:
        make = self._requests.get(case.operation)
        return RequestData() if make is None else await _resolve(make(case))

    async def _send(self, client: httpx.AsyncClient, case: Case, data: RequestData, headers: Headers) -> httpx.Response:
        import httpx

        method, _, template = case.operation.partition(" ")
        values = {name: str(data.path[name]) for name in data.path}
        for name in _PARAMETER.findall(template):
            if name not in values:
                if name not in self._path_values:
                    raise LookupError(f"{case.operation}: add {name} to path_values, or to `path` of its RequestData")
                values[name] = str(await _resolve(self._path_values[name](case)))
        url = data.url or _PARAMETER.sub(lambda match: quote(values[match[1]], safe=""), template)
        try:
            if method == WEBSOCKET:
                response = await open_websocket(find_application(client), url, {**data.headers, **headers})
            else:
                response = await client.request(
                    data.method or method,
                    url,
                    params=data.query or None,
                    json=data.json,
                    content=data.content,
                    headers={**data.headers, **headers},
                )
        except Exception as error:  # an error of the application; with `request_log` it would be a 500
            response = httpx.Response(HTTPStatus.INTERNAL_SERVER_ERROR, text=repr(error))
        remember_sent(response, values, url, data.query, data.json, data.content)
        return response

    def _compare(
        self, case: Case, data: RequestData, response: httpx.Response, rejected: int | None, expectation: Expectation
    ) -> Iterator[str]:
        """The gaps of one response."""
        access = expectation.roles.get(case.role)
        wanted: Collection[int]
        if rejected is not None:
            wanted = (rejected,)
        elif case.kind == "missing" or (case.kind == "foreign" and access == "own"):
            wanted = data.missing
        else:
            wanted = data.success
        if response.status_code not in wanted:
            yield f"{case}: expected {describe_statuses(wanted)}, got {describe(response)}"
            return
        text = response.text
        if rejected is None and case.kind in (None, "own"):
            missing = [mark for mark in data.own_marks if mark not in text]
            if access == "all" or expectation.is_public:
                missing += [mark for mark in data.foreign_marks if mark not in text]
            if missing:
                yield f"{case}: the response lacks {missing[0]}, so it proves nothing: {shorten(text)}"
        if access != "all" and not expectation.is_public:
            sent = get_sent(response)
            for mark in {*self._foreign_marks, *data.foreign_marks}:
                if mark in text and not any(mark in each for each in sent):
                    yield f"{case}: the response has the text {mark} of a foreign row"


def _find_rejection(expectation: Expectation, role: str, credential: _Credential) -> int | None:
    """The status of a request that is rejected before its object is looked up, or None."""
    if credential.status == HTTPStatus.UNAUTHORIZED or expectation.is_public:
        return credential.status
    return int(HTTPStatus.FORBIDDEN) if role not in expectation.roles else credential.status


def list_operations(app: FastAPI) -> dict[str, Mapping[str, Any] | None]:
    """The operations of the application with their OpenAPI description. It is None for one that is hidden from it.

    The probes, the metrics and the docs are left out.
    """
    described = {
        f"{method.upper()} {path}": operation
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    return {name: described.get(name) for route in _iterate_routes(app) for name in _name_operations(route)}


def list_rules(app: FastAPI) -> dict[AccessRule, list[str]]:
    """The rules of the application, without `PUBLIC`, each with the operations that have it."""
    found: dict[AccessRule, list[str]] = {}
    for route in _iterate_routes(app):
        for rule in route.rules:
            if not rule.is_public:
                found.setdefault(rule, []).extend(_name_operations(route))
    return found


@contextmanager
def disabled(rule: Any) -> Iterator[None]:
    """Let the rule allow every request, as if it were removed. It is the result of `allow`, or an `AccessRule`."""
    with mock.patch.object(to_rule(rule), "check", _allow):
        yield


def _allow(principal: Any) -> None:
    """Replaces the check of a rule that is disabled."""


def _iterate_routes(app: FastAPI) -> Iterator[RouteRules]:
    for route in iterate_route_rules(app):
        if not route.is_own_page and not any(rule.is_unauthenticated for rule in route.rules):
            yield route


def _name_operations(route: RouteRules) -> list[str]:
    """The names of a route's operations. HEAD is left out, because it runs the route of GET."""
    path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
    return [f"{method} {path}" for method in sorted(route.methods - {"HEAD"})] or [f"* {path}"]


def _with_scopes(
    make: Callable[[str, frozenset[str]], Headers | Awaitable[Headers]], scopes: frozenset[str]
) -> Callable[[str], Headers | Awaitable[Headers]]:
    return lambda role: make(role, scopes)


async def _resolve(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
