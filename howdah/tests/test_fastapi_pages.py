"""Pages as response models: each item is validated and written like an item of `list[Schema]`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar
from unittest.mock import ANY
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI, Query, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, computed_field, field_validator
from sqlalchemy import select

from howdah import AsyncRepository, Database, Filter, JsonView, Page, Sort, paginate
from howdah.fastapi import DbSession, PageOut, PageParameters, ReadDbSession, list_response, page_response
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app
from howdah_tests.support.sample_models import Order, User
from howdah_tests.support.sample_rows import user_rows

PAGES = pytest.mark.parametrize("page_schema", [Page, PageOut])
ItemT = TypeVar("ItemT")


class Masked(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str

    @field_validator("email")
    @classmethod
    def _mask(cls, email: str) -> str:
        return f"***{email[email.index('@') :]}"


class Counting(PageParameters):
    count: bool = False


class UnmarkedOut(BaseModel):
    """It has no `from_attributes`, but FastAPI reads the attributes of objects."""

    name: str


class OrderOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    total_cents: int


class WithOrders(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    orders: list[OrderOut]


class Decorated(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str = Field(serialization_alias="fullName")
    nickname: str | None = None

    @computed_field
    def shouted(self) -> str:
        return self.name.upper()


@asynccontextmanager
async def client_of(database: Database, model: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that returns the same list as a page and as a list."""
    app = create_bare_app(database)
    page_options: dict[str, Any] = {
        name: ({"items": value, "next": ...} if isinstance(value, dict) else value) for name, value in options.items()
    }

    @app.get("/page", response_model=model, **page_options)
    async def page(db: DbSession, count: bool = False) -> Page[User]:
        return await paginate(db, select(User).order_by(User.email), count=count)

    [item] = model.__pydantic_generic_metadata__["args"] if hasattr(model, "model_fields") else model.__args__

    @app.get("/list", response_model=list[item], **options)  # type: ignore[valid-type]
    async def listed(db: DbSession) -> list[User]:
        return await AsyncRepository(db, User).list(select(User).order_by(User.email))

    async with asgi_client(app) as client:
        yield client


async def add_users(database: Database, number: int = 3) -> None:
    async with database.begin() as session:
        await AsyncRepository(session, User).create_many(user_rows(number))


@dataclass(frozen=True, slots=True)
class UnpreparedPage(Generic[ItemT]):
    items: list[ItemT]


async def test_control_an_ordinary_dataclass_is_written_without_validation(database: Database) -> None:
    await add_users(database)
    app = create_bare_app(database)

    @app.get("/", response_model=UnpreparedPage[Masked])
    async def read(db: DbSession) -> UnpreparedPage[User]:
        return UnpreparedPage(await AsyncRepository(db, User).list())

    @app.get("/orders", response_model=UnpreparedPage[WithOrders])
    async def read_orders(db: DbSession) -> UnpreparedPage[User]:
        return UnpreparedPage(await AsyncRepository(db, User).list())

    async with asgi_client(app) as client:
        leaking, silent = await client.get("/"), await client.get("/orders")
    assert leaking.status_code == silent.status_code == 200
    assert "***" not in leaking.text
    assert "orders" not in silent.json()["items"][0]


@PAGES
@pytest.mark.parametrize("number", [1, 3, 50])
async def test_a_masking_validator_is_applied_to_each_item(database: Database, page_schema: Any, number: int) -> None:
    await add_users(database, number)
    async with client_of(database, page_schema[Masked]) as client:
        page, listed = await client.get("/page"), await client.get("/list")
    assert page.json()["items"] == listed.json()
    assert len(listed.json()) == number
    assert all(item["email"].startswith("***@") for item in page.json()["items"])


@PAGES
async def test_a_relationship_that_is_not_loaded_is_an_error(database: Database, page_schema: Any) -> None:
    await add_users(database)
    async with client_of(database, page_schema[WithOrders]) as client:
        page, listed = await client.get("/page"), await client.get("/list")
    assert (page.status_code, page.json()) == (listed.status_code, listed.json())
    assert page.status_code == 500
    assert page.json()["type"] == "urn:howdah:problem:internal-error"


