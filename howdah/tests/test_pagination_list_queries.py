"""Pages of all kinds of list queries (with options, joins, inheritance), and pages whose rows have been deleted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy import ForeignKey, MetaData, Select, event, func, insert, literal, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    Mapped,
    aliased,
    joinedload,
    lazyload,
    mapped_column,
    relationship,
    with_loader_criteria,
)

from howdah import AsyncRepository, Base, Page
from howdah.testing import assert_statements
from howdah_tests.support.page_walks import assert_pages_are, ids, walk
from howdah_tests.support.sample_models import Order, Specimen, User, UserRepository
from howdah_tests.support.sample_rows import user_rows
from howdah_tests.support.specimens import ORDERS, ROW, exhaustive, specimens


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Rack(Separate):
    __tablename__ = "racks"

    id: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[int]
    hidden: Mapped[bool] = mapped_column(default=False)
    books: Mapped[list[Tome]] = relationship(lazy="joined", order_by="Tome.id")
    labels: Mapped[list[Sticker]] = relationship(lazy="joined", order_by="Sticker.id")


class Tome(Separate):
    __tablename__ = "tomes"

    id: Mapped[int] = mapped_column(primary_key=True)
    rack_id: Mapped[int] = mapped_column(ForeignKey(Rack.id))
    pages: Mapped[int] = mapped_column(default=1)


class Sticker(Separate):
    __tablename__ = "stickers"

    id: Mapped[int] = mapped_column(primary_key=True)
    rack_id: Mapped[int] = mapped_column(ForeignKey(Rack.id))


class IdOut(BaseModel):
    id: int


@pytest.fixture
async def tables(session: AsyncSession) -> AsyncSession:
    await (await session.connection()).run_sync(Separate.metadata.create_all)
    return session


@pytest.fixture
async def racks(tables: AsyncSession) -> AsyncRepository[Rack]:
    """Twelve racks. Every third one is hidden. Rack `i` has `i % 4` books."""
    await tables.execute(insert(Rack), [{"id": i, "place": i % 5, "hidden": i % 3 == 0} for i in range(12)])
    await tables.execute(insert(Tome), [{"rack_id": i} for i in range(12) for _ in range(i % 4)])
    await tables.execute(insert(Sticker), [{"rack_id": i} for i in range(12) for _ in range(2)])
    return AsyncRepository(tables, Rack)


# --- pages whose rows were deleted


@exhaustive
@given(
    rows=st.lists(ROW, min_size=2, max_size=9),
    order=ORDERS,
    limit=st.integers(1, 3),
    backward=st.booleans(),
    data=st.data(),
)
async def test_an_empty_page_leads_back_to_all_remaining_rows(  # noqa: PLR0917
    session: AsyncSession, rows: list[Any], order: list[Any], limit: int, backward: bool, data: Any
) -> None:
    """Read to the end, delete the rows of the last page and some others, read that page again, and go back."""
    async with specimens(session, rows) as repository:
        page: Callable[..., Any] = partial(repository.page, select(Specimen).order_by(*order), limit=limit)
        pages = await walk(lambda cursor: page(after=cursor), "next")
        parameter, opposite_parameter, cursor_name, opposite_cursor = "after", "before", "next", "previous"
        if backward and len(pages) > 1:
            start = pages[-1].previous
            pages = await walk(lambda cursor: page(before=cursor or start), "previous")
            parameter, opposite_parameter, cursor_name, opposite_cursor = (
                opposite_parameter,
                parameter,
                opposite_cursor,
                cursor_name,
            )
        if len(pages) == 1:
            return
        others = [id for each in pages[:-1] for id in ids(each)]
        deleted = [*ids(pages[-1]), *data.draw(st.sets(st.sampled_from(others)))]
        await repository.delete_many(deleted)
        empty = await page(**{parameter: getattr(pages[-2], cursor_name)})
        assert (empty.items, getattr(empty, cursor_name)) == ([], None)
        back = await walk(
            lambda cursor: page(**{opposite_parameter: cursor or getattr(empty, opposite_cursor)}), opposite_cursor
        )
        remaining = [each.id for each in await repository.list(select(Specimen).order_by(*order), limit=None)]
        assert [id for each in (back if backward else back[::-1]) for id in ids(each)] == remaining
        if remaining:
            assert (await page(**{parameter: getattr(back[0], cursor_name)})).items == []


async def test_a_row_that_is_inserted_again_is_on_the_previous_page(users: UserRepository) -> None:
    await users.create_many(user_rows(3))
    first = await users.page(limit=2)
    last = (await users.page(limit=2, after=first.next)).items[0]
    await users.delete_many([last.id])
    empty = await users.page(after=first.next)
    assert (empty.items, empty.next) == ([], None)
    assert ids(await users.page(before=empty.previous)) == ids(first)  # including the row of the cursor
    await users.delete_many(ids(first))
    nothing = await users.page(before=empty.previous)
    assert (nothing.items, nothing.previous) == ([], None)
    assert nothing.next is not None
    await users.create(id=first.items[1].id, email="again@example.org", name="Again")
    assert (
        ids(await users.page(after=nothing.next)) == ids(await users.page(before=empty.previous)) == [first.items[1].id]
    )


# --- criteria in options


CRITERIA = [
    with_loader_criteria(Rack, Rack.hidden.is_(False)),
    with_loader_criteria(Rack, lambda rack: rack.hidden.is_(False)),
    with_loader_criteria(Rack, lambda rack: rack.hidden.is_(False), include_aliases=True),
    with_loader_criteria(Rack, lambda rack: rack.id > 4, include_aliases=True, propagate_to_loaders=False),
    with_loader_criteria(Tome, Tome.id > 9),
]
OTHER = aliased(Rack)
LIST_QUERIES = [
    select(Rack).order_by(Rack.place),
    select(OTHER).order_by(OTHER.place.desc()),
    select(Rack).where(Rack.id.in_(select(Tome.rack_id))),
    select(Rack).join(Rack.books).distinct(),
    select(Rack).join(Rack.books).group_by(Rack.id).having(func.count() > 1).order_by(func.count()),
    select(Rack).where(Rack.books.any()),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=["expression", "lambda", "aliases", "not propagated", "joined"])
@pytest.mark.parametrize("list_query", LIST_QUERIES, ids=["plain", "alias", "in", "distinct", "groups", "any"])
async def test_counts_apply_the_loader_criteria(
    racks: AsyncRepository[Rack], list_query: Select[Any], criterion: Any
) -> None:
    """Some of the criteria hide rows."""
    list_query = list_query.options(criterion)
    whole = await racks.list(list_query, limit=None)
    page = await racks.page(list_query, count=True, limit=3)
    assert page.total == len(whole) == await racks.count(list_query)
    assert (await racks.page(list_query, count=5)).total == min(len(whole), 5)
    assert await racks.exists(list_query) is bool(whole)
    assert not await racks.exists(list_query.where(literal(False)))
    await assert_pages_are(whole, partial(racks.page, list_query), limit=2)


async def test_exists_is_false_if_loader_criteria_hide_all_rows(racks: AsyncRepository[Rack]) -> None:
    nothing = select(Rack).options(with_loader_criteria(Rack, Rack.id < 0))
    assert await racks.list(nothing) == []
    assert not await racks.exists(nothing)
    assert await racks.count(nothing) == await racks.count(nothing.limit(3)) == 0
    assert await racks.exists()


async def test_counts_apply_criteria_that_a_session_adds_to_all_statements(racks: AsyncRepository[Rack]) -> None:
    def add_criterion(state: Any) -> None:
        if state.is_select:
            state.statement = state.statement.options(with_loader_criteria(Rack, Rack.hidden.is_(False)))

    event.listen(racks.session.sync_session, "do_orm_execute", add_criterion)
    assert len(await racks.list()) == 8
    assert (await racks.page(count=True)).total == await racks.count() == 8
    assert not await racks.exists(select(Rack).where(Rack.hidden))


# --- collections that are loaded by a join


@pytest.mark.parametrize("limit", [1, 3, 12])
async def test_collections_that_are_loaded_by_a_join_do_not_change_the_pages(
    racks: AsyncRepository[Rack], limit: int
) -> None:
    for list_query in (
        select(Rack).order_by(Rack.place.desc()),
        select(Rack).order_by(func.abs(Rack.place), Rack.id.desc()),
        select(Rack)
        .where(Rack.books.any())
        .order_by(select(func.sum(Tome.id)).where(Tome.rack_id == Rack.id).scalar_subquery()),
        select(Rack).join(Rack.books).group_by(Rack.id).order_by(func.count(Tome.id)),
        select(Rack).join(Rack.books).distinct().order_by(Rack.place),
        select(OTHER).order_by(OTHER.place),
    ):
        whole = await racks.list(list_query, limit=None)
        with assert_statements(racks.session, 1):
            page = await racks.page(list_query, limit=limit)
        assert page.items == whole[:limit]
        assert [len(rack.books) for rack in page.items] == [rack.id % 4 for rack in page.items]
        assert [len(rack.labels) for rack in page.items] == [2] * len(page.items)
        await assert_pages_are(whole, partial(racks.page, list_query), limit=limit)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
async def test_pages_lose_no_object_if_the_list_query_and_a_loaded_collection_use_joins(
    racks: AsyncRepository[Rack], limit: int
) -> None:
    """The last page may be an empty one."""
    for list_query in (
        select(Rack).join(Rack.books).order_by(Rack.place),
        select(Rack).where(Tome.rack_id == Rack.id),
        select(Rack).select_from(Tome).join(Rack, Tome.rack_id == Rack.id).order_by(Rack.place.desc()),
    ):
        whole = await racks.list(list_query, limit=None)
        assert len(whole) == 9
        pages = await walk(partial(turn_after, racks, list_query, limit), "next")
        assert [rack for page in pages for rack in page.items] == whole


async def turn_after(racks: AsyncRepository[Rack], list_query: Any, limit: int, cursor: str | None) -> Page[Rack]:
    return await racks.page(list_query, limit=limit, after=cursor)


async def test_joinedload_works_in_a_page_in_a_list_and_by_ids(users: UserRepository) -> None:
    keys = (await users.create_many(user_rows(5))).keys
    await AsyncRepository(users.session, Order).create_many({"user_id": key} for key in keys[1:] for _ in range(3))
    load = [joinedload(User.orders).joinedload(Order.user)]
    users.session.expunge_all()
    whole = [user.id for user in await users.list(load=load)]
    pages = await walk(lambda cursor: users.page(limit=2, after=cursor, load=load), "next")
    assert [id for page in pages for id in ids(page)] == whole
    assert [len(user.orders) for page in pages for user in page.items] == [0, 3, 3, 3, 3]
    assert [len(user.orders) for user in await users.get_by_ids(keys, load=load)] == [0, 3, 3, 3, 3]
    listed = await users.page(select(User).options(*load), limit=5, count=True)
    assert (len(listed.items), listed.next, listed.total) == (5, None, 5)


async def test_a_stream_loads_collections_with_further_statements(racks: AsyncRepository[Rack]) -> None:
    for list_query in (select(Rack), select(OTHER).order_by(OTHER.place)):
        racks.session.expunge_all()
        found = [rack async for rack in racks.stream(list_query, batch=5)]
        assert sorted((rack.id, len(rack.books), len(rack.labels)) for rack in found) == [
            (i, i % 4, 2) for i in range(12)
        ]
    with pytest.raises(InvalidRequestError, match="selectinload"):
        async for _ in racks.stream(load=[joinedload(Rack.books)]):
            pass
    lazy = [lazyload(Rack.books), lazyload(Rack.labels)]
    assert len([rack async for rack in racks.stream(load=lazy)]) == 12


async def test_an_alias_of_an_outer_join_hides_no_row_whose_column_is_null(tables: AsyncSession) -> None:
    await tables.execute(insert(Rack), [{"id": i, "place": i % 2} for i in range(8)])
    await tables.execute(insert(Tome), [{"id": i, "rack_id": i, "pages": i} for i in range(0, 8, 2)])
    rows = select(Rack.id, Tome.pages.label("place"), Rack.hidden).outerjoin(Rack.books).subquery()
    other = aliased(Rack, rows, adapt_on_names=True)
    list_query = select(other).order_by(other.place)
    racks = AsyncRepository(tables, Rack)
    whole = await racks.list(list_query)
    assert len(whole) == 8
    await assert_pages_are(whole, partial(racks.page, list_query), limit=3)
