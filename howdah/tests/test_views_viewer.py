"""A view with a viewer: each call sees the rows of its own viewer, also in a statement that several calls share."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Boolean, Text, any_, case, cast, exists, func, not_, or_, select, true
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, InvalidCursor, InvalidValue, JsonView, NotFound, bulk
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Order, Seat, Status, User
from howdah_tests.support.sample_rows import make_users


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class OrderOut(Out):
    id: UUID
    total_cents: int


class UserOut(Out):
    id: UUID
    orders: list[OrderOut]


@dataclass
class Viewer:
    user_id: UUID | str | None = None
    is_admin: bool | None = False


OrderView = JsonView(Order, OrderOut, where={Order: lambda order, viewer: order.user_id == viewer.user_id})


@pytest.fixture
async def owners(session: AsyncSession) -> dict[UUID, UUID]:
    """The owner of each order: four users with three orders each."""
    users = await make_users(session, 4)
    rows = [{"user_id": user, "total_cents": n} for n in range(3) for user in users]
    keys = (await bulk.insert_many(session, Order, rows)).keys
    await session.commit()
    return dict(zip(keys, users * 3, strict=True))


async def try_get(reader: Any, key: Any, viewer: Any) -> Any:
    """The id of the row, None if there is none, or the type of any other error."""
    try:
        return json.loads(await reader.get(key, viewer=viewer))["id"]
    except NotFound:
        return None
    except Exception as error:
        return type(error)


async def test_calls_of_different_viewers_share_one_statement(database: Database, owners: dict[UUID, UUID]) -> None:
    users = sorted({*owners.values()})
    asked = [(key, user) for key in owners for user in users]
    async with OrderView.open(database) as orders:
        with assert_statements(database, 1):
            found = await asyncio.gather(*(try_get(orders, key, Viewer(user)) for key, user in asked))
        assert orders.status().items == len(asked)
    assert found == [str(key) if owners[key] == user else None for key, user in asked]


async def test_the_same_key_and_viewer_are_sent_once(database: Database, owners: dict[UUID, UUID]) -> None:
    (key, owner), *_ = owners.items()
    async with OrderView.open(database) as orders:
        viewers = [Viewer(owner), Viewer(str(owner)), {"user_id": owner}, SimpleNamespace(user_id=owner)]
        found = await asyncio.gather(*(try_get(orders, key, viewer) for viewer in viewers))
        assert orders.status().items == 1
    assert found == [str(key)] * 4


async def test_get_many_page_and_stream_see_only_the_rows_of_the_viewer(
    database: Database, owners: dict[UUID, UUID]
) -> None:
    async with OrderView.open(database) as orders:
        for user in {*owners.values()}:
            own = sorted(str(key) for key, owner in owners.items() if owner == user)
            viewer = Viewer(user)
            with assert_statements(database, 1):
                assert sorted(json.loads(each)["id"] for each in await orders.get_many(owners, viewer=viewer)) == own
            page = await orders.page(viewer=viewer, count=True)
            assert ([json.loads(each)["id"] for each in page.items], page.total) == (own, 3)
            assert [json.loads(each)["id"] async for each in orders.stream(viewer=viewer)] == own
            page = await orders.page(select(Order).where(Order.total_cents > 0), viewer=viewer, count=True)
            assert page.total == 2


async def test_the_cursor_of_one_viewer_is_invalid_for_another(database: Database, owners: dict[UUID, UUID]) -> None:
    first, second, *_ = {*owners.values()}
    async with OrderView.open(database) as orders:
        page = await orders.page(viewer=Viewer(first), limit=2)
        assert page.next is not None
        rest = await orders.page(viewer=Viewer(str(first)), limit=2, after=page.next)
        assert len(rest.items) == 1
        with pytest.raises(InvalidCursor):
            await orders.page(viewer=Viewer(second), limit=2, after=page.next)


async def test_nested_rows_are_those_of_the_viewer(database: Database, owners: dict[UUID, UUID]) -> None:
    users = sorted({*owners.values()})
    view = JsonView(User, UserOut, where={Order: lambda order, viewer: order.user_id == viewer.user_id})
    async with view.open(database) as reader:
        bodies = await asyncio.gather(*(reader.get(user, viewer=Viewer(viewer)) for user in users for viewer in users))
        counts = [len(json.loads(body)["orders"]) for body in bodies]
        assert counts == [3 if user == viewer else 0 for user in users for viewer in users]
        many = await reader.get_many(users, viewer=Viewer(users[1]))
        assert [len(json.loads(body)["orders"]) for body in many] == [0, 3, 0, 0]
        lines = [json.loads(line) async for line in reader.stream(viewer=Viewer(users[2]))]
        assert [len(line["orders"]) for line in lines] == [0, 0, 3, 0]


async def test_an_attribute_that_is_none_is_equal_to_nothing(session: AsyncSession, database: Database) -> None:
    """Not even to NULL: a comparison with None in Python would have become IS NULL."""
    await bulk.insert_many(
        session, Seat, [{"row": "a", "number": n, "taken_by": by} for n, by in enumerate([None, "x"])]
    )
    await session.commit()
    keys = [("a", 0), ("a", 1)]
    filters: list[Any] = [
        lambda seat, viewer: seat.taken_by == viewer.name,
        lambda seat, viewer: viewer.name == seat.taken_by,
        lambda seat, viewer: seat.taken_by != viewer.name,
        lambda seat, viewer: not_(seat.taken_by == viewer.name),
        lambda seat, viewer: seat.taken_by.in_(viewer.names),
        lambda seat, viewer: seat.taken_by.not_in(viewer.names),
        lambda seat, viewer: seat.taken_by == any_(viewer.names),
        lambda seat, viewer: viewer.is_admin,
        lambda seat, viewer: ~viewer.is_admin,
    ]
    nobody = {"name": None, "names": None, "is_admin": None}
    for row_filter in filters:
        async with JsonView(Seat, SeatOut, where={Seat: row_filter}).open(database) as seats:
            pairs = [(key, viewer) for key in keys for viewer in (nobody, nobody | {"name": "y", "names": []})]
            found = await asyncio.gather(*(try_get_seat(seats, *pair) for pair in pairs))
            assert [found[0], found[2]] == [None, None]
            assert await seats.get_many(keys, viewer=nobody) == []
            assert (await seats.page(viewer=nobody)).items == []


class SeatOut(Out):
    row: str
    number: int


async def try_get_seat(reader: Any, key: Any, viewer: Any) -> Any:
    try:
        return json.loads(await reader.get(key, viewer=viewer))
    except NotFound:
        return None


# Each filter, and the values of a viewer that sees exactly the first order.
TYPED: dict[str, tuple[Any, Any]] = {
    "a comparison": (lambda order, viewer: order.total_cents < viewer.bound, {"bound": 1}),
    "a comparison, the other way round": (lambda order, viewer: viewer.bound > order.total_cents, {"bound": 1}),
    "in_": (lambda order, viewer: order.total_cents.in_(viewer.totals), {"totals": [0, -5]}),
    "not_in": (lambda order, viewer: order.total_cents.not_in(viewer.totals), {"totals": {*range(1, 20)}}),
    "any_": (lambda order, viewer: order.total_cents == any_(viewer.totals), {"totals": (0, None)}),
    "or_ with a boolean": (
        lambda order, viewer: or_(viewer.is_admin, order.total_cents == viewer.total),
        {"is_admin": False, "total": 0},
    ),
    "a negated boolean": (
        lambda order, viewer: or_(~viewer.is_guest, order.total_cents == 0),
        {"is_guest": True},
    ),
    "a role": (
        lambda order, viewer: or_(viewer.role == "admin", order.total_cents == 0),
        {"role": "guest"},
    ),
    "a role in a list": (
        lambda order, viewer: or_(viewer.role.in_(["admin", "owner"]), order.total_cents == 0),
        {"role": "guest"},
    ),
    "is_(True)": (lambda order, viewer: or_(viewer.is_admin.is_(True), order.total_cents == 0), {"is_admin": None}),
    "a cast": (lambda order, viewer: order.total_cents == func.length(cast(viewer.name, Text)), {"name": ""}),
    "a case": (
        lambda order, viewer: case((cast(viewer.is_admin, Boolean), true()), else_=order.total_cents == 0),
        {"is_admin": False},
    ),
    "an enum": (lambda order, viewer: order.status == viewer.status, {"status": Status.PAID}),
    "a subquery": (
        lambda order, viewer: exists(
            select(User.id).where(User.id == order.user_id, User.name == viewer.name, order.total_cents == 0)
        ),
        {"name": "User 0"},
    ),
    "has()": (
        lambda order, viewer: order.user.has(User.name.in_(viewer.names)) & (order.total_cents == viewer.total),
        {"names": ["User 0"], "total": 0},
    ),
    "an integer that is a whole Decimal": (lambda order, viewer: order.total_cents == viewer.total, {"total": 0.0}),
}


@pytest.mark.parametrize(("row_filter", "values"), TYPED.values(), ids=TYPED.keys())
async def test_a_value_has_the_type_that_it_is_compared_with(
    session: AsyncSession, database: Database, row_filter: Any, values: Any
) -> None:
    (user,) = await make_users(session, 1)
    rows = [{"user_id": user, "total_cents": n, "status": "pending" if n else "paid"} for n in range(4)]
    keys = (await bulk.insert_many(session, Order, rows)).keys
    await session.commit()
    only_first = [str(keys[0]), None, None, None]
    async with JsonView(Order, OrderOut, where={Order: row_filter}).open(database) as orders:
        # the second viewer of the batch has no values at all
        nobody = dict.fromkeys(values)
        found = await asyncio.gather(*(try_get(orders, key, who) for key in keys for who in (values, nobody)))
        assert found[::2] == only_first
        assert [await try_get(orders, key, values) for key in keys] == only_first
        assert [json.loads(body)["id"] for body in await orders.get_many(keys, viewer=values)] == only_first[:1]
        assert [json.loads(body)["id"] for body in (await orders.page(viewer=values)).items] == only_first[:1]
        assert [json.loads(line)["id"] async for line in orders.stream(viewer=values)] == only_first[:1]
    nested = JsonView(User, UserOut, where={Order: row_filter})
    async with nested.open(database) as users:
        seen, _ = await asyncio.gather(users.get(user, viewer=values), users.get(user, viewer=nobody))
        assert [order["id"] for order in json.loads(seen)["orders"]] == only_first[:1]


async def test_a_view_with_a_viewer_refuses_a_call_without_one(database: Database) -> None:
    with assert_statements(database, 0):
        async with OrderView.open(database) as orders:
            for call in (orders.get(UUID(int=1)), orders.get_many([]), orders.page()):
                with pytest.raises(TypeError, match=r"needs a viewer \(with user_id\): pass viewer="):
                    await call
            with pytest.raises(TypeError, match=r"needs a viewer \(with user_id\): pass viewer="):
                orders.stream()


async def test_a_view_without_a_viewer_refuses_one(database: Database) -> None:
    with assert_statements(database, 0):
        async with JsonView(Order, OrderOut).open(database) as orders:
            viewer: Any = Viewer()
            for call in (
                orders.get(UUID(int=1), viewer=viewer),
                orders.get_many([], viewer=viewer),
                orders.page(viewer=viewer),
            ):
                with pytest.raises(TypeError, match="has no viewer"):
                    await call
            with pytest.raises(TypeError, match="has no viewer"):
                orders.stream(viewer=viewer)


async def test_a_stream_has_the_rows_of_the_viewer_of_its_call(database: Database, owners: dict[UUID, UUID]) -> None:
    """A response is sent after the route has returned. The viewer may be another one by then."""
    first, second, *_ = sorted({*owners.values()})
    viewer = Viewer(first)
    async with OrderView.open(database) as orders:
        lines = orders.stream(viewer=viewer)
        viewer.user_id = second
        assert [owners[UUID(json.loads(line)["id"])] async for line in lines] == [first] * 3


async def test_a_wrong_viewer_fails_only_its_own_call(database: Database, owners: dict[UUID, UUID]) -> None:
    (key, owner), *_ = owners.items()
    wrong: list[tuple[Any, type[Exception]]] = [
        (Viewer("nobody"), InvalidValue),
        (Viewer(5), InvalidValue),  # type: ignore[arg-type]
        (Viewer(True), InvalidValue),  # type: ignore[arg-type]
        (object(), TypeError),
        ({}, TypeError),
        (None, TypeError),
    ]
    async with OrderView.open(database) as orders:
        with assert_statements(database, 1):
            found = await asyncio.gather(
                *(try_get(orders, key, viewer) for viewer, _ in wrong), try_get(orders, key, Viewer(owner))
            )
        assert orders.status().items == 1
    assert found == [*(error for _, error in wrong), str(key)]


async def test_two_views_that_differ_only_in_the_attribute_have_different_statements(
    database: Database, owners: dict[UUID, UUID]
) -> None:
    """SQLAlchemy caches a statement's text by the structure of the statement."""

    def make_view(name: str) -> JsonView[Order, dict[str, Any]]:
        def row_filter(order: Any, viewer: Any) -> Any:
            return (order.user_id == getattr(viewer, name)) | (
                (order.user_id == viewer.other) & (order.total_cents < 0)
            )

        return JsonView(Order, OrderOut, where={Order: row_filter})

    first, second, *_ = sorted({*owners.values()})
    for _ in range(2):
        for name, visible in (("user_id", first), ("other", second), ("user_id", first)):
            async with make_view(name).open(database) as orders:
                viewers = [{"user_id": first, "other": second}, {"user_id": None, "other": None}]
                found = await asyncio.gather(*(try_get(orders, key, who) for key in owners for who in viewers))
                assert found[::2] == [str(key) if owner == visible else None for key, owner in owners.items()]
                assert {*found[1::2]} == {None}


async def test_an_own_select_needs_the_parameters_of_a_viewer(session: AsyncSession, owners: dict[UUID, UUID]) -> None:
    (key, owner), *_ = owners.items()
    statement = select(OrderView.body).where(*OrderView.criteria, Order.total_cents == 0)
    assert json.loads((await session.execute(statement, OrderView.parameters(Viewer(owner)))).scalar_one())[
        "id"
    ] == str(key)
    for incomplete in (statement, select(OrderView.body), select(Order).where(*OrderView.criteria)):
        with pytest.raises(StatementError, match="A value is required for bind parameter 'howdah_viewer_user_id'"):
            await session.execute(incomplete)


async def test_the_body_of_a_hidden_row_is_null_in_an_own_select(
    session: AsyncSession, owners: dict[UUID, UUID]
) -> None:
    """Also if the statement lacks the criteria."""
    for viewer in (Viewer(next(iter(owners.values()))), Viewer(None)):
        rows = await session.execute(select(Order.id, OrderView.body), OrderView.parameters(viewer))
        assert {id: body is not None for id, body in rows} == {
            id: owner == viewer.user_id for id, owner in owners.items()
        }
