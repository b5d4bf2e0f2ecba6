"""Routes with all kinds of parameters and bodies."""

# No `from __future__ import annotations`: FastAPI can't resolve the name of a local type in a string.

from http import HTTPStatus
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Cookie, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select
from starlette.requests import HTTPConnection

from howdah.fastapi import (
    PUBLIC,
    BodyRows,
    DbSession,
    StrictJSONRoute,
    find_principal,
    problem_response,
    single_header,
)
from howdah_tests.support.idempotent_app import Note, StrictIdempotentRoute, note_key
from howdah_tests.support.path_errors import ERRORS, fail
from howdah_tests.support.path_pairs import Mark


class PathItemIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=10)
    count: int = Field(default=1, ge=0)
    price: float | None = None
    tags: list[str] = []


class PathItemOut(BaseModel):
    name: str
    count: int = 5
    price: float | None = None


class PathParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=100)
    after: UUID | None = None
    names: list[str] = []


def add_parameters(router: APIRouter, mark: Mark) -> None:
    @router.get("/values/{number}")
    @mark
    async def get_values(  # noqa: PLR0917
        number: Annotated[int, Path(ge=0)],
        q: Annotated[str | None, Query(max_length=5)] = None,
        flags: Annotated[list[int], Query()] = [1, 2],  # noqa: B006
        kind: Literal["a", "b"] = "a",
        needed: Annotated[str, Query(alias="need-ed")] = "",
        x_text: Annotated[str | None, Header(max_length=5)] = None,
        x_many: Annotated[list[str] | None, Header()] = None,
        crumb: Annotated[int | None, Cookie()] = None,
    ) -> dict[str, Any]:
        flags.append(0)  # the default isn't shared by requests
        return {**locals()}

    @router.get("/required")
    @mark
    async def get_required(
        first: int, second: Annotated[bool, Query()], x_needed: Annotated[str, Header()], one: Annotated[UUID, Cookie()]
    ) -> list[Any]:
        return [first, second, x_needed, one]

    @router.get("/page")
    @mark
    async def get_page(parameters: Annotated[PathParameters, Query()]) -> PathParameters:
        return parameters

    @router.get("/single")
    @mark
    async def get_single(key: Annotated[str | None, single_header("X-Key", str)]) -> str | None:
        return key

    async def find_tenant(tenant: Annotated[str, Path()]) -> str:
        return tenant

    @router.get("/tenants/{tenant}/{rest}")
    @mark
    async def get_tenant(tenant: Annotated[str, Depends(find_tenant)], rest: str) -> list[str]:
        return [tenant, rest]

    @router.get("/without-tenant")
    @mark
    async def get_without_tenant(tenant: Annotated[str, Depends(find_tenant)]) -> str:
        return tenant

    @router.get("/scope/{name}")
    @mark
    async def get_scope(name: str, request: Request, connection: HTTPConnection) -> dict[str, Any]:
        scope = request.scope
        return {
            "keys": sorted(key for key in scope if not key.startswith(("fastapi", "howdah", "starlette"))),
            "route": scope["route"].path,
            "path": scope["fastapi"]["effective_route_context"].path,
            "endpoint": scope["endpoint"].__name__,
            "parameters": request.path_params,
            "router": scope["router"] is scope["app"].router,
            "url": str(request.url_for("get_scope", name="x")),
            "principal": getattr(find_principal(connection), "key", None),
            "same": connection is request,
        }


def add_bodies(router: APIRouter, mark: Mark) -> None:
    @router.post("/items", status_code=HTTPStatus.CREATED, response_model_exclude_unset=True)
    @mark
    async def create_item(item: PathItemIn, response: Response) -> PathItemOut:
        response.headers["Location"] = f"/items/{item.name}"
        return PathItemOut(**item.model_dump(include={"name", "price"}))

    @router.post("/pairs")
    @mark
    async def create_pair(
        first: PathItemIn, second: Annotated[int, Body()], q: int = 0, third: Annotated[str | None, Body()] = None
    ) -> list[Any]:
        return [first, second, q, third]

    @router.post("/embedded")
    @mark
    async def create_embedded(item: Annotated[PathItemIn, Body(embed=True)]) -> PathItemIn:
        return item

    @router.post("/optional")
    @mark
    async def create_optional(item: PathItemIn | None = None) -> PathItemIn | None:
        return item

    @router.post("/any")
    @mark
    async def create_any(value: Annotated[Any, Body()]) -> Any:
        return {"value": value if not isinstance(value, bytes) else value.decode("latin-1")}

    @router.post("/text")
    @mark
    async def create_text(value: Annotated[bytes, Body(media_type="text/plain")]) -> int:
        return len(value)

    @router.post("/raw")
    @mark
    async def create_raw(request: Request) -> int:
        return len(await request.body())

    @router.post("/unread")
    @mark
    async def create_unread() -> None: ...

    @router.post("/rows")
    @mark
    async def create_rows(request: Request) -> int:
        rows = BodyRows(request, PathItemIn)
        with rows.locate_errors():
            return len([each async for each in rows])


def build_strict_router(mark: Mark) -> APIRouter:
    router = APIRouter(prefix="/strict", route_class=StrictJSONRoute, dependencies=[PUBLIC])

    @router.post("/items")
    @mark
    async def create_strict(item: PathItemIn, note: str = "", many: Annotated[list[int], Query()] = []) -> Any:  # noqa: B006
        return {"item": item, "note": note, "many": many}

    return router


def build_idempotent_router(mark: Mark) -> APIRouter:
    router = APIRouter(prefix="/notes", route_class=StrictIdempotentRoute, dependencies=[PUBLIC])

    @router.post("", status_code=HTTPStatus.CREATED, dependencies=[note_key])
    @mark
    async def create_note(item: PathItemIn, db: DbSession, response: Response) -> dict[str, Any]:
        db.add(Note(text=item.name))
        await db.flush()
        response.headers["Location"] = "/notes/1"
        response.set_cookie("a", "1")
        return {"count": await db.scalar(select(func.count()).select_from(Note))}

    @router.post("/failing", dependencies=[note_key])
    @mark
    async def fail_note(item: PathItemIn, db: DbSession) -> Response:
        db.add(Note(text=item.name))
        await db.flush()
        if item.name in ERRORS:
            fail(item.name)
        return problem_response(int(item.name), "refused")

    return router