@PAGES
async def test_invalid_items_are_an_error(database: Database, page_schema: Any) -> None:
    class Wrong(BaseModel):
        name: int

    await add_users(database)
    async with client_of(database, page_schema[Wrong]) as client:
        assert (await client.get("/page")).status_code == 500


@PAGES
@pytest.mark.parametrize("schema", [Masked, UnmarkedOut, Decorated])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"response_model_exclude": {"__all__": {"name", "email"}}},
        {"response_model_include": {"__all__": {"name", "id"}}},
        {"response_model_by_alias": False},
        {"response_model_exclude_unset": True},
        {"response_model_exclude_defaults": True},
    ],
    ids=lambda options: next(iter(options), "none"),
)
async def test_items_are_written_like_those_of_a_list(
    database: Database, page_schema: Any, schema: Any, options: dict[str, Any]
) -> None:
    await add_users(database)
    async with client_of(database, page_schema[schema], **options) as client:
        page, listed = await client.get("/page"), await client.get("/list")
    assert (page.status_code, listed.status_code) == (200, 200), page.text
    assert page.json()["items"] == listed.json()


@PAGES
async def test_unset_fields_of_items_that_are_schemas_are_left_out(database: Database, page_schema: Any) -> None:
    app = create_bare_app()

    @app.get("/", response_model=page_schema[Decorated], response_model_exclude_unset=True)
    async def read() -> Page[Decorated]:
        return Page([Decorated(name="a"), Decorated(name="b", nickname="c")], None, None)

    async with asgi_client(app) as client:
        assert (await client.get("/")).json()["items"] == [
            {"fullName": "a", "shouted": "A"},
            {"fullName": "b", "nickname": "c", "shouted": "B"},
        ]


@PAGES
async def test_the_total_is_written_only_if_it_was_counted(database: Database, page_schema: Any) -> None:
    await add_users(database)
    async with client_of(database, page_schema[UnmarkedOut]) as client:
        plain, counted = await client.get("/page"), await client.get("/page", params={"count": True})
    assert plain.json().keys() == {"items", "next", "previous"}
    assert counted.json().keys() == {"items", "next", "previous", "total", "total_capped"}
    assert (counted.json()["total"], counted.json()["total_capped"]) == (3, False)


@PAGES
async def test_an_empty_page_has_no_items_and_no_cursors(database: Database, page_schema: Any) -> None:
    async with client_of(database, page_schema[Masked]) as client:
        assert (await client.get("/page")).json() == {"items": [], "next": None, "previous": None}
        assert (await client.get("/page", params={"count": True})).json()["total"] == 0


@PAGES
async def test_a_page_in_a_schema_is_validated(page_schema: Any) -> None:
    class Folder(BaseModel):
        model_config = ConfigDict(from_attributes=True)

        newest: page_schema[Masked]
        more: list[page_schema[int]]

    class Nested(BaseModel):
        folders: page_schema[page_schema[Folder]]

    user = User(id=UUID(int=1), email="ada@x", name="a")

    class Row:
        newest = Page([user], None, None)
        more = (Page([1], "next", None, total=2, total_capped=True),)

    written = Nested(folders=Page([Page([Row()], None, None)], None, None)).model_dump(mode="json")
    [folder] = written["folders"]["items"][0]["items"]
    assert folder == {
        "newest": {"items": [{"id": str(UUID(int=1)), "email": "***@x"}], "next": None, "previous": None},
        "more": [{"items": [1], "next": "next", "previous": None, "total": 2, "total_capped": True}],
    }


def test_a_page_without_an_item_schema_rejects_objects() -> None:
    adapter = TypeAdapter(Page)
    with pytest.raises(Exception, match="Unable to serialize unknown type"):
        adapter.dump_json(adapter.validate_python(Page([object()], None, None)))


def test_a_subclass_can_add_fields() -> None:
    class Ranked(PageOut[Masked]):
        best: str = "nobody"

    page = Ranked.model_validate(Page([User(id=UUID(int=1), email="ada@x", name="a")], None, None))
    assert page.model_dump()["best"] == "nobody"
    assert page.items[0].email == "***@x"


