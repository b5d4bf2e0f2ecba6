"""The statement for several viewers: its plan, and its direct way to the driver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import event, or_, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, JsonView, NotFound, bulk
from howdah._connections.prepared import _Compiled
from howdah_tests.support.sample_models import Order, Seat, User
from howdah_tests.support.sample_rows import make_users


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class OrderOut(Out):
    id: UUID
    total_cents: int


class UserOut(Out):
    id: UUID
    orders: list[OrderOut]


class SeatOut(Out):
    row: str
    number: int


def order_filter(order: Any, viewer: Any) -> Any:
    return or_(order.user_id == viewer.user_id, order.total_cents.in_(viewer.totals))


async def find(reader: Any, key: Any, viewer: Any) -> Any:
    try:
        return json.loads(await reader.get(key, viewer=viewer))
    except NotFound:
        return None


async def test_a_prepared_statement_for_several_viewers_returns_the_rows_of_each(committed_database: Database) -> None:
    """On a pooled connection the driver gets the statement directly."""
    async with committed_database.begin() as session:
        users = await make_users(session, 3)
        rows = [{"user_id": user, "total_cents": n} for n, user in enumerate(users)]
        keys = (await bulk.insert_many(session, Order, rows)).keys
    viewers: list[dict[str, Any]] = [
        {"user_id": users[0], "totals": []},
        {"user_id": None, "totals": [1, 2]},
        {"user_id": users[1], "totals": None},
        {"user_id": None, "totals": [None, 0]},
        {"user_id": users[2], "totals": {0}},
    ]
    seen = [{0}, {1, 2}, {1}, {0}, {0, 2}]
    view = JsonView(Order, OrderOut, where={Order: order_filter})
    nested_view = JsonView(User, UserOut, where={Order: order_filter})
    async with view.open(committed_database) as orders, nested_view.open(committed_database) as nested:
        for _ in range(7):  # after five executions PostgreSQL may change to a generic plan
            found = await asyncio.gather(*(find(orders, key, viewer) for viewer in viewers for key in keys))
            assert [each is not None for each in found] == [n in visible for visible in seen for n in range(3)]
            bodies = await asyncio.gather(*(find(nested, user, viewer) for viewer in viewers for user in users))
            assert [len(body["orders"]) for body in bodies] == [int(n in visible) for visible in seen for n in range(3)]
        assert (orders.status().batches, nested.status().batches) == (7, 7)


async def test_without_shared_reads_each_call_is_a_statement_of_its_own(committed_database: Database) -> None:
    """A listener may set a tenant on the connection for one caller."""
    event.listen(committed_database.engine.sync_engine, "begin", lambda connection: None)
    async with committed_database.begin() as session:
        users = await make_users(session, 2)
        keys = (await bulk.insert_many(session, Order, [{"user_id": user} for user in users])).keys
    async with JsonView(Order, OrderOut, where={Order: order_filter}).open(committed_database) as orders:
        asked = [(key, {"user_id": user, "totals": []}) for key in keys for user in users]
        found = await asyncio.gather(*(find(orders, *pair) for pair in asked))
        assert orders.status().batches == 0
    assert [each is not None for each in found] == [True, False, False, True]


async def plans_of(session: AsyncSession, reader: Any, asked: list[tuple[Any, Any]]) -> list[Any]:
    """The plan for these values, and the generic plan, of the statement that concurrent calls send."""
    lookup = reader._by_viewer
    compiled = _Compiled(lookup.statement, session.get_bind().dialect)
    values = lookup.bind([key for key, _ in asked], [reader._read_viewer(viewer) for _, viewer in asked])
    statement, parameters = compiled.text, compiled.parameters(values)
    assert parameters is not None
    raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
    custom = await raw.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *parameters)
    await raw.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    await raw.execute(f"PREPARE howdah_plan AS {statement}")
    nulls = ", ".join(["NULL"] * len(parameters))
    generic = await raw.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE howdah_plan({nulls})")
    await raw.execute("DEALLOCATE howdah_plan")
    return [plan[0]["Plan"] for plan in (custom, generic)]


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


@pytest.mark.parametrize("model", [User, Seat])
async def test_rows_of_several_viewers_are_found_by_the_index_of_the_primary_key(
    session: AsyncSession, database: Database, model: type[Any]
) -> None:
    moments = "now() AS created_at, now() AS updated_at"
    new_rows = {
        "seats (row, number, taken_by)": "SELECT n % 100, n, 'a' FROM generate_series(1, 20000) AS n",
        "users (id, email, name, created_at, updated_at)": (
            f"SELECT gen_random_uuid(), n, 'a', {moments} FROM generate_series(1, 20000) AS n"
        ),
        "orders (id, user_id, total_cents, status, version, created_at, updated_at)": (
            f"SELECT gen_random_uuid(), id, 1, 'PENDING', 1, {moments} FROM users LIMIT 5000"
        ),
    }
    for table, rows in new_rows.items():
        await session.execute(text(f"INSERT INTO {table} {rows}"))
    await session.execute(text("ANALYZE users, orders, seats"))
    await session.execute(text("SET LOCAL random_page_cost = 1.1"))  # as for an SSD
    names = "id" if model is User else "row, number"
    keys = (await session.execute(text(f"SELECT {names} FROM {model.__tablename__} LIMIT 64"))).all()
    where: dict[type[Any], Any] = {
        User: lambda user, viewer: user.name.in_(viewer.names),
        Order: order_filter,
        Seat: lambda seat, viewer: or_(seat.taken_by == viewer.name, seat.number.in_(viewer.numbers)),
    }
    view: Any = (
        JsonView(User, UserOut, where={each: where[each] for each in (User, Order)})
        if model is User
        else JsonView(Seat, SeatOut, where={Seat: where[Seat]})
    )
    viewer = {"names": ["a"], "user_id": UUID(int=1), "totals": [1, 2], "name": "b", "numbers": [1, 2]}
    async with view.open(database) as reader:
        asked = [
            (key[0] if len(key) == 1 else tuple(key), viewer | {"user_id": UUID(int=n), "name": f"{n}"})
            for n, key in enumerate(keys)
        ]
        for plan in await plans_of(session, reader, asked):
            scans = {node.get("Relation Name"): node for node in nodes_of(plan)}
            assert scans[model.__tablename__].get("Index Name") == f"pk_{model.__tablename__}", plan
            if model is User:
                assert "Index" in scans["orders"]["Node Type"], plan
