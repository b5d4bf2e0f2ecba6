"""Indexes support declared filters, and `assert_indexed` finds the filters that no index supports."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Condition, Filter, Filters, Sort
from howdah._reads.filter_plans import _explain
from howdah.testing import assert_indexed
from howdah_tests.support.filter_models import Genre, Tome, create_books


class Indexed(Filters):
    prefix: Annotated[str | None, Filter(Tome.title, "prefix")] = None
    prefix_any_case: Annotated[str | None, Filter(Tome.title, "prefix", ignore_case=True)] = None
    q: Annotated[str | None, Filter(Tome.summary, "full text", config="english")] = None
    genres: Annotated[list[Genre] | None, Filter(Tome.genre, "in")] = None
    pages_from: Annotated[int | None, Filter(Tome.pages, ">=")] = None
    is_lent: Annotated[bool | None, Filter(Tome.lent_at, "is not null")] = None
    isbn: Annotated[str | None, Filter(Tome.isbn, "prefix")] = None
    any_condition: Annotated[str | None, Condition(lambda name: Tome.title == name)] = None
    sort: Annotated[
        list[Literal["pages", "-pages", "lent", "genre_pages"]],
        Sort(
            {
                "pages": Tome.pages,
                "lent": Tome.lent_at.nulls_last(),
                "genre_pages": (Tome.genre, Tome.pages),
            }
        ),
    ] = ["pages"]  # noqa: RUF012


class Unindexed(Filters):
    q: Annotated[str | None, Filter(Tome.summary, "full text", config="simple")] = None
    copies: Annotated[int | None, Filter(Tome.copies)] = None
    summary: Annotated[str | None, Filter(Tome.summary, "prefix")] = None
    plain: Annotated[str | None, Filter(Tome.plain, "prefix")] = None
    has_no_summary: Annotated[bool | None, Filter(Tome.summary, "is null")] = None
    pages: Annotated[int | None, Filter(Tome.pages)] = None
    sort: Annotated[
        Literal["copies", "lent", "-lent"], Sort({"copies": Tome.copies, "lent": Tome.lent_at.nulls_last()})
    ] = "copies"


async def test_indexes_support_every_operator(session: AsyncSession) -> None:
    await create_books(session)
    await assert_indexed(session, Indexed)
    assert await session.scalar(text("SHOW enable_seqscan")) == "on"


async def test_filters_and_orders_without_an_index_are_listed(session: AsyncSession) -> None:
    await create_books(session)
    with pytest.raises(pytest.fail.Exception) as caught:
        await assert_indexed(session, Unindexed)
    listed = [line.removeprefix("- ") for line in str(caught.value).splitlines()[1:]]
    assert listed == [
        "q: books.summary full text",
        "copies: books.copies =",
        "summary: books.summary prefix",
        "plain: books.plain prefix",  # supported by its index, but only in a database with the collation C
        "has_no_summary: books.summary is null",
        "sort=copies",
        "sort=-lent",  # an index that is read backwards has its NULLs first
    ]
    await assert_indexed(session, Unindexed, exclude={"q", "copies", "summary", "plain", "has_no_summary", "-lent"})


async def test_a_partial_index_supports_a_filter_with_the_conditions_of_its_statement(session: AsyncSession) -> None:
    class Parameters(Filters):
        copies: Annotated[int | None, Filter(Tome.copies)] = None

    await create_books(session)
    with pytest.raises(pytest.fail.Exception):
        await assert_indexed(session, Parameters)
    await assert_indexed(session, Parameters, select(Tome).where(Tome.stars.is_(None)))


async def test_a_prefix_reads_the_index_of_a_large_table(session: AsyncSession) -> None:
    """Without disabled scans, also after the sixth execution, when PostgreSQL considers a generic plan."""
    await create_books(session)
    await session.execute(
        text("INSERT INTO books (id, title) SELECT n, 'title ' || n FROM generate_series(100, 20000) AS n")
    )
    await session.execute(text("ANALYZE books"))
    statement = Indexed(prefix="title 123").apply(select(Tome))
    for _ in range(7):
        nodes: list[dict[str, Any]] = await _explain(session, statement)
        assert any(each.get("Index Name") == "ix_books_title_prefix" and "Index Cond" in each for each in nodes)
        found = [*await session.scalars(Indexed(prefix="title 123").apply(select(Tome.id)))]
        assert len(found) == 111
