"""A direct route calls the dependencies that it declares: the same ones as FastAPI, as often, and in the same order."""

# No `from __future__ import annotations`: FastAPI can't resolve the name of a local type in a string.

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response

from howdah import Database
from howdah.fastapi import (
    PUBLIC,
    AccessRule,
    DbSession,
    ReadDbSession,
    Resource,
    allow,
    configure_app,
    direct,
    idempotency_key,
    require_principal,
    require_principal_key,
)
from howdah.fastapi._fastapi_internals import IS_SUPPORTED
from howdah.fastapi._routes import iterate_all_routes
from howdah.testing import open_client
from howdah_tests.support.called_dependencies import Call, identify, list_dependencies, recorded_calls
from howdah_tests.support.idempotent_app import IdempotentRequest, StrictIdempotentRoute, create_tables
from howdah_tests.support.path_pairs import MARKS, Mark
from howdah_tests.support.principals import CUSTOMER, authenticate, sign_in, unreachable_database

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="this version of FastAPI serves all routes itself")


async def open_nothing(database: Database) -> AsyncIterator[str]:
    yield "opened"


class Checker:
    """A callable object, and a method, as dependencies."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self, x_checker: Annotated[str | None, Header()] = None) -> str:
        return self.name

    async def check(self) -> str:
        return self.name

    async def open(self) -> AsyncIterator[str]:
        yield self.name


async def plain() -> str:
    return "plain"


async def inner(request: Request) -> str:
    return "inner"


async def outer(value: Annotated[str, Depends(inner)], limit: Annotated[int, Query()] = 1) -> str:
    return value


async def cached(value: Annotated[str, Depends(inner)]) -> str:
    return value


async def uncached() -> str:
    return "uncached"


async def nested_uncached(value: Annotated[str, Depends(uncached, use_cache=False)]) -> str:
    return value


async def opened(value: Annotated[str, Depends(inner)]) -> AsyncIterator[str]:
    yield value


async def opened_late() -> AsyncIterator[str]:
    yield "late"


async def with_argument(name: str) -> str:
    return name


async def changed(response: Response) -> None:
    response.headers["X-Changed"] = "yes"


async def of_router() -> None: ...


async def of_inclusion() -> None: ...


async def of_application() -> None: ...


nothing = Resource("nothing", asynccontextmanager(open_nothing))
ALLOW_EVERYONE: Final = identify(PUBLIC.dependency)
"""The check of `PUBLIC`, which does nothing. So a direct route leaves it out."""

checker, other_checker = Checker("one"), Checker("two")
direct_key = idempotency_key(IdempotentRequest, scope=require_principal_key)


def create_app(mark: Mark) -> FastAPI:
    app = FastAPI(dependencies=[Depends(of_application)])
    configure_app(
        app,
        database=unreachable_database,
        authenticate=authenticate,
        resources=[nothing],
        metrics=False,
        request_log=False,
    )
    router = APIRouter(dependencies=[Depends(of_router)])

    @router.get("/plain", dependencies=[Depends(plain), allow(CUSTOMER), Depends(plain)])
    @mark
    async def get_plain() -> None: ...

    @router.get("/nested", dependencies=[PUBLIC, Depends(cached)])
    @mark
    async def get_nested(
        first: Annotated[str, Depends(outer)],
        second: Annotated[str, Depends(inner)],
        third: Annotated[Any, Depends(outer)],
    ) -> None: ...

    @router.get("/uncached", dependencies=[PUBLIC, Depends(nested_uncached), Depends(nested_uncached)])
    @mark
    async def get_uncached(
        first: Annotated[str, Depends(uncached)],
        second: Annotated[str, Depends(uncached, use_cache=False)],
        third: Annotated[str, Depends(nested_uncached, use_cache=False)],
    ) -> None: ...

    @router.get("/objects", dependencies=[PUBLIC, Depends(checker), Depends(other_checker), Depends(checker)])
    @mark
    async def get_objects(value: Annotated[str, Depends(checker)]) -> None: ...

    @router.get(
        "/methods",
        dependencies=[PUBLIC, Depends(checker.check), Depends(other_checker.check), Depends(checker.open)],
    )
    @mark
    async def get_methods(
        value: Annotated[str, Depends(checker.check)], third: Annotated[str, Depends(checker.open)]
    ) -> None: ...

    @router.get("/partial", dependencies=[PUBLIC, Depends(functools.partial(with_argument, name="a"))])
    @mark
    async def get_partial() -> None: ...

    @router.get("/generators", dependencies=[PUBLIC, Depends(opened, scope="function"), Depends(opened)])
    @mark
    async def get_generators(
        first: Annotated[str, Depends(opened, scope="function")],
        second: Annotated[str, Depends(opened_late, scope="request")],
        third: Annotated[str, Depends(opened_late)],
    ) -> None: ...

    @router.get("/sessions", dependencies=[allow(CUSTOMER), Depends(changed)])
    @mark
    async def get_sessions(
        db: ReadDbSession, again: ReadDbSession, principal: Annotated[Any, Depends(require_principal)]
    ) -> None: ...

    @router.get("/rule-parameter", dependencies=[Depends(plain)])
    @mark
    async def get_rule_parameter(
        value: Annotated[str, Depends(inner)], rule: Annotated[None, allow(CUSTOMER)]
    ) -> None: ...

    @router.get("/resource", dependencies=[PUBLIC])
    @mark
    async def get_resource(value: Annotated[str, Depends(nothing)]) -> None: ...

    notes = APIRouter(route_class=StrictIdempotentRoute, dependencies=[Depends(of_router)])

    @notes.post("/notes", dependencies=[allow(CUSTOMER), Depends(plain), direct_key, Depends(inner)])
    @mark
    async def create_note(db: DbSession, value: Annotated[str, Depends(outer)]) -> None: ...

    app.include_router(router)
    app.include_router(notes)
    app.include_router(router, prefix="/again", dependencies=[Depends(of_inclusion)])
    return app


def list_operations(app: FastAPI) -> list[tuple[str, str]]:
    """All routes of this module."""
    routes = [each for each in iterate_all_routes(app.routes) if each.endpoint.__module__ == __name__]
    return [(method, each.path) for each in routes for method in sorted(each.methods)]


async def record(app: FastAPI, database: Database, key: str) -> dict[tuple[str, str], list[Call]]:
    """The calls of the dependencies of each route, for one valid request."""
    recorded = {}
    async with open_client(app, {"main": database}) as client:
        for method, path in list_operations(app):
            headers = sign_in(CUSTOMER) | {"Idempotency-Key": key + path.replace("/", ".")}
            with recorded_calls(list_dependencies(app, method, path)) as calls:
                response = await client.request(method, path, headers=headers)
            assert response.status_code == 200, (path, response.text)
            recorded[method, path] = [each for each in calls if each != ALLOW_EVERYONE]
    return recorded


@pytest.fixture
async def notes_database(committed_database: Database) -> Database:
    await create_tables(committed_database)
    return committed_database


async def test_a_direct_route_calls_the_same_dependencies_as_often_and_in_the_same_order(
    notes_database: Database,
) -> None:
    recorded = {name: await record(create_app(mark), notes_database, name) for name, mark in MARKS.items()}
    found = {operation: describe(calls) for operation, calls in recorded["direct"].items()}
    assert found == {operation: describe(calls) for operation, calls in recorded["fastapi"].items()}
    assert len(found) == 21


async def test_every_declared_dependency_of_a_direct_route_is_called_and_its_rule_comes_first(
    notes_database: Database,
) -> None:
    app = create_app(direct)
    declared = {each: list_dependencies(app, *each) for each in list_operations(app)}
    for operation, calls in (await record(app, notes_database, "k")).items():
        wanted = {identify(each) for each in declared[operation]} - {ALLOW_EVERYONE}
        assert wanted - {*calls} == set(), operation
        rules = [identify(each) for each in declared[operation] if isinstance(each, AccessRule)]
        assert rules == [ALLOW_EVERYONE] or calls[0] == rules[0], operation


async def test_control_a_dependency_that_is_dropped_is_noticed(notes_database: Database) -> None:
    app = create_app(direct)
    declared = list_dependencies(app, "GET", "/again/nested")
    for route in iterate_all_routes(app.routes):
        if route.path == "/again/nested":
            kept = [each for each in route.dependant.dependencies if each.call is not of_inclusion]
            route.dependant.dependencies = kept
    calls = (await record(app, notes_database, "k"))["GET", "/again/nested"]
    assert {identify(each) for each in declared} - {*calls, ALLOW_EVERYONE} == {identify(of_inclusion)}


def describe(calls: list[Call]) -> list[str]:
    """The names of the functions. For two objects of a class they are the same, and so the name of the object follows.

    The objects of the two applications are the same, except for the rules."""
    objects = {id(checker): "one", id(other_checker): "two"}
    return [f"{code.co_qualname} {objects.get(owner or 0, '')}" for code, owner in calls]
