"""Indexes support declared filters, and `assert_indexed` finds the filters that no index supports."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Condition, Filter, Filters, Sort
from howdah._reads.filter_plans import _explain
from howdah.testing import assert_indexed
from howdah_tests.support.filter_models import Genre, Opus, create_books


class Indexed(Filters):
    prefix: Annotated[str | None, Filter(Opus.title, "prefix")] = None
    prefix_any_case: Annotated[str | None, Filter(Opus.title, "prefix", ignore_case=True)] = None
    q: Annotated[str | None, Filter(Opus.summary, "full text", config="english")] = None
    genres: Annotated[list[Genre] | None, Filter(Opus.genre, "in")] = None
    pages_from: Annotated[int | None, Filter(Opus.pages, ">=")] = None
    is_lent: Annotated[bool | None, Filter(Opus.lent_at, "is not null")] = None
    isbn: Annotated[str | None, Filter(Opus.isbn, "prefix")] = None
    any_condition: Annotated[str | None, Condition(lambda name: Opus.title == name)] = None
    sort: Annotated[
        list[Literal["pages", "-pages", "lent", "genre_pages"]],
        Sort(
            {
                "pages": Opus.pages,
                "lent": Opus.lent_at.nulls_last(),
                "genre_pages": (Opus.genre, Opus.pages),
            }
        ),
    ] = ["pages"]  # noqa: RUF012


class Unindexed(Filters):
    q: Annotated[str | None, Filter(Opus.summary, "full text", config="simple")] = None
    copies: Annotated[int | None, Filter(Opus.copies)] = None
    summary: Annotated[str | None, Filter(Opus.summary, "prefix")] = None
    plain: Annotated[str | None, Filter(Opus.plain, "prefix")] = None
    has_no_summary: Annotated[bool | None, Filter(Opus.summary, "is null")] = None
    pages: Annotated[int | None, Filter(Opus.pages)] = None
    sort: Annotated[
        Literal["copies", "lent", "-lent"], Sort({"copies": Opus.copies, "lent": Opus.lent_at.nulls_last()})
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
        copies: Annotated[int | None, Filter(Opus.copies)] = None

    await create_books(session)
    with pytest.raises(pytest.fail.Exception):
        await assert_indexed(session, Parameters)
    await assert_indexed(session, Parameters, select(Opus).where(Opus.stars.is_(None)))


async def test_an_index_that_begins_with_another_column_supports_no_filter(session: AsyncSession) -> None:
    class Parameters(Filters):
        plain: Annotated[str | None, Filter(Opus.plain)] = None
        author: Annotated[int | None, Filter(Opus.author_id)] = None

    await create_books(session)
    await session.execute(text("TRUNCATE books"))
    # The first column has the name of a type, and then of a value, in the condition of the second one.
    for name in ("text", "a"):
        await session.execute(text(f"ALTER TABLE books ADD {name} text"))
        await session.execute(text(f"CREATE INDEX ON books ({name}, author_id, plain)"))
    await session.execute(text("DROP INDEX ix_books_plain"))
    with pytest.raises(pytest.fail.Exception, match=r"- plain: .*\n- author: "):
        await assert_indexed(session, Parameters)
    await session.execute(text("CREATE INDEX ON books (author_id, plain)"))
    await assert_indexed(session, Parameters, exclude={"plain"})
    await assert_indexed(session, Parameters, select(Opus).where(Opus.author_id == 1), exclude={"author"})


async def test_a_prefix_reads_the_index_of_a_large_table(session: AsyncSession) -> None:
    """Without disabled scans, also after the sixth execution, when PostgreSQL considers a generic plan."""
    await create_books(session)
    await session.execute(
        text("INSERT INTO books (id, title) SELECT n, 'title ' || n FROM generate_series(100, 20000) AS n")
    )
    await session.execute(text("ANALYZE books"))
    statement = Indexed(prefix="title 123").apply(select(Opus))
    for _ in range(7):
        nodes: list[dict[str, Any]] = await _explain(session, statement)
        assert any(each.get("Index Name") == "ix_books_title_prefix" and "Index Cond" in each for each in nodes)
        found = [*await session.scalars(Indexed(prefix="title 123").apply(select(Opus.id)))]
        assert len(found) == 111
