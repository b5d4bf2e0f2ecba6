"""Random rows and random viewers at once: each call sees exactly the rows of its own viewer.

The oracle is written in Python. The control tests give calls the viewer of their neighbour, and the oracle notices it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, JsonView, JsonViewReader, NotFound, bulk
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Order, Seat, Status, User
from howdah_tests.support.sample_rows import make_users
from howdah_tests.support.savepoints import rollback_at_end


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class OrderOut(Out):
    id: UUID


class UserOut(Out):
    id: UUID
    orders: list[OrderOut]


class SeatOut(Out):
    row: str
    number: int


class Viewer(NamedTuple):
    user: int | None
    """The position of a user, or None for somebody who isn't logged in."""
    is_admin: bool | None
    statuses: tuple[Status, ...] | None


def order_filter(order: Any, viewer: Any) -> Any:
    return or_(viewer.is_admin, order.user_id == viewer.user_id, order.status.in_(viewer.statuses))


def seat_filter(seat: Any, viewer: Any) -> Any:
    return or_(viewer.is_admin, seat.taken_by == viewer.name, seat.number.in_(viewer.numbers))


def sees(viewer: Viewer, owner: int | None, status: Status) -> bool:
    """The oracle. NULL is equal to nothing."""
    is_owner = viewer.user is not None and viewer.user == owner
    return viewer.is_admin is True or is_owner or status in (viewer.statuses or ())


class Readers(NamedTuple):
    orders: JsonViewReader[Order, Mapping[str, Any]]
    users: JsonViewReader[User, Mapping[str, Any]]
    seats: JsonViewReader[Seat, Mapping[str, Any]]


@pytest.fixture
async def readers(database: Database) -> AsyncIterator[Readers]:
    async with (
        JsonView(Order, OrderOut, where={Order: order_filter}).open(database) as orders,
        JsonView(User, UserOut, where={Order: order_filter}).open(database) as users,
        JsonView(Seat, SeatOut, where={Seat: seat_filter}).open(database) as seats,
    ):
        yield Readers(orders, users, seats)


OWNERS = 3
VIEWERS = st.lists(
    st.builds(
        Viewer,
        st.none() | st.integers(0, OWNERS - 1),
        st.sampled_from([None, False, False, False, True]),
        st.none() | st.lists(st.sampled_from(Status), max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=5,
)
ROWS = st.lists(st.tuples(st.integers(0, OWNERS - 1), st.sampled_from(Status)), min_size=1, max_size=6)
fewer_examples = settings(
    max_examples=settings().max_examples // 10,  # an example sends eleven statements
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def find(reader: Any, key: Any, viewer: Any) -> Any:
    try:
        return json.loads(await reader.get(key, viewer=viewer))
    except NotFound:
        return None


async def find_all(reader: Any, database: Database, asked: Sequence[tuple[Any, Any]]) -> list[Any]:
    """The answers of concurrent calls, which must share one statement."""
    with assert_statements(database, 1):
        return await asyncio.gather(*(find(reader, key, viewer) for key, viewer in asked))


@pytest.mark.timeout(600)
@fewer_examples
@given(rows=ROWS, viewers=VIEWERS)
async def test_each_viewer_sees_exactly_its_rows(
    session: AsyncSession,
    database: Database,
    readers: Readers,
    rows: list[tuple[int, Status]],
    viewers: list[Viewer],
) -> None:
    async with rollback_at_end(session):
        users = await make_users(session, OWNERS)
        values = [{"user_id": users[owner], "status": status} for owner, status in rows]
        keys = (await bulk.insert_many(session, Order, values)).keys
        sent = [
            {
                "user_id": None if each.user is None else users[each.user],
                "is_admin": each.is_admin,
                "statuses": each.statuses,
            }
            for each in viewers
        ]
        wanted = [[str(key) for key, row in zip(keys, rows, strict=True) if sees(viewer, *row)] for viewer in viewers]
        asked = [(key, viewer) for key in keys for viewer in sent]
        found = await find_all(readers.orders, database, asked)
        assert [body and body["id"] for body in found] == [
            str(key) if str(key) in visible else None for key in keys for visible in wanted
        ]
        nested = await find_all(readers.users, database, [(user, viewer) for viewer in sent for user in users])
        assert [[order["id"] for order in body["orders"]] for body in nested] == [
            [id for id, (owner, _) in zip(map(str, keys), rows, strict=True) if owner == user and id in visible]
            for visible in wanted
            for user in range(OWNERS)
        ]
        for viewer, visible in zip(sent[:2], wanted, strict=False):
            assert ids(await readers.orders.get_many(keys, viewer=viewer)) == visible
            page = await readers.orders.page(select(Order), viewer=viewer, count=True)
            assert (ids(page.items), page.total) == (visible, len(visible))
            assert ids([line async for line in readers.orders.stream(viewer=viewer)]) == visible


def ids(bodies: Sequence[bytes]) -> list[str]:
    return [json.loads(body)["id"] for body in bodies]


@pytest.mark.timeout(600)
@fewer_examples
@given(rows=ROWS, viewers=VIEWERS)
async def test_each_viewer_sees_exactly_its_rows_by_keys_that_postgresql_compares(
    session: AsyncSession,
    database: Database,
    readers: Readers,
    rows: list[tuple[int, Status]],
    viewers: list[Viewer],
) -> None:
    """A seat's key is a text and a number. The user's position is its name, and a status is a number."""
    async with rollback_at_end(session):
        statuses = [*Status]
        keys = [("a" * n, statuses.index(status)) for n, (_, status) in enumerate(rows)]
        values = [
            {"row": row, "number": number, "taken_by": str(owner) if owner else None}
            for (row, number), (owner, _) in zip(keys, rows, strict=True)
        ]
        await bulk.insert_many(session, Seat, values)
        sent = [
            {
                "name": None if each.user is None else str(each.user),
                "is_admin": each.is_admin,
                "numbers": None if each.statuses is None else {statuses.index(status) for status in each.statuses},
            }
            for each in viewers
        ]
        asked = [(key, viewer) for key in keys for viewer in sent]
        found = await find_all(readers.seats, database, asked)
        # nobody has taken the seats of the first owner
        wanted = [sees(viewer, owner or None, status) for owner, status in rows for viewer in viewers]
        assert [body is not None for body in found] == wanted
        many = await readers.seats.get_many([*keys, *keys], viewer=sent[0])
        assert [json.loads(body)["row"] for body in many] == [
            row for (row, _), visible in zip(keys, wanted[:: len(viewers)], strict=True) if visible
        ]


@pytest.mark.parametrize("fault", [None, "the key without the viewer", "the neighbour's viewer"])
async def test_control_the_oracle_notices_the_viewer_of_a_neighbour(
    session: AsyncSession, database: Database, readers: Readers, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    reader: Any = readers.orders
    if fault == "the key without the viewer":
        monkeypatch.setattr(reader._coalescer, "_key", lambda request: request[0])
    elif fault is not None:
        bind = reader._by_viewer.bind
        monkeypatch.setattr(reader._by_viewer, "bind", lambda keys, viewers: bind(keys, [*viewers[1:], viewers[0]]))
    users = await make_users(session, 2)
    keys = (await bulk.insert_many(session, Order, [{"user_id": user} for user in users])).keys
    asked = [(key, {"user_id": user, "is_admin": False, "statuses": []}) for key in keys for user in users]
    found = [body is not None for body in await find_all(reader, database, asked)]
    assert (found == [True, False, False, True]) is (fault is None)
