"""JsonView of unusual models. Each test is a fault that a user of the library once found."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, create_model
from sqlalchemy import (
    ARRAY,
    REAL,
    Column,
    ForeignKey,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Table,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, column_property, mapped_column, relationship, selectinload

from howdah import Base, Database, JsonView, OutOfRange, ViewCompileError
from howdah_tests.support.view_schemas import Out


class Separate(Base):
    """The base of tables that the test database doesn't have."""

    __abstract__ = True
    metadata = MetaData()


linked = Table(
    "linked",
    Separate.metadata,
    Column("shelf_id", ForeignKey("shelves.id"), primary_key=True),
    Column("book_id", ForeignKey("books.id"), primary_key=True),
    Column("place", Integer),
)


class Book(Separate):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Page(Separate):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelves.id"))
    words: Mapped[int]
    shelf: Mapped[Shelf] = relationship(back_populates="pages")


class Shelf(Separate):
    __tablename__ = "shelves"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    details: Mapped[Any | None] = mapped_column(JSONB)
    span: Mapped[timedelta | None] = mapped_column(Interval)
    real: Mapped[float | None] = mapped_column(REAL)
    reals: Mapped[list[float] | None] = mapped_column(ARRAY(REAL))
    raw: Mapped[bytes | None] = mapped_column(LargeBinary)

    pages: Mapped[list[Page]] = relationship(order_by=Page.id, back_populates="shelf")
    first_page: Mapped[Page | None] = relationship(uselist=False, order_by=Page.id, viewonly=True)
    books: Mapped[list[Book]] = relationship(secondary=linked, order_by=linked.c.place)

    @hybrid_property
    def words(self) -> int:
        raise NotImplementedError

    @words.inplace.expression
    @classmethod
    def _words(cls) -> Any:
        return select(func.sum(Page.words)).where(Page.shelf_id == cls.id).label("words")

    @hybrid_property
    def is_long(self) -> bool:
        raise NotImplementedError

    @is_long.inplace.expression
    @classmethod
    def _is_long(cls) -> Any:
        return select(Page.id).where(Page.shelf_id == cls.id, Page.words > 15).exists()


Shelf.page_count = column_property(
    select(func.count()).where(Page.shelf_id == Shelf.id).scalar_subquery(), deferred=True
)


@pytest.fixture
async def shelves(committed_database: Database) -> Database:
    async with committed_database.engine.begin() as connection:
        await connection.run_sync(Separate.metadata.create_all)
    async with committed_database.begin() as session:
        session.add_all([Shelf(id=id) for id in (1, 2, 3)])
        session.add_all([Book(id=id) for id in (1, 2, 3)])
        await session.flush()
        session.add_all(
            [Page(id=n, shelf_id=shelf, words=words) for n, shelf, words in ((1, 1, 10), (2, 1, 20), (3, 2, 5))]
        )
        places = [{"shelf_id": 1, "book_id": book, "place": -book} for book in (1, 2, 3)]
        await session.execute(linked.insert(), places)
    return committed_database


async def bodies_of(database: Database, schema: type[BaseModel], model: type[Any] = Shelf) -> list[Any]:
    async with JsonView(model, schema).open(database) as view:
        return [json.loads(body) for body in await view.get_many([1, 2, 3])]


class Summed(Out):
    words: int | None
    is_long: bool
    page_count: int


class PageOut(Out):
    id: int
    shelf: Summed


async def test_a_subquery_is_correlated_to_its_own_row(shelves: Database) -> None:
    sums = [
        {"words": 30, "is_long": True, "page_count": 2},
        {"words": 5, "is_long": False, "page_count": 1},
        {"words": None, "is_long": False, "page_count": 0},
    ]
    assert await bodies_of(shelves, Summed) == sums
    assert await bodies_of(shelves, PageOut, Page) == [
        {"id": 1, "shelf": sums[0]},
        {"id": 2, "shelf": sums[0]},
        {"id": 3, "shelf": sums[1]},
    ]


class BookOut(Out):
    id: int


class WithBooks(Out):
    books: list[BookOut]


async def test_a_collection_can_be_ordered_by_the_association_table(shelves: Database) -> None:
    assert (await bodies_of(shelves, WithBooks))[0] == {"books": [{"id": 3}, {"id": 2}, {"id": 1}]}


class WithFirst(Out):
    first_page: BookOut | None


