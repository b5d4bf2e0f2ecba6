"""Locks and bulk writes with inheritance, and of objects that depend on several rows."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import CHAR, ForeignKey, MetaData, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, column_property, mapped_column, relationship

from howdah import (
    AsyncRepository,
    Base,
    Database,
    LockTimeout,
    MatchResult,
    NotFound,
    UUIDv7PrimaryKey,
    bulk,
    lock,
    uuid7,
)
from howdah.testing import assert_statements
from howdah_tests.support.waiting import until_waiting


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class ZooAnimal(UUIDv7PrimaryKey, Separate):
    """A query of it reads the tables of all subclasses in one statement."""

    __tablename__ = "animals"

    kind: Mapped[str]
    name: Mapped[str] = mapped_column(default="")
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "animal",
        "with_polymorphic": "*",
    }


class ZooDog(ZooAnimal):
    __tablename__ = "dogs"

    id: Mapped[UUID] = mapped_column(ForeignKey("animals.id", ondelete="CASCADE"), primary_key=True)
    tricks: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class ZooPuppy(ZooDog):
    __tablename__ = "puppies"

    id: Mapped[UUID] = mapped_column(ForeignKey("dogs.id", ondelete="CASCADE"), primary_key=True)
    weeks: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "puppy"}  # noqa: RUF012


class ZooFish(ZooAnimal):
    """Its rows are in the table of the base class."""

    scales: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "fish"}  # noqa: RUF012


class ZooBasket(UUIDv7PrimaryKey, Separate):
    """Its query joins rows of another table."""

    __tablename__ = "baskets"

    items: Mapped[list[ZooItem]] = relationship(lazy="joined")


class ZooItem(UUIDv7PrimaryKey, Separate):
    __tablename__ = "items"

    basket_id: Mapped[UUID] = mapped_column(ForeignKey("baskets.id"))


class ZooTally(Separate):
    __tablename__ = "tallies"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note: Mapped[str] = mapped_column(default="")
    baskets = column_property(select(func.count(ZooBasket.id)).scalar_subquery())


class BoxTool(Separate):
    """Single-table inheritance, with a key that only PostgreSQL can compare."""

    __tablename__ = "tools"

    code: Mapped[str] = mapped_column(CHAR(5), primary_key=True)
    kind: Mapped[str]
    size: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "tool"}  # noqa: RUF012


class BoxHammer(BoxTool):
    __mapper_args__ = {"polymorphic_identity": "hammer"}  # noqa: RUF012


class BoxSaw(BoxTool):
    __mapper_args__ = {"polymorphic_identity": "saw"}  # noqa: RUF012


@pytest.fixture
async def tables(session: AsyncSession) -> AsyncSession:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    return session


@pytest.fixture
async def committed(committed_database: Database) -> Database:
    async with committed_database.begin() as session:
        await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    return committed_database


async def add_animals(session: AsyncSession) -> list[ZooAnimal]:
    animals = [ZooAnimal(), ZooDog(), ZooPuppy(), ZooFish()]
    session.add_all(animals)
    await session.flush()
    return sorted(animals, key=lambda each: each.id)


async def test_every_call_that_locks_accepts_a_base_class_that_is_read_with_its_subclasses(
    tables: AsyncSession,
) -> None:
    animals = await add_animals(tables)
    ids, gone = [each.id for each in animals], uuid7()
    tables.expunge_all()
    locked = await lock(tables, ZooAnimal, [*ids[::-1]])
    assert list(locked) == ids
    assert [type(each) for each in locked.values()] == [type(each) for each in animals]
    with pytest.raises(NotFound):
        await lock(tables, ZooAnimal, [gone])
    rows = [{"id": id, "name": f"{n}"} for n, id in enumerate([*ids, gone])]
    assert await bulk.update_many(tables, ZooAnimal, rows) == MatchResult(4, [gone])
    assert [each.name for each in locked.values()] == ["0", "1", "2", "3"]
    assert await bulk.update_by_key(tables, ZooAnimal, [*ids, gone], {"name": "x"}) == MatchResult(4, [gone])
    assert await bulk.update_where(tables, ZooAnimal, ZooAnimal.name == "x", {"name": "y"}) == 4
    assert {each.name for each in locked.values()} == {"y"}
    assert await bulk.delete_many(tables, ZooAnimal, [*ids[1:], gone]) == MatchResult(3, [gone])
    assert [each in tables for each in locked.values()] == [True, False, False, False]


async def other_session_can_write(database: Database, statement: str, id: UUID) -> bool:
    async with database.session() as session:
        await session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        try:
            await session.execute(text(statement), {"id": id})
        except LockTimeout:
            return False
    return True


@pytest.mark.parametrize("model", [ZooAnimal, ZooDog, ZooPuppy])
async def test_all_rows_of_an_object_are_locked(committed: Database, model: type[Any]) -> None:
    """Control: the rows of another object are not locked."""
    async with committed.begin() as session:
        one, other = ZooPuppy(), ZooPuppy()
        session.add_all([one, other])
    tables = ("animals", "dogs", "puppies")
    changes = [f"UPDATE {table} SET id = id WHERE id = :id" for table in tables]
    async with committed.session() as session:
        await lock(session, model, [one.id])
        for change in changes:
            is_unlocked = "puppies" in change and model is ZooDog  # objects of this class don't read the table
            assert await other_session_can_write(committed, change, one.id) == is_unlocked
            assert await other_session_can_write(committed, change, other.id)


async def test_rows_that_are_locked_in_any_table_are_left_out(committed: Database) -> None:
    async with committed.begin() as session:
        one, other, fish = ZooPuppy(), ZooDog(), ZooFish()
        session.add_all([one, other, fish])
    ids = [one.id, other.id, fish.id]
    async with committed.session() as holder, committed.session() as session:
        await holder.execute(text("UPDATE puppies SET weeks = 1 WHERE id = :id"), {"id": one.id})
        assert [*await lock(session, ZooAnimal, ids, skip_locked=True)] == sorted([other.id, fish.id])
        with pytest.raises(LockTimeout):
            await lock(session, ZooAnimal, ids, nowait=True)


async def changed_while_another_waits(database: Database, id: Any, change: str, read: Any) -> Any:
    """The result of `read`, which waits for a row that another transaction changes meanwhile."""
    async with database.session() as first, database.session() as second:
        assert await second.scalar(text("SELECT 1"))
        await first.execute(text(change), {"id": id, "new": uuid7()})
        waiting = asyncio.create_task(read(second))
        await until_waiting(database)
        await first.commit()
        return await waiting


def lock_one(model: type[Any], id: Any) -> Any:
    async def read(session: AsyncSession) -> Any:
        return (await lock(session, model, [id]))[id]

    return read


def in_one_statement(model: type[Any], table: type[Any], id: Any) -> Any:
    """Control: one statement locks the rows of `table`, but reads the object's other rows before it waits."""

    async def read(session: AsyncSession) -> Any:
        statement = select(model).where(model.id == id).with_for_update(of=table.__table__)
        return (await session.scalars(statement)).unique().one()

    return read


