"""Declared filters as the query parameters of a route."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import select

from howdah import Database, Page, paginate
from howdah.fastapi import PageOut, PageParameters, ReadDbSession, StrictJSONRoute
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app
from howdah_tests.support.filter_models import BookFilters, BookPageParameters, Opus, create_books


class BookOut(BaseModel):
    id: int
    title: str


class Aliased(PageParameters):
    kind: str | None = Field(default=None, alias="type")
    tags: list[str] | None = None


def create_app(database: Database | None = None) -> Any:
    app = create_bare_app(database)
    router = APIRouter(route_class=StrictJSONRoute)

    @router.get("/books", response_model=PageOut[BookOut])
    async def list_books(parameters: Annotated[BookPageParameters, Query()], db: ReadDbSession) -> Page[Opus]:
        return await paginate(db, parameters.apply(select(Opus)), **parameters.page_arguments)

    @router.get("/aliased")
    async def aliased(parameters: Annotated[Aliased, Query()]) -> None: ...

    @router.get("/separate")
    async def separate(one: int | None = None, many: Annotated[list[int] | None, Query()] = None) -> None: ...

    app.include_router(router, prefix="/v1")
    return app


async def test_the_parameters_of_a_route_filter_and_sort_its_pages(database: Database) -> None:
    async with database.begin() as session:
        rows = await create_books(session)
    expected = sorted(row["id"] for row in rows if row["pages"] in (200, 300) and row["genre"] is not None)
    found: list[int] = []
    parameters: list[Any] = [
        *(("genres", genre) for genre in ("novel", "poetry", "science")),
        *(("page_counts", number) for number in ("200", "300")),
        *(("sort", name) for name in ("-pages", "title")),
        ("limit", "2"),
    ]
    after: list[Any] = []
    async with asgi_client(create_app(database)) as client:
        while True:
            response = await client.get("/v1/books", params=httpx.QueryParams(parameters + after))
            assert response.status_code == 200
            found += [item["id"] for item in response.json()["items"]]
            if response.json()["next"] is None:
                break
            after = [("after", response.json()["next"])]
        other = await client.get("/v1/books", params=httpx.QueryParams([*parameters[1:], *after]))
    assert sorted(found) == expected
    assert len(found) > 2
    assert (other.status_code, other.json()["type"]) == (400, "urn:howdah:problem:invalid-cursor")


WRONG = [
    ("pages=3000000000", 422, "integers from -2147483648 to 2147483647"),
    ("title=%00", 422, "U+0000"),
    ("genre=drama", 422, "'novel', 'poetry' or 'science'"),
    ("genres=novel&genres=drama", 422, "'novel', 'poetry' or 'science'"),
    ("lent_from=2026-01-01T00:00:00", 422, "the offset is missing"),
    ("sort=id", 422, "Input should be"),
    ("sort=title&sort=-title", 422, "once"),
    ("sort=title;drop table books", 422, "Input should be"),
    ("colour=red", 422, "Extra inputs are not permitted"),
    ("title__like=x", 422, "Extra inputs are not permitted"),
    ("title=a&title=b", 400, "the parameter title was sent several times"),
    ("limit=1&limit=2", 400, "the parameter limit was sent several times"),
    ("title=%ff", 200, ""),  # read as U+FFFD, which is a character like any other
]


async def test_a_wrong_parameter_is_a_problem_that_names_it(database: Database) -> None:
    async with database.begin() as session:
        await create_books(session)
    async with asgi_client(create_app(database)) as client:
        for query, status, fault in WRONG:
            response = await client.get(f"/v1/books?{query}")
            assert response.status_code == status, query
            assert fault in response.text, query
            if status == 422:
                assert response.json()["errors"][0]["loc"][:2] == ["query", query.split("=")[0]]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("aliased?type=a&type=b", 400),
        ("aliased?tags=a&tags=b", 200),
        ("separate?one=1&one=2", 400),
        ("separate?many=1&many=2", 200),
        ("separate?many=1&one=1", 200),
    ],
)
async def test_only_a_parameter_with_several_values_can_be_repeated(query: str, status: int) -> None:
    async with asgi_client(create_app()) as client:
        response = await client.get(f"/v1/{query}")
    assert response.status_code == status
    if status == 400:
        assert response.json()["type"] == "urn:howdah:problem:repeated-parameter"


def test_the_description_has_each_filter_with_its_meaning_and_its_values() -> None:
    [operation] = create_app().openapi()["paths"]["/v1/books"].values()
    parameters = {each["name"]: each for each in operation["parameters"]}
    assert {each["in"] for each in parameters.values()} == {"query"}
    assert parameters.keys() == BookFilters.model_fields.keys() | {"sort", "limit", "after", "before"}
    assert parameters["title_prefix"]["description"] == "The text begins with this"
    assert parameters["lent_from"]["description"] == "At this time or later"
    assert parameters["title_any_case"]["description"] == "Equal to this value, ignoring case"
    assert parameters["sort"]["description"] == "The order; `-` means descending"
    assert set(parameters["sort"]["schema"]["items"]["enum"]) >= {"title", "-title", "lent"}
    assert parameters["sort"]["schema"]["default"] == ["title"]
    assert {"type": "string", "format": "uuid"} in parameters["code"]["schema"]["anyOf"]
    assert not any(each.get("required") for each in parameters.values())


def test_a_description_of_the_field_itself_stays() -> None:
    class Parameters(BookFilters):
        pages: Annotated[int | None, *BookFilters.model_fields["pages"].metadata] = Field(None, description="Own text")

    assert Parameters.model_fields["pages"].description == "Own text"
    assert Parameters.model_json_schema()["properties"]["pages"]["description"] == "Own text"
    assert BookFilters.model_fields["pages"].description == "Equal to this value"
