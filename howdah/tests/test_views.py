"""JsonView: the JSON that PostgreSQL writes is equal to that of the Pydantic model and the object."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from fastapi import FastAPI, Request, Response
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, selectinload

from howdah import AsyncRepository, Database, InvalidValue, JsonView, NotFound, bulk
from howdah.fastapi import add_error_handlers, json_response, page_response
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Album, Order, Seat, Specimen, Status, Track, User
from howdah_tests.support.sample_rows import make_users, user_rows
from howdah_tests.support.view_schemas import OrderOut, Out, SpecimenOut, UserOut, assert_same

SPECIMENS: list[dict[str, Any]] = [
    {"id": 0},
    {
        "id": 1,
        "whole": -(2**30),
        "big": 2**63 - 1,
        "words": 'Straße\n\t"\\/\x01\x7f\u2028 🐘 </script>',
        "code": "ab",
        "moment": datetime(1, 1, 1, 0, 0, 1, tzinfo=UTC),
        "day": date(9999, 12, 31),
        "hour": time(23, 59, 59, 999999),
        "exact": Decimal("-12345678901234567890.12345678900"),
        "rounded": 0.1,
        "real": float("-inf"),
        "state": Status.PAID,
        "place": Status.PENDING,
        "token": UUID(int=7),
        "flag": False,
        "raw": "ä".encode(),
        "span": timedelta(days=-1, microseconds=1),
        "anything": {"a": [1, None, 1.5, "x"], "b": {}},
        "nothing": [],
        "plain_json": {"b": 1, "a": 2},
        "tags": ["", "a,b", '"', "NULL"],
        "notes": "",
    },
    {
        "id": 2,
        "moment": datetime(9999, 12, 31, 23, 59, 59, 999998, tzinfo=UTC),
        "hour": time(0),
        "exact": Decimal("0.10"),
        "real": 1e-300,
        "span": timedelta(days=400, seconds=7),
        "tags": [],
        "anything": "text",
        "plain_json": [None],
    },
]


async def test_values_of_every_type_are_read_back_unchanged(session: AsyncSession, database: Database) -> None:
    await bulk.insert_many(session, Specimen, SPECIMENS)
    await session.commit()
    async with JsonView(Specimen, SpecimenOut).open(database) as view:
        for row in await session.scalars(select(Specimen)):
            await session.refresh(row, ["notes"])
            assert_same(await view.get(row.id), SpecimenOut, row)


async def test_infinite_times_become_the_least_and_the_greatest_time(session: AsyncSession, database: Database) -> None:
    await session.execute(
        text(
            "INSERT INTO specimens (id, moment, day) VALUES (1, 'infinity', 'infinity'), (2, '-infinity', '-infinity')"
        )
    )
    await session.commit()
    async with JsonView(Specimen, SpecimenOut).open(database) as view:
        greatest, least = (SpecimenOut.model_validate_json(body) for body in await view.get_many([1, 2]))
    assert (greatest.moment, greatest.day) == (datetime.max.replace(tzinfo=UTC), date.max)
    assert (least.moment, least.day) == (datetime.min.replace(tzinfo=UTC), date.min)


async def test_relationships_are_nested_in_their_order(session: AsyncSession, database: Database) -> None:
    users = await make_users(session, 3)
    rows = [
        {"user_id": users[n % 2], "total_cents": n, "weight": Decimal(n) / 8, "details": {"n": n}} for n in range(7)
    ]
    await bulk.insert_many(session, Order, rows)
    await session.commit()
    async with JsonView(User, UserOut).open(database) as view:
        bodies = await view.get_many(reversed(users))
        found = await AsyncRepository(session, User).get_by_ids(reversed(users), load=[User.orders])
        for body, user in zip(bodies, found, strict=True):
            assert_same(body, UserOut, user)
        assert [len(json.loads(body)["orders"]) for body in bodies] == [0, 3, 4]


class TrackOut(Out):
    position: int
    album: TitleOut


class TitleOut(Out):
    title: str | None


class AlbumOut(Out):
    id: UUID
    tracks: list[TrackOut]
    first_tracks: list[TrackOut]


async def test_to_one_relationships_in_to_many_ones_and_view_only_relationships_are_nested(
    session: AsyncSession, database: Database
) -> None:
    albums = AsyncRepository(session, Album)
    album = await albums.create(title="A", tracks=[Track(position=n) for n in (2, 1, 1)])
    await session.commit()
    load = [selectinload(Album.tracks).selectinload(Track.album), selectinload(Album.first_tracks)]
    row = await albums.get_one(album.id, load=load)
    async with JsonView(Album, AlbumOut).open(database) as view:
        body = json.loads(await view.get(album.id))
    assert [track["position"] for track in body["first_tracks"]] == [1, 1]
    assert [track["album"] for track in body["tracks"]] == [{"title": "A"}] * 3
    row.tracks.sort(key=lambda track: track.id)
    row.first_tracks.sort(key=lambda track: track.id)
    assert AlbumOut.model_validate(body) == AlbumOut.model_validate(row)


class Inner(BaseModel):
    size: int = Field(7, alias="Size")
    tags: list[str] = []
    note: str | None = None


class Details(BaseModel):
    colour: str
    inner: Inner | None = None
    inners: list[Inner] = []
    anything: dict[str, list[int]] = {}


class DetailedOut(Out):
    id: UUID
    details: Details | None


@pytest.mark.parametrize(
    "details",
    [
        None,
        {"colour": "red"},
        {"colour": "blue", "superfluous": 1, "inner": {"note": "x", "Size": 3}, "inners": [{"Size": 1}, {}]},
        {"anything": {"a": [1, 2]}, "colour": "", "inners": [], "inner": None},
    ],
)
async def test_a_model_of_a_json_column_has_its_fields_and_its_defaults(
    session: AsyncSession, database: Database, details: Any
) -> None:
    user = (await make_users(session, 1))[0]
    (key,) = (await bulk.insert_many(session, Order, [{"user_id": user, "details": details}])).keys
    await session.commit()
    async with JsonView(Order, DetailedOut).open(database) as view:
        assert_same(await view.get(key), DetailedOut, await session.get(Order, key))


class AliasedOut(BaseModel):
    model_config = ConfigDict(from_attributes=True, validate_by_name=True)

    name: str = Field(serialization_alias="Full name")
    email: str = Field(validation_alias="email", serialization_alias='e\'mail:"%s"')
    kept: str = Field(alias="nickname")
    age: int | None = Field(exclude=True)


async def test_aliases_of_validation_and_serialization_are_applied(session: AsyncSession, database: Database) -> None:
    (key,) = await make_users(session, 1)
    await session.commit()
    async with JsonView(User, AliasedOut).open(database) as view:
        body = json.loads(await view.get(key))
    user = await session.get(User, key)
    assert list(body.items()) == list(
        json.loads(AliasedOut.model_validate(user).model_dump_json(by_alias=True)).items()
    )


async def test_row_filters_apply_to_every_read(session: AsyncSession, database: Database) -> None:
    users = await make_users(session, 3)
    await bulk.insert_many(session, Order, [{"user_id": users[0], "total_cents": n} for n in range(5)])
    await session.commit()
    where = {User: lambda user: user.age != 1, Order: lambda order: order.total_cents > 2}
    async with JsonView(User, UserOut, where=where).open(database) as view:
        with pytest.raises(NotFound):
            await view.get(users[1])
        assert len(json.loads(await view.get(users[0]))["orders"]) == 2
        assert len(await view.get_many(users)) == 2
        page = await view.page(limit=10, count=True)
        assert (len(page.items), page.total) == (2, 2)
        assert len([line async for line in view.stream()]) == 2
        assert len((await view.page(select(User).where(User.age < 2), limit=10)).items) == 1


async def test_concurrent_reads_share_a_statement_and_each_gets_its_own_row(
    session: AsyncSession, database: Database
) -> None:
    users = await make_users(session, 20)
    await session.commit()
    async with JsonView(User, UserOut).open(database) as view:
        with assert_statements(session, 1):
            bodies = await asyncio.gather(*(view.get(key) for key in [*users, *users]))
        assert [json.loads(body)["id"] for body in bodies] == [str(key) for key in [*users, *users]]
        missing = uuid4()
        results = await asyncio.gather(view.get(missing), view.get(str(users[3])), return_exceptions=True)
        assert isinstance(results[0], NotFound)
        assert results[0].keys == [missing]
        assert json.loads(results[1])["email"] == "user3@example.org"  # type: ignore[arg-type]
        with pytest.raises(InvalidValue, match="isn't a UUID"):
            await view.get("no key")
        assert await view.get_many([]) == []


class SeatOut(Out):
    row: str
    number: int


async def test_composite_keys_can_be_read(session: AsyncSession, database: Database) -> None:
    await bulk.insert_many(session, Seat, [{"row": row, "number": n} for row in "AB" for n in range(3)])
    await session.commit()
    async with JsonView(Seat, SeatOut).open(database) as view:
        assert await view.get(["B", 2]) == b'{"row":"B","number":2}'
        assert await view.get_many([]) == []
        assert await view.get_many([("A", 1), ("C", 1), ("A", 0)]) == [
            b'{"row":"A","number":1}',
            b'{"row":"A","number":0}',
        ]


async def test_pages_are_the_same_as_those_of_the_repository(session: AsyncSession, database: Database) -> None:
    await bulk.insert_many(session, User, user_rows(25))
    await session.commit()
    list_query = select(User).where(User.age > 2).order_by(User.name.desc())
    async with JsonView(User, UserOut).open(database) as view:
        cursor, seen = None, []
        while True:
            page = await view.page(list_query, limit=7, after=cursor, count=True)
            other = await AsyncRepository(session, User).page(list_query, limit=7, after=cursor, load=[User.orders])
            for body, user in zip(page.items, other.items, strict=True):
                assert_same(body, UserOut, user)
            assert (page.next, page.previous, page.total) == (other.next, other.previous, 22)
            seen += page.items
            cursor = page.next
            if cursor is None:
                break
        assert len(seen) == 22
        assert [line async for line in view.stream(list_query, batch=4)] == [body + b"\n" for body in seen]


async def test_a_page_can_be_a_response(session: AsyncSession, database: Database) -> None:
    await bulk.insert_many(session, User, user_rows(3))
    await session.commit()
    async with JsonView(User, AliasedOut).open(database) as view:
        first = await view.page(limit=2)
        answer = page_response(first)
        assert answer.media_type == "application/json"
        assert json.loads(bytes(answer.body)) == {
            "items": [json.loads(body) for body in first.items],
            "next": first.next,
            "previous": None,
        }
        counted = json.loads(bytes(page_response(await view.page(limit=2, after=first.next, count=2)).body))
        assert (len(counted["items"]), counted["next"], counted["total"], counted["total_capped"]) == (1, None, 2, True)
        assert json.loads(bytes(page_response(await view.page(select(User).where(User.age < 0))).body))["items"] == []


async def test_a_list_query_of_another_model_is_rejected(session: AsyncSession, database: Database) -> None:
    """Its rows would be joined to all rows of the view."""
    async with JsonView(User, AliasedOut).open(database) as view:
        union: Any = select(User).union(select(User))
        text_query: Any = select(User).from_statement(text("SELECT * FROM users"))
        for wrong in (select(aliased(User)), select(Order), select(User.id), union, text_query):
            with pytest.raises(ValueError, match=r"select\("):
                await view.page(wrong)
            with pytest.raises(ValueError, match=r"select\("):
                await anext(view.stream(wrong))


async def test_a_stream_of_lines_can_be_closed_early(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        await make_users(session, 50)
    async with JsonView(User, UserOut).open(committed_database) as view:
        lines = view.stream(batch=5)
        assert isinstance(lines, AsyncIterator)
        assert orjson.loads(await anext(lines))["email"] == "user0@example.org"
        await lines.aclose()  # type: ignore[attr-defined]
    assert committed_database.pool_status().in_use == 0


async def test_a_migration_between_two_reads_causes_no_error(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        (key,) = await make_users(session, 1)
    async with JsonView(User, AliasedOut).open(committed_database) as view:
        before = await view.get(key)
        async with committed_database.begin() as session:
            await session.execute(text("ALTER TABLE users ALTER name TYPE text"))
        assert await view.get(key) == before


async def test_a_view_reads_committed_rows_and_holds_no_connection(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        (key,) = await make_users(session, 1)
    async with JsonView(User, AliasedOut).open(committed_database) as view, committed_database.begin() as session:
        user = await session.get_one(User, key)
        user.name = "New"
        await session.flush()
        assert b"New" not in bytes(await view.get(key))
        await session.commit()
        assert b"New" in bytes(await view.get(key))
    assert committed_database.pool_status().in_use == 0


async def test_an_entity_tag_depends_on_the_bytes_and_begins_with_the_version(
    session: AsyncSession, database: Database
) -> None:
    (user,) = await make_users(session, 1)
    (key,) = (await bulk.insert_many(session, Order, [{"user_id": user}])).keys
    await session.commit()
    async with JsonView(Order, OrderOut).open(database) as orders, JsonView(User, UserOut).open(database) as users:
        before, with_orders = await orders.get(key), await users.get(user)
        assert before.etag == (await orders.get(key)).etag
        assert before.etag.startswith('"1-')
        assert "-" not in with_orders.etag
        await bulk.update_by_key(session, Order, [key], {"total_cents": 5})
        await session.commit()
        assert (await orders.get(key)).etag.startswith('"2-')
        assert (await users.get(user)).etag != with_orders.etag, "nested rows change the entity tag"


async def test_a_route_responds_with_the_bytes_or_with_304(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        (key,) = await make_users(session, 1)
    app = FastAPI()
    add_error_handlers(app)
    async with JsonView(User, UserOut).open(committed_database) as users:

        @app.get("/users/{user_id}", response_model=UserOut)
        async def get_user(user_id: UUID, request: Request) -> Response:
            return json_response(await users.get(user_id), request)

        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            first = await client.get(f"/users/{key}")
            assert (first.status_code, first.headers["content-type"]) == (200, "application/json")
            assert UserOut.model_validate(first.json()).id == key
            etag = first.headers["etag"]
            for known, status in ((etag, 304), (f'"x", W/{etag}', 304), ("*", 304), ('"x"', 200)):
                again = await client.get(f"/users/{key}", headers={"If-None-Match": known})
                assert (again.status_code, again.headers["etag"]) == (status, etag)
                assert (again.content == b"") is (status == 304)
            twice = await client.get(f"/users/{key}", headers=[("If-None-Match", '"x"'), ("If-None-Match", etag)])
            assert twice.status_code == 304
            assert (await client.get(f"/users/{uuid4()}")).status_code == 404
            schema = (await client.get("/openapi.json")).json()["paths"]["/users/{user_id}"]["get"]["responses"]["200"]
            assert schema["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/UserOut"}
