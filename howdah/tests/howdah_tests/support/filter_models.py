"""The tables, rows and declarations of the tests of filters."""

from __future__ import annotations

import enum
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Date,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    func,
    insert,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, relationship

from howdah import Base, Condition, Filter, Filters, Sort, text_enum
from howdah.fastapi import PageParameters, RFC3339Datetime


class Shelved(Base):
    """Its tables are created by the tests that need them."""

    __abstract__ = True
    metadata = MetaData()


class Genre(enum.StrEnum):
    NOVEL = "novel"
    POETRY = "poetry"
    SCIENCE = "science"


class Binding(enum.Enum):
    HARD = "hard"
    SOFT = "soft"


class Author(Shelved):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Opus(Shelved):
    __tablename__ = "books"
    __table_args__ = (
        Index("ix_books_title_prefix", "title", postgresql_ops={"title": "text_pattern_ops"}),
        Index(
            "ix_books_lower_title",
            func.lower(literal_column("title")).label("lower_title"),
            postgresql_ops={"lower_title": "text_pattern_ops"},
        ),
        Index(
            "ix_books_summary",
            func.to_tsvector(literal_column("'english'"), literal_column("summary")),
            postgresql_using="gin",
        ),
        Index("ix_books_copies", "copies", postgresql_where=text("stars IS NULL")),
        Index("ix_books_genre", "genre"),
        Index("ix_books_isbn", "isbn"),
        Index("ix_books_plain", "plain"),
        Index("ix_books_pages_id", "pages", "id"),
        Index("ix_books_lent_at", "lent_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(String(30))
    summary: Mapped[str | None]
    isbn: Mapped[str | None] = mapped_column(String(13, collation="C"))
    plain: Mapped[str | None]
    words: Mapped[Any] = mapped_column(TSVECTOR, nullable=True)
    genre: Mapped[Genre | None] = mapped_column(text_enum(Genre, name="genre_is_known", length=10))
    binding: Mapped[Binding | None] = mapped_column(Enum(Binding, name="binding"))
    pages: Mapped[int | None]
    copies: Mapped[int | None] = mapped_column(BigInteger)
    stars: Mapped[int | None] = mapped_column(SmallInteger)
    price: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
    printed: Mapped[date | None] = mapped_column(Date)
    lent_at: Mapped[datetime | None]
    code: Mapped[UUID | None]
    signed: Mapped[bool | None]
    author_id: Mapped[int | None] = mapped_column(ForeignKey(Author.id))

    author: Mapped[Author | None] = relationship()


class BookFilters(Filters):
    title: Annotated[str | None, Filter(Opus.title)] = None
    title_any_case: Annotated[str | None, Filter(Opus.title, "=", ignore_case=True)] = None
    title_prefix: Annotated[str | None, Filter(Opus.title, "prefix")] = None
    title_prefix_any_case: Annotated[str | None, Filter(Opus.title, "prefix", ignore_case=True)] = None
    titles: Annotated[list[str] | None, Filter(Opus.title, "in")] = None
    q: Annotated[str | None, Filter(Opus.summary, "full text", config="english")] = None
    words: Annotated[str | None, Filter(Opus.words, "full text", config="simple")] = None
    genre: Annotated[Genre | None, Filter(Opus.genre)] = None
    genres: Annotated[list[Genre] | None, Filter(Opus.genre, "in")] = None
    bindings: Annotated[set[Binding] | None, Filter(Opus.binding, "in")] = None
    binding: Annotated[Binding | None, Filter(Opus.binding)] = None
    pages: Annotated[int | None, Filter(Opus.pages)] = None
    pages_from: Annotated[int | None, Filter(Opus.pages, ">=")] = None
    pages_over: Annotated[int | None, Filter(Opus.pages, ">")] = None
    pages_below: Annotated[int | None, Filter(Opus.pages, "<")] = None
    pages_to: Annotated[int | None, Filter(Opus.pages, "<=")] = None
    page_counts: Annotated[list[int] | None, Filter(Opus.pages, "in")] = None
    copies: Annotated[int | None, Filter(Opus.copies)] = None
    stars: Annotated[int | None, Filter(Opus.stars)] = None
    price: Annotated[Decimal | None, Filter(Opus.price)] = None
    price_from: Annotated[int | None, Filter(Opus.price, ">=")] = None
    prices: Annotated[list[Decimal] | None, Filter(Opus.price, "in")] = None
    printed_from: Annotated[date | None, Filter(Opus.printed, ">=")] = None
    lent_from: Annotated[RFC3339Datetime | None, Filter(Opus.lent_at, ">=")] = None
    lent_before: Annotated[RFC3339Datetime | None, Filter(Opus.lent_at, "<")] = None
    is_lent: Annotated[bool | None, Filter(Opus.lent_at, "is not null")] = None
    has_no_genre: Annotated[bool | None, Filter(Opus.genre, "is null")] = None
    code: Annotated[UUID | None, Filter(Opus.code)] = None
    codes: Annotated[list[UUID] | None, Filter(Opus.code, "in")] = None
    signed: Annotated[bool | None, Filter(Opus.signed)] = None
    author: Annotated[str | None, Condition(lambda name: Opus.author.has(Author.name == name))] = None


Name = Literal["title", "-title", "pages", "-pages", "lent", "-lent", "genre_pages", "-genre_pages"]


class BookPageParameters(BookFilters, PageParameters):
    sort: Annotated[
        list[Name],
        Sort(
            {
                "title": Opus.title,
                "pages": Opus.pages,
                "lent": Opus.lent_at.nulls_last(),
                "genre_pages": (Opus.genre, Opus.pages),
            }
        ),
    ] = ["title"]  # noqa: RUF012


CODES = [UUID(int=number) for number in range(3)]
TIMES = [datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 3)]

_TITLES = [
    "Emma",
    "emma",
    "100% true",
    "100 ways",
    "a_b",
    "axb",
    "back\\slash",
    "",
    "Émile",
    "ÉMILE",
    "straße",
    "STRASSE",
]


def build_books() -> list[dict[str, Any]]:
    """Rows in which every nullable column has NULLs and repeated values."""
    return [
        {
            "id": number,
            "title": title,
            "summary": [None, "The running fox", "foxes and hounds", "a dog"][number % 4],
            "genre": [None, *Genre][number % 4],
            "binding": [None, *Binding][number % 3],
            "pages": [None, 100, 200, 300, 200][number % 5],
            "copies": [None, 2**62][number % 2],
            "stars": [None, 5, -1][number % 3],
            "price": [None, Decimal("10.00"), Decimal("9.99")][number % 3],
            "printed": [None, date(2020, 1, 1), date(2021, 1, 1)][number % 3],
            "lent_at": [None, *TIMES][number % 4],
            "code": [None, *CODES][number % 4],
            "signed": [None, True, False][number % 3],
            "author_id": [None, 1, 2][number % 3],
        }
        for number, title in enumerate(_TITLES)
    ]


async def create_books(session: AsyncSession) -> list[dict[str, Any]]:
    """Create the tables and their rows in the session's transaction, and return the rows of the books."""
    connection = await session.connection()
    await connection.run_sync(Shelved.metadata.create_all)
    rows = build_books()
    await connection.execute(insert(Author), [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Bob"}])
    await connection.execute(insert(Opus), rows)
    await connection.exec_driver_sql("UPDATE books SET words = to_tsvector('simple', title)")
    return rows
