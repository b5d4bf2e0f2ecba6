"""The query plans for keys that only PostgreSQL can compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import CHAR, MetaData, event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah import AsyncRepository, Base, bulk, lock

ROWS = 20_000


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class PlannedSingle(Separate):
    __tablename__ = "single"

    code: Mapped[str] = mapped_column(CHAR(8), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class PlannedPair(Separate):
    __tablename__ = "pair"

    code: Mapped[str] = mapped_column(CHAR(8), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


@pytest.fixture
async def tables(session: AsyncSession) -> AsyncSession:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    rows = f"generate_series(1, {ROWS}) AS n"
    await session.execute(text(f"INSERT INTO single SELECT n, 0 FROM {rows}"))
    await session.execute(text(f"INSERT INTO pair SELECT n % 100, n, 0 FROM {rows}"))
    await session.execute(text("ANALYZE single, pair"))
    await session.execute(text("SET LOCAL random_page_cost = 1.1"))  # as for an SSD
    return session


async def plans_of(session: AsyncSession, call: Callable[[], Any]) -> list[dict[str, Any]]:
    """The plans of the statements with keys that a call sends, planned for these keys."""
    sent: list[tuple[str, Any]] = []

    def record(*args: Any) -> None:
        if "[]" in args[2]:
            sent.append((args[2], args[3]))

    engine = session.get_bind().engine
    event.listen(engine, "before_cursor_execute", record)
    try:
        await call()
    finally:
        event.remove(engine, "before_cursor_execute", record)
    raw = (await (await session.connection()).get_raw_connection()).driver_connection
    assert raw is not None
    return [(await raw.fetchval(f"EXPLAIN (FORMAT JSON) {text}", *parameters))[0]["Plan"] for text, parameters in sent]


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


@pytest.mark.parametrize("count", [1, 100, 10_000])
@pytest.mark.parametrize("model", [PlannedSingle, PlannedPair])
async def test_keys_that_postgresql_compares_use_the_index_or_one_scan_of_the_table(
    tables: AsyncSession, model: type[Any], count: int
) -> None:
    numbers = range(1, count + 1)
    keys: list[Any] = [f"{n}" for n in numbers] if model is PlannedSingle else [(f"{n % 100}", n) for n in numbers]
    columns = [{"code": key} for key in keys] if model is PlannedSingle else [{"code": c, "number": n} for c, n in keys]
    rows = [{**row, "value": 1} for row in columns]
    calls: list[Callable[[], Any]] = [
        lambda: AsyncRepository(tables, model).get_by_ids(keys),
        lambda: lock(tables, model, keys),
        lambda: bulk.update_many(tables, model, rows),
        lambda: bulk.update_by_key(tables, model, keys, {"value": 2}),
        lambda: bulk.delete_many(tables, model, keys),
    ]
    for number, call in enumerate(calls):
        tables.expunge_all()
        plans = await plans_of(tables, call)
        assert plans
        for plan in plans:
            nodes = [*nodes_of(plan)]
            scans = {node["Node Type"] for node in nodes if node.get("Relation Name") == model.__tablename__}
            if count <= 100:
                assert "Seq Scan" not in scans, (number, plan)
            for node in nodes:
                if count > 100 and node["Node Type"] == "Nested Loop":
                    inner = node["Plans"][1]["Node Type"]
                    assert inner not in ("Seq Scan", "CTE Scan", "Function Scan"), (number, plan)