async def test_the_first_of_several_rows_is_used_for_a_to_one_relationship(shelves: Database) -> None:
    assert await bodies_of(shelves, WithFirst) == [
        {"first_page": {"id": 1}},
        {"first_page": {"id": 3}},
        {"first_page": None},
    ]


class WithPages(Out):
    pages: list[BookOut]
    details: Any


async def test_each_line_of_a_stream_is_one_line(shelves: Database) -> None:
    async with shelves.begin() as session:
        await session.execute(text("ALTER TABLE shelves ALTER details TYPE json"))
        await session.execute(text("""UPDATE shelves SET details = '{\n "a": "x\\ny",\n "b": 1\n}' WHERE id = 1"""))
    async with JsonView(Shelf, WithPages).open(shelves) as view:
        lines = [line async for line in view.stream()]
    assert [line.count(b"\n") for line in lines] == [1, 1, 1]
    assert json.loads(lines[0]) == {"pages": [{"id": 1}, {"id": 2}], "details": {"a": "x\ny", "b": 1}}


async def test_a_key_that_cannot_be_sent_fails_only_its_own_read(shelves: Database) -> None:
    async with JsonView(Shelf, BookOut).open(shelves) as view:
        results = await asyncio.gather(*(view.get(key) for key in (1, 2**40, 2, "3")), return_exceptions=True)
    assert results[0] == b'{"id":1}'
    assert isinstance(results[1], OutOfRange)
    assert results[2] == b'{"id":2}'
    assert isinstance(results[3], Exception)


class WithRaw(Out):
    id: int
    raw: bytes | None


async def test_a_row_that_cannot_be_rendered_fails_only_its_own_read(shelves: Database) -> None:
    async with shelves.begin() as session:
        (await session.get_one(Shelf, 2)).raw = b"\xff"
    async with JsonView(Shelf, WithRaw).open(shelves) as view:
        results = await asyncio.gather(*(view.get(key) for key in (1, 2, 3)), return_exceptions=True)
    assert [isinstance(result, Exception) for result in results] == [False, True, False]


class Numbers(Out):
    span: timedelta | None
    real: float | None
    reals: list[float] | None


async def test_years_and_short_floats_have_the_values_of_the_driver(shelves: Database) -> None:
    async with shelves.begin() as session:
        await session.execute(
            text("""
            UPDATE shelves SET real = 0.1, reals = '{0.1,NULL}', span = CASE id
                WHEN 1 THEN '1 year 2 mons 3 days 04:00' WHEN 2 THEN '-25 mons' ELSE '11 mons -1 day' END::interval
            """)
        )
    async with JsonView(Shelf, Numbers).open(shelves) as view, shelves.session() as session:
        bodies = [Numbers.model_construct(**json.loads(body)) for body in await view.get_many([1, 2, 3])]
        rows = (await session.scalars(select(Shelf).order_by(Shelf.id).options(selectinload(Shelf.pages)))).all()
        for body, row in zip(bodies, rows, strict=True):
            assert create_model("Span", span=(timedelta, ...))(span=body.span).span == row.span  # type: ignore[attr-defined]
            assert (body.real, body.reals) == (row.real, row.reals)


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = 1


Many = create_model("Many", **{f"f{n}": (int, 0) for n in range(51)})  # type: ignore[call-overload]


@pytest.mark.parametrize(("inside", "reason"), [(Loose, "extra='allow'"), (Many, "more than 50 fields")])
def test_a_model_in_json_that_sql_cannot_render_is_rejected(inside: Any, reason: str) -> None:
    with pytest.raises(ViewCompileError, match=reason):
        JsonView(Shelf, create_model("Schema", details=(inside | None, ...)))


async def test_json_of_a_recursive_type_is_passed_on(shelves: Database) -> None:
    from typing_extensions import TypeAliasType

    tree: Any = TypeAliasType(
        "tree", "dict[str, tree] | list[tree] | str | None"
    )  # Any, because mypy doesn't terminate on a recursive alias
    namespace: dict[str, Any] = {"tree": tree}
    schema = create_model("Schema", __base__=Out, details=(tree, ...))
    schema.model_rebuild(_types_namespace=namespace)
    async with shelves.begin() as session:
        (await session.get_one(Shelf, 1)).details = {"a": ["b", {"c": None}]}
    assert (await bodies_of(shelves, schema))[0] == {"details": {"a": ["b", {"c": None}]}}