async def test_the_tables_of_subclasses_are_read_after_the_lock(committed: Database) -> None:
    async with committed.begin() as session:
        dog = ZooDog()
        session.add(dog)
    # like `lock`: first the row of the base table, then the row of the subclass
    change = (
        "WITH held AS (SELECT id FROM animals WHERE id = :id FOR UPDATE) UPDATE dogs SET tricks = tricks + 1 FROM held"
    )
    stale = await changed_while_another_waits(committed, dog.id, change, in_one_statement(ZooAnimal, ZooAnimal, dog.id))
    assert stale.tricks == 0
    fresh = await changed_while_another_waits(committed, dog.id, change, lock_one(ZooAnimal, dog.id))
    assert fresh.tricks == 2


async def test_joined_rows_are_read_after_the_lock(committed: Database) -> None:
    async with committed.begin() as session:
        basket = ZooBasket()
        session.add(basket)
    change = (
        "WITH held AS (SELECT id FROM baskets WHERE id = :id FOR UPDATE)"
        " INSERT INTO items (id, basket_id) SELECT :new, id FROM held"
    )
    stale = await changed_while_another_waits(
        committed, basket.id, change, in_one_statement(ZooBasket, ZooBasket, basket.id)
    )
    assert len(stale.items) == 0
    fresh = await changed_while_another_waits(committed, basket.id, change, lock_one(ZooBasket, basket.id))
    assert len(fresh.items) == 2


async def test_the_result_of_a_subquery_is_read_after_the_lock(committed: Database) -> None:
    async with committed.begin() as session:
        session.add(ZooTally(id=1))
    change = (
        "WITH held AS (SELECT id FROM tallies WHERE id = :id FOR UPDATE) INSERT INTO baskets (id) SELECT :new FROM held"
    )
    stale = await changed_while_another_waits(committed, 1, change, in_one_statement(ZooTally, ZooTally, 1))
    assert stale.baskets == 0
    fresh = await changed_while_another_waits(committed, 1, change, lock_one(ZooTally, 1))
    assert fresh.baskets == 2


async def test_an_object_of_one_row_is_locked_and_read_in_one_statement(tables: AsyncSession) -> None:
    animals = await add_animals(tables)
    tables.expunge_all()
    with assert_statements(tables, 1):
        await lock(tables, ZooPuppy, [each.id for each in animals if isinstance(each, ZooPuppy)])


async def test_keys_of_another_class_in_the_same_table_are_missing(tables: AsyncSession) -> None:
    tables.add_all([BoxHammer(code="h"), BoxSaw(code="s")])
    await tables.flush()
    tables.expunge_all()
    hammers = AsyncRepository(tables, BoxHammer)
    assert await hammers.get("s") is None
    assert [each.code for each in await hammers.get_by_ids(["s ", "h ", "x"])] == ["h    "]
    with pytest.raises(NotFound) as caught:
        await lock(tables, BoxHammer, ["s ", "h"])
    assert caught.value.keys == ["s "]
    rows = [{"code": code, "size": 1} for code in ("s ", "h ", "x")]
    assert await bulk.update_many(tables, BoxHammer, rows) == MatchResult(1, ["s ", "x"])
    assert await bulk.update_by_key(tables, BoxHammer, ["s ", "h "], {"size": 2}) == MatchResult(1, ["s "])
    assert await bulk.delete_many(tables, BoxHammer, ["s ", "h ", "x"]) == MatchResult(1, ["s ", "x"])
    assert (await tables.execute(select(BoxTool.kind, BoxTool.size))).all() == [("saw", 0)]


async def test_keys_of_another_class_are_missing_if_python_can_compare_them(tables: AsyncSession) -> None:
    fish, animal = ZooFish(), ZooAnimal()
    tables.add_all([fish, animal])
    await tables.flush()
    ids = [animal.id, fish.id]
    assert [*await lock(tables, ZooFish, ids, skip_locked=True)] == [fish.id]
    rows = [{"id": id, "name": "x"} for id in ids]
    assert await bulk.update_many(tables, ZooFish, rows) == MatchResult(1, [animal.id])
    assert await bulk.update_by_key(tables, ZooFish, ids, {"name": "y"}) == MatchResult(1, [animal.id])
    assert await bulk.delete_many(tables, ZooFish, ids) == MatchResult(1, [animal.id])
    assert animal in tables
    assert animal.name == ""
