"""The error for an attribute that isn't loaded says how to load it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import ForeignKey, MetaData, select
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    Mapped,
    mapped_column,
    relationship,
    selectinload,
    undefer,
)

from howdah import AsyncRepository, Base, Database, UniqueViolation
from howdah_tests.support.sample_models import User


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Writer(Separate):
    __tablename__ = "writers"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    notes: Mapped[str] = mapped_column(deferred=True, deferred_raiseload=True, server_default="")
    letters: Mapped[str] = mapped_column(deferred=True, server_default="")
    books: Mapped[list[Volume]] = relationship(backref="author")


class Novelist(Writer):
    """Single-table inheritance."""


class Volume(Separate):
    __tablename__ = "volumes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    author_id: Mapped[int] = mapped_column(ForeignKey("writers.id"))
    by: Mapped[Writer] = relationship(viewonly=True, lazy="raise_on_sql")


@pytest.fixture
async def book(session: AsyncSession) -> Volume:
    tables: Any = [Writer.__table__, Volume.__table__]
    await (await session.connection()).run_sync(lambda connection: Separate.metadata.create_all(connection, tables))
    session.add(Writer(id=1, name="Ann", books=[Volume(id=1)]))
    await session.flush()
    session.expunge_all()
    (book,) = await session.scalars(select(Volume))
    return book


class TestError:
    @pytest.mark.parametrize("name", ["author", "by"])
    async def test_of_a_relationship_says_how_to_load_it(self, book: Volume, name: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            getattr(book, name)
        message = str(caught.value)
        assert message.startswith(f"'Volume.{name}' is not available due to lazy='raise")
        assert f"load=[Volume.{name}]" in message
        assert f"selectinload(Volume.{name})" in message
        assert type(caught.value) is InvalidRequestError

    async def test_of_a_relationship_contains_the_class_that_was_read(
        self, book: Volume, session: AsyncSession
    ) -> None:
        session.add(Novelist(id=2, name="Bea"))
        await session.flush()
        session.expunge_all()
        novelist = (await session.scalars(select(Novelist).where(Writer.id == 2))).one()
        with pytest.raises(InvalidRequestError, match=r"load=\[Novelist\.books\]"):
            _ = novelist.books

    async def test_recommends_options_that_work(self, book: Volume, session: AsyncSession) -> None:
        found = await AsyncRepository(session, Volume).get_one(1, load=[Volume.author])  # type: ignore[attr-defined]
        assert found.author.name == "Ann"  # type: ignore[attr-defined]
        statement = select(Writer).options(selectinload(Writer.books), undefer(Writer.notes))
        author = (await session.scalars(statement, execution_options={"populate_existing": True})).one()
        assert (author.books, author.notes) == ([book], "")

    async def test_of_a_deferred_column_says_how_to_load_it(self, book: Volume, session: AsyncSession) -> None:
        author = (await session.scalars(select(Writer))).one()
        with pytest.raises(InvalidRequestError, match=r"raiseload=True: .*\.options\(undefer\(Writer\.notes\)\)"):
            _ = author.notes

    async def test_of_an_attribute_that_refresh_loads_recommends_it(self, book: Volume, session: AsyncSession) -> None:
        author = (await session.scalars(select(Writer))).one()
        with pytest.raises(MissingGreenlet) as caught:
            _ = author.letters
        assert "await session.refresh(" in "".join(caught.value.__notes__)
        session.expire(author)
        with pytest.raises(MissingGreenlet) as caught:
            _ = author.name
        assert "await session.refresh(" in "".join(caught.value.__notes__)

    async def test_is_raised_for_a_detached_object_too(self, book: Volume, session: AsyncSession) -> None:
        session.expunge(book)
        with pytest.raises(InvalidRequestError, match=r"load=\[Volume\.author\]"):
            _ = book.author  # type: ignore[attr-defined]


async def test_the_error_of_an_expired_attribute_without_a_connection_says_what_to_do(
    committed_database: Database,
) -> None:
    async with committed_database.session() as session:
        session.add(user := User(email="a", name="A"))
        await session.commit()
        session.expire(user)
        with pytest.raises(MissingGreenlet) as caught:
            _ = user.name
        assert "await session.refresh(" in "".join(caught.value.__notes__)


async def test_an_unloaded_relationship_still_raises_after_a_flush(session: AsyncSession, twenty: list[Any]) -> None:
    user = (await session.scalars(select(User).where(User.id == twenty[0]))).one()
    user.name = "changed"
    await session.flush()
    with pytest.raises(InvalidRequestError, match="lazy='raise'"):
        _ = user.orders
    with pytest.raises(UniqueViolation):
        async with session.begin_nested():
            session.add(User(email=user.email, name="a"))
    with pytest.raises(InvalidRequestError, match="lazy='raise'"):
        _ = user.orders
