"""Keyset pages are complete in both directions, whatever the order, whatever happens between two of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from howdah import AsyncRepository, Page
from howdah_tests.support.page_walks import ids, walk
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
    """These rows and no others, for one example."""
    savepoint = await session.begin_nested()
    try:
        await insert_specimens(session, {(i * 7) % 31: row for i, row in enumerate(rows)})
        yield AsyncRepository(session, Specimen)
    finally:
        await savepoint.rollback()


async def insert_specimens(session: AsyncSession, rows: dict[int, dict[str, Any]]) -> None:
    if rows:
        await session.execute(insert(Specimen), [{"id": id, **row} for id, row in rows.items()])


@exhaustive
@given(rows=st.lists(ROW, max_size=9), order=ORDERS, limit=st.integers(1, 4))
async def test_pages_forward_and_backward_are_the_whole_listing(
    session: AsyncSession, rows: list[dict[str, Any]], order: list[Any], limit: int
) -> None:
    async with specimens(session, rows) as repository:
        statement = select(Specimen).order_by(*order)
        whole = [specimen.id for specimen in await repository.list(statement, limit=None)]
        forward = await walk(lambda cursor: repository.page(statement, limit=limit, after=cursor), "next")
        assert [id for page in forward for id in ids(page)] == whole
        assert all(len(page.items) == limit for page in forward[:-1])
        assert (forward[0].previous, forward[-1].next) == (None, None)
        if len(forward) > 1:
            start = forward[-1].previous
            backward = await walk(
                lambda cursor: repository.page(statement, limit=limit, before=cursor or start), "previous"
            )
            assert [id for page in reversed(backward) for id in ids(page)] == whole[: -len(forward[-1].items)]
            assert all(page.next is not None for page in backward)
            again = await repository.page(statement, limit=limit, after=backward[0].next)
            assert ids(again) == ids(forward[-1])


@exhaustive
@given(
    rows=st.lists(ROW, min_size=1, max_size=9),
    order=ORDERS,
    limit=st.integers(1, 3),
    changes=st.lists(st.one_of(ROW, st.integers(0, 8)), max_size=8),
)
async def test_rows_that_come_and_go_between_pages_neither_repeat_nor_hide_others(
    session: AsyncSession, rows: list[dict[str, Any]], order: list[Any], limit: int, changes: list[Any]
) -> None:
    async with specimens(session, rows) as repository:
        statement = select(Specimen).order_by(*order)
        lasting = {(i * 7) % 31 for i in range(len(rows))}
        to_come = iter(enumerate(changes, start=100))

        async def turn(cursor: str | None) -> Page[Specimen]:
            page = await repository.page(statement, limit=limit, after=cursor)
            id, change = next(to_come, (0, None))
            if isinstance(change, dict):
                await insert_specimens(session, {id: change})
            elif change is not None:
                lasting.discard((change * 7) % 31)
                await session.execute(text("DELETE FROM specimens WHERE id = :id"), {"id": (change * 7) % 31})
            return page

        seen = [id for page in await walk(turn, "next") for id in ids(page)]
        assert len(seen) == len(set(seen))
        assert lasting <= set(seen)
