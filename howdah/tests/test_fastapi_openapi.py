"""The OpenAPI description of the responses of an application with error handlers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository, Database, InvalidCursor, Unavailable
from howdah.fastapi import (
    PROBLEM_JSON,
    DbSession,
    PageParameters,
    Problem,
    ReadDbSession,
    add_error_handlers,
    describe_problems,
    get_database,
    get_schema_ref,
    problem_response,
    session_dependency,
)
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app
from howdah_tests.support.sample_models import User

PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}


class Body(BaseModel):
    name: str


class Line(BaseModel):
    body: Body
    amount: int | None = None


def responses(app: FastAPI, path: str = "/", method: str = "get") -> dict[str, Any]:
    found: dict[str, Any] = app.openapi()["paths"][path][method]["responses"]
    return found


def assert_every_reference_has_a_target(description: dict[str, Any]) -> None:
    for reference in references(description):
        assert reference.rsplit("/", 1)[1] in description["components"]["schemas"], reference


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (inner for name, inner in value.items() if name == "$ref")
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


# Problems that follow from the parameters of a route.


async def nothing() -> None: ...


async def by_path(id: int) -> None: ...


async def by_body(body: Body) -> None: ...


async def by_page(page: Annotated[PageParameters, Query()]) -> None: ...


async def by_page_dependency(page: Annotated[PageParameters, Depends()]) -> None: ...


async def by_precondition(if_match: Annotated[str | None, Header()] = None) -> None: ...


async def by_reading_session(db: ReadDbSession) -> None: ...


async def by_session(db: DbSession) -> None: ...


async def by_database(database: Annotated[Database, Depends(get_database)]) -> None: ...


async def by_further_database(
    db: Annotated[AsyncSession, session_dependency(lambda connection: connection.state.reports)],
) -> None: ...


async def by_nested_session(user: Annotated[None, Depends(by_session)], id: int) -> None: ...


@pytest.mark.parametrize(
    ("route", "method", "path", "statuses"),
    [
        (nothing, "get", "/", []),
        (nothing, "post", "/", []),
        (by_path, "get", "/{id}", [404, 422]),
        (by_body, "post", "/", [400, 422]),
        (by_page, "get", "/", [400, 422]),
        (by_page_dependency, "get", "/", [400, 422]),
        (by_precondition, "patch", "/", [412, 422]),
        (by_reading_session, "post", "/", [503]),
        (by_session, "get", "/", [503]),
        (by_session, "post", "/", [409, 503]),
        (by_session, "delete", "/", [409, 503]),
        (by_database, "post", "/", [503]),
        (by_further_database, "post", "/", [409, 503]),
        (by_nested_session, "put", "/{id}", [404, 409, 422, 503]),
    ],
)
@pytest.mark.parametrize("place", ["application", "router", "router in a router"])
def test_a_route_describes_the_problems_that_follow_from_its_parameters(
    route: Any, method: str, path: str, statuses: list[int], place: str
) -> None:
    app, router = create_bare_app(), APIRouter()
    (app if place == "application" else router).add_api_route(path, route, methods=[method.upper()])
    prefix = {"application": "", "router": "/a", "router in a router": "/a/b"}[place]
    if place == "router in a router":
        outer = APIRouter()
        outer.include_router(router, prefix="/b")
        router = outer
    app.include_router(router, prefix="/a")
    described = responses(app, prefix + path, method)
    assert list(described) == sorted(["200", *map(str, statuses)])
    for status in statuses:
        assert described[str(status)]["content"] == {PROBLEM_JSON: PROBLEM}
        assert ("Retry-After" in described[str(status)].get("headers", {})) == (status in {429, 503})
    schemas = app.openapi().get("components", {}).get("schemas", {})
    assert "HTTPValidationError" not in schemas
    assert ("Problem" in schemas) == bool(statuses)
    assert_every_reference_has_a_target(app.openapi())


def test_dependencies_of_include_router_are_included() -> None:
    app, router = create_bare_app(), APIRouter()
    router.add_api_route("/", nothing, methods=["POST"])
    app.include_router(router, prefix="/a", dependencies=[Depends(by_session)])
    app.include_router(router, prefix="/b")
    assert responses(app, "/a/", "post").keys() == {"200", "409", "503"}
    assert responses(app, "/b/", "post").keys() == {"200"}


def test_the_schema_of_a_problem_contains_the_validation_errors() -> None:
    app = create_bare_app()
    app.post("/")(by_body)
    schemas = app.openapi()["components"]["schemas"]
    assert schemas["Problem"]["properties"]["errors"]["anyOf"][0] == {
        "items": {"$ref": "#/components/schemas/InputError"},
        "type": "array",
    }
    assert schemas["InputError"]["required"] == ["loc", "msg", "type"]


# Responses that the route declares.


def test_responses_that_the_route_declares_are_kept() -> None:
    app, own = create_bare_app(), {"description": "own", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.post("/own/{id}", responses={404: own, 422: own, 503: own})
    async def own_responses(id: int, db: DbSession) -> None: ...

    @app.post("/ranges/{id}", responses={"4XX": own})
    async def ranges(id: int, db: DbSession) -> None: ...

    @app.post("/default/{id}", responses={"default": own})
    async def default(id: int, db: DbSession) -> None: ...

    described = responses(app, "/own/{id}", "post")
    assert [described[status] for status in ("404", "422", "503")] == [own, own, own]
    assert described["409"]["content"] == {PROBLEM_JSON: PROBLEM}
    assert responses(app, "/ranges/{id}", "post").keys() == {"200", "4XX", "503"}
    assert responses(app, "/default/{id}", "post").keys() == {"200", "default"}


def test_a_route_can_declare_further_problems() -> None:
    app = create_bare_app()
    app.get("/", responses=describe_problems(428, 503) | {418: {"description": "a teapot"}})(nothing)
    described = responses(app)
    assert described.keys() == {"200", "418", "428", "503"}
    assert described["428"] == {"description": "Precondition Required", "content": {PROBLEM_JSON: PROBLEM}}
    assert "Retry-After" in described["503"]["headers"]


def test_callbacks_and_webhooks_are_not_changed() -> None:
    app, calls = create_bare_app(), APIRouter()
    calls.post("{$request.body.url}")(by_body)
    app.post("/", callbacks=calls.routes)(nothing)
    app.webhooks.post("changed")(by_body)
    description = app.openapi()
    assert description["webhooks"]["changed"]["post"]["responses"]["422"]["content"].keys() == {"application/json"}
    assert "HTTPValidationError" in description["components"]["schemas"]
    assert_every_reference_has_a_target(description)


# Models that no route reads or returns.


def test_a_model_that_no_route_reads_can_be_described() -> None:
    app = create_bare_app()
    app.post(
        "/",
        responses={200: {"content": {"application/x-ndjson": {"schema": get_schema_ref(Line)}}}},
        openapi_extra={
            "requestBody": {"content": {"application/x-ndjson": {"schema": get_schema_ref(Line, "validation")}}}
        },
    )(nothing)
    description = app.openapi()
    operation = description["paths"]["/"]["post"]
    assert operation["requestBody"]["content"] == {
        "application/x-ndjson": {"schema": {"$ref": "#/components/schemas/Line"}}
    }
    assert description["components"]["schemas"].keys() == {"Body", "Line"}
    assert_every_reference_has_a_target(description)


def test_a_model_that_fastapi_describes_too_is_described_once() -> None:
    app = create_bare_app()
    app.post("/lines", responses={200: {"content": {"text/csv": {"schema": get_schema_ref(Line, "validation")}}}})(
        nothing
    )

    @app.post("/")
    async def create(line: Line) -> None: ...

    assert app.openapi()["components"]["schemas"].keys() == {"Body", "InputError", "Line", "Problem"}


def test_models_of_the_same_name_are_kept_apart() -> None:
    app = create_bare_app()

    class Problem(BaseModel):
        solved: bool

    class Line(BaseModel):
        problem: Problem

    app.get("/lines", responses={200: {"content": {"text/csv": {"schema": get_schema_ref(Line)}}}})(nothing)
    app.get("/other", responses={200: {"content": {"text/csv": {"schema": get_schema_ref(_other_line())}}}})(nothing)

    @app.get("/{id}", response_model=Line, responses=describe_problems(404))
    async def read(id: int) -> None: ...

    description = app.openapi()
    schemas = description["components"]["schemas"]

    def described(path: str, status: str, media_type: str) -> Any:
        reference = responses(app, path)[status]["content"][media_type]["schema"]["$ref"]
        return schemas[reference.rsplit("/", 1)[1]]["properties"].keys()

    assert described("/{id}", "200", "application/json") == {"problem"}
    assert described("/{id}", "404", PROBLEM_JSON) >= {"type", "title", "status"}
    assert described("/lines", "200", "text/csv") == {"problem"}
    assert described("/other", "200", "text/csv") == {"body", "amount"}
    assert_every_reference_has_a_target(description)


def _other_line() -> type[BaseModel]:
    return Line


# The application's description.


def test_a_description_is_cached_until_a_route_is_added() -> None:
    app = create_bare_app()
    app.get("/{id}")(by_path)
    described = app.openapi()
    assert app.openapi() is described
    app.get("/later/{id}", name="later")(by_path)
    app.openapi_schema = None  # as FastAPI says to do; newer versions do it themselves
    assert responses(app, "/later/{id}").keys() == {"200", "404", "422"}


def test_an_application_with_a_custom_description_keeps_it() -> None:
    app = FastAPI()
    app.get("/{id}")(by_path)

    def own() -> dict[str, Any]:
        return get_openapi(title="own", version="1", routes=app.routes)

    app.openapi = own  # type: ignore[method-assign]
    add_error_handlers(app)
    assert app.openapi()["info"]["title"] == "own"
    assert responses(app, "/{id}").keys() == {"200", "404", "422"}

    app.openapi = own  # type: ignore[method-assign]  # set after add_error_handlers, so it replaces the library's description
    assert responses(app, "/{id}")["422"]["content"].keys() == {"application/json"}


def test_a_subclass_with_a_custom_description_keeps_it() -> None:
    class Titled(FastAPI):
        def openapi(self) -> dict[str, Any]:
            description = super().openapi()
            description["info"]["title"] = "titled"
            return description

    app = Titled()
    add_error_handlers(app)
    app.get("/{id}")(by_path)
    assert app.openapi()["info"]["title"] == "titled"
    assert responses(app, "/{id}").keys() == {"200", "404", "422"}


async def test_a_mounted_application_describes_itself() -> None:
    app, inner = create_bare_app(), create_bare_app()
    inner.get("/{id}")(by_path)
    app.mount("/inner", inner)
    async with asgi_client(app) as client:
        outer = (await client.get("/openapi.json")).json()
        description = (await client.get("/inner/openapi.json")).json()
        missing = await client.get("/inner/x")
    assert outer["paths"] == {}
    assert description["paths"]["/{id}"]["get"]["responses"].keys() == {"200", "404", "422"}
    assert description["servers"] == [{"url": "/inner"}]
    assert (missing.status_code, missing.headers["content-type"]) == (422, PROBLEM_JSON)


def test_an_application_without_error_handlers_is_described_by_fastapi() -> None:
    app = FastAPI()
    app.get("/{id}")(by_path)
    assert responses(app, "/{id}")["422"]["content"].keys() == {"application/json"}


# The description and the responses.


async def test_responses_are_as_described(database: Database) -> None:
    app = create_bare_app(database)

    @app.get("/listed")
    async def listed(page: Annotated[PageParameters, Query()]) -> None:
        raise InvalidCursor("damaged")

    @app.get("/busy")
    async def busy(db: ReadDbSession) -> None:
        raise Unavailable("busy")

    @app.post("/users")
    async def create(body: Body, db: DbSession) -> None:
        await AsyncRepository(db, User).create(email="a@x", name=body.name)

    @app.patch("/users/{id}", responses=describe_problems(428))
    async def change(id: UUID, db: DbSession, if_match: Annotated[str | None, Header()] = None) -> Any:
        if if_match is None:
            return problem_response(428, "precondition-required")
        if if_match != "*":
            raise HTTPException(412, "changed")
        return await AsyncRepository(db, User).get_one(id) and Response(status_code=204)

    unknown = UUID(int=1)
    async with asgi_client(app) as client:
        answers = {
            ("/listed", "get", 400): await client.get("/listed"),
            ("/listed", "get", 422): await client.get("/listed", params={"limit": 0}),
            ("/busy", "get", 503): await client.get("/busy"),
            ("/users", "post", 400): await client.post(
                "/users", content=b"\xff", headers={"Content-Type": "application/json"}
            ),
            ("/users", "post", 422): await client.post("/users", json={}),
            ("/users", "post", 200): await client.post("/users", json={"name": "a"}),
            ("/users", "post", 409): await client.post("/users", json={"name": "a"}),
            ("/users/{id}", "patch", 404): await client.patch(f"/users/{unknown}", headers={"If-Match": "*"}),
            ("/users/{id}", "patch", 412): await client.patch(f"/users/{unknown}", headers={"If-Match": '"1"'}),
            ("/users/{id}", "patch", 422): await client.patch("/users/x"),
            ("/users/{id}", "patch", 428): await client.patch(f"/users/{unknown}"),
        }
    for (path, method, status), answer in answers.items():
        assert answer.status_code == status, answer.text
        described = responses(app, path, method)[str(status)]
        assert list(described["content"]) == [answer.headers["content-type"]]
        assert ("retry-after" in answer.headers) == ("Retry-After" in described.get("headers", {}))
        if status >= 400:
            problem = TypeAdapter(Problem).validate_json(answer.content)
            assert (problem.errors is not None) == (status == 422)
            assert set(answer.json()) <= Problem.model_fields.keys()