async def test_the_bytes_of_a_view_match_the_page_schema(committed_database: Database) -> None:
    await add_users(committed_database)
    app = FastAPI()
    async with JsonView(User, UnmarkedOut).open(committed_database) as view:

        @app.get("/", response_model=PageOut[UnmarkedOut])
        async def read(parameters: Annotated[Counting, Query()]) -> Any:
            return page_response(await view.page(limit=parameters.limit, count=parameters.count))

        async with asgi_client(app) as client:
            for params in ({}, {"count": True}, {"limit": 1}):
                answer = await client.get("/", params=params)
                page = PageOut[UnmarkedOut].model_validate_json(answer.content)
                assert page.model_dump(mode="json") == answer.json()


def test_page_schemas_have_stable_names_and_optional_totals() -> None:
    app = FastAPI()

    @app.get("/a", response_model=PageOut[UnmarkedOut])
    @app.get("/b", response_model=PageOut[OrderOut])
    @app.get("/c", response_model=Page[OrderOut])
    @app.get("/d", response_model=PageOut[int])
    async def read() -> None: ...

    schemas = app.openapi()["components"]["schemas"]
    assert schemas.keys() == {
        "PageOut_UnmarkedOut_",
        "PageOut_OrderOut_",
        "PageOut_int_",
        "Page_OrderOut_",
        "UnmarkedOut",
        "OrderOut",
    }
    for name in ("PageOut_OrderOut_", "Page_OrderOut_"):
        assert schemas[name].get("description") in (None, "One page of a list.")
        assert schemas[name]["required"] == ["items", "next", "previous"]
        assert schemas[name]["properties"]["items"]["items"] == {"$ref": "#/components/schemas/OrderOut"}
        assert schemas[name]["properties"].keys() == {"items", "next", "previous", "total", "total_capped"}


async def test_a_page_with_loaded_relationships_is_written(database: Database) -> None:
    async with database.begin() as session:
        user = User(email="a@x", name="a", orders=[Order(total_cents=5), Order(total_cents=7)])
        session.add(user)
    app = create_bare_app(database)

    @app.get("/", response_model=Page[WithOrders])
    async def read(db: ReadDbSession) -> Page[User]:
        return await AsyncRepository(db, User).page(load=[User.orders])

    async with asgi_client(app) as client:
        assert (await client.get("/")).json()["items"] == [{"orders": [{"total_cents": 5}, {"total_cents": 7}]}]


class NamedOut(BaseModel):
    name: str


class NameParameters(PageParameters):
    prefix: Annotated[str | None, Filter(User.name, "prefix")] = None
    sort: Annotated[Literal["name", "-name"], Sort({"name": User.name})] = "name"


async def test_a_list_response_has_the_filters_order_page_and_viewer_of_its_arguments(database: Database) -> None:
    async with database.begin() as session:
        names = ["ab", "aa", "ac", "b"]
        rows = [{"email": f"{name}@x", "name": name, "age": age} for age, name in enumerate(names)]
        await AsyncRepository(session, User).create_many(rows)
    app = create_bare_app(database)
    everyone: JsonView[User, None] = JsonView(User, NamedOut)
    older: JsonView[User, dict[str, int]] = JsonView(
        User, NamedOut, where={User: lambda user, viewer: user.age >= viewer.age}
    )

    @app.get("/users", response_model=PageOut[NamedOut])
    async def list_users(parameters: Annotated[NameParameters, Query()]) -> Response:
        async with everyone.open(database) as reader:
            return await list_response(reader, parameters)

    @app.get("/old", response_model=PageOut[NamedOut])
    async def list_old(parameters: Annotated[NameParameters, Query()]) -> Response:
        async with older.open(database) as reader:
            statement = select(User).where(User.name != "ac")
            return await list_response(reader, parameters, statement=statement, viewer={"age": 1}, count=True)

    async def get(path: str) -> tuple[list[str], dict[str, Any]]:
        body = (await client.get(path)).raise_for_status().json()
        return [item["name"] for item in body.pop("items")], body

    async with asgi_client(app) as client:
        assert (await get("/users?prefix=a&sort=-name"))[0] == ["ac", "ab", "aa"]
        first, rest = await get("/users?limit=3")
        assert first == ["aa", "ab", "ac"]
        assert await get(f"/users?limit=3&after={rest['next']}") == (["b"], {"next": None, "previous": ANY})
        assert await get("/old") == (
            ["aa", "b"],
            {"next": None, "previous": None, "total": 2, "total_capped": False},
        )
        assert (await client.get("/users?unknown=1")).status_code == 422
