"""Random rows of the table `specimens`, and random orders of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from howdah import AsyncRepository
from howdah_tests.support.sample_models import Specimen, Status

VALUES: dict[str, list[Any]] = {
    "whole": [None, 0, 1, -5, 2**30 - 1],
    "words": [None, "", "a", "B", "Ä", "Z🐘", "a\n"],
    "code": [None, "", "a", "ab"],
    "moment": [None, datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)],
    "day": [None, date(1999, 12, 31), date(2000, 1, 1)],
    "hour": [None, time(0), time(12, 0, 0, 1)],
    "exact": [None, Decimal("0.1"), Decimal("0.10000000000000000000000001"), Decimal("NaN")],
    "rounded": [None, Decimal("0.10000000000000000001"), Decimal("0.10000000000000000002")],
    "real": [None, 0.0, 0.1, float("nan"), float("inf"), float("-inf")],
    "state": [None, Status.PENDING, Status.PAID],
    "place": [None, Status.PENDING, Status.PAID],
    "token": [None, UUID(int=0), UUID(int=2**127)],
    "flag": [None, False, True],
    "raw": [None, b"", b"\x00\xff"],
    "loud": [None, "a", "b"],
}


def order_clause(name: str, descending: bool, nulls: str | None) -> ColumnElement[Any]:
    column = getattr(Specimen, name)
    clause: ColumnElement[Any] = column.desc() if descending else column.asc()
    if nulls == "first":
        return clause.nulls_first()
    return clause if nulls is None else clause.nulls_last()


ORDERS = st.lists(
    st.builds(order_clause, st.sampled_from(list(VALUES)), st.booleans(), st.sampled_from([None, "first", "last"])),
    min_size=1,
    max_size=3,
)
ROW = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()})
exhaustive = settings(
    max_examples=100,
    phases=[Phase.generate, Phase.shrink],
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@asynccontextmanager
async def specimens(session: AsyncSession, rows: list[dict[str, Any]]) -> AsyncIterator[AsyncRepository[Specimen]]:
    """The repository of a table with these rows only, for one example."""
    savepoint = await session.begin_nested()
    try:
        await insert_specimens(session, {(i * 7) % 31: row for i, row in enumerate(rows)})
        yield AsyncRepository(session, Specimen)
    finally:
        await savepoint.rollback()


async def insert_specimens(session: AsyncSession, rows: dict[int, dict[str, Any]]) -> None:
    if rows:
        await session.execute(insert(Specimen), [{"id": id, **row} for id, row in rows.items()])
