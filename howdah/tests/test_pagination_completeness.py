"""Keyset pages are complete in both directions, for any order and any changes between two pages."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Page
from howdah_tests.support.page_walks import ids, walk
from howdah_tests.support.sample_models import Specimen
from howdah_tests.support.specimens import ORDERS, ROW, exhaustive, insert_specimens, specimens


@exhaustive
@given(rows=st.lists(ROW, max_size=9), order=ORDERS, limit=st.integers(1, 4))
async def test_pages_forward_and_backward_are_the_whole_list(
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
async def test_rows_that_are_inserted_or_deleted_between_pages_neither_repeat_nor_hide_others(
    session: AsyncSession, rows: list[dict[str, Any]], order: list[Any], limit: int, changes: list[Any]
) -> None:
    async with specimens(session, rows) as repository:
        statement = select(Specimen).order_by(*order)
        remaining = {(i * 7) % 31 for i in range(len(rows))}
        pending = iter(enumerate(changes, start=100))

        async def turn(cursor: str | None) -> Page[Specimen]:
            page = await repository.page(statement, limit=limit, after=cursor)
            id, change = next(pending, (0, None))
            if isinstance(change, dict):
                await insert_specimens(session, {id: change})
            elif change is not None:
                remaining.discard((change * 7) % 31)
                await session.execute(text("DELETE FROM specimens WHERE id = :id"), {"id": (change * 7) % 31})
            return page

        seen = [id for page in await walk(turn, "next") for id in ids(page)]
        assert len(seen) == len(set(seen))
        assert remaining <= set(seen)
