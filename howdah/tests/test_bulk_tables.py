"""Bulk inserts into a `Table` without a mapped class."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Integer,
    String,
    Table,
    Uuid,
    func,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, relationship
from sqlalchemy.schema import MetaData

from howdah import (
    AwareDateTime,
    Base,
    Database,
    ForeignKeyViolation,
    NotNullViolation,
    UniqueViolation,
    UnknownAttribute,
    UUIDv7PrimaryKey,
    bulk,
    utcnow,
    uuid7,
)
from howdah._writes.tables import map_table
from howdah.testing import assert_statements


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


post_tags = Table(
    "post_tags",
    Separate.metadata,
    Column("post_id", ForeignKey("posts.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
    Column("tagged_at", AwareDateTime(), default=utcnow),
    Column("weight", Integer, server_default="7"),
)


class LinkedTag(Separate):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)


class LinkedPost(UUIDv7PrimaryKey, Separate):
    __tablename__ = "posts"

    tags: Mapped[list[LinkedTag]] = relationship(secondary=post_tags)


without_key = Table(
    "visits",
    Separate.metadata,
    Column("page", String, server_default="home"),
    Column("at", DateTime(timezone=True), key="time"),
    Column("twice", Integer, Computed("seconds * 2", persisted=True)),
    Column("seconds", Integer),
)
numbered = Table(
    "events",
    MetaData(schema="public"),
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("payload", String, nullable=False),
)

SIZES = [1, 19, 20, 1100]


@pytest.fixture(params=[True, False], ids=["copy", "insert"])
async def session(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[AsyncSession]:
    async with Database(database_url, copy=request.param) as database, database.session() as session:
        connection = await session.connection()
        await connection.run_sync(Separate.metadata.create_all)
        await connection.run_sync(numbered.create)
        yield session


async def insert_post_and_tags(session: AsyncSession, count: int) -> tuple[Any, list[int]]:
    """Insert a post and this number of tags; return their keys."""
    post = (await bulk.insert_many(session, LinkedPost, [{}])).keys[0]
    return post, (await bulk.insert_many(session, LinkedTag, [{"id": number} for number in range(count)])).keys


@pytest.mark.parametrize("count", SIZES)
async def test_rows_of_an_association_table_can_be_inserted(session: AsyncSession, count: int) -> None:
    post, tags = await insert_post_and_tags(session, count)
    rows = [{"post_id": post, "tag_id": tag} for tag in tags]
    with assert_statements(session, 1) as sent:
        created = await bulk.insert_many(session, post_tags, rows)
    assert created.count == count
    assert created.keys == [(post, tag) for tag in tags]
    copied = count >= 20 and session.get_bind().engine.get_execution_options()["howdah_copy"]
    assert sent[0].startswith("COPY post_tags" if copied else "INSERT INTO post_tags")
    found = (await session.scalars(select(LinkedPost))).one()
    await session.refresh(found, ["tags"])
    assert sorted(tag.id for tag in found.tags) == tags
    assert (await session.scalars(select(post_tags.c.weight).distinct())).all() == [7]
    assert await session.scalar(select(func.count(post_tags.c.tagged_at))) == count


@pytest.mark.parametrize("count", SIZES)
async def test_a_rejected_row_is_identified(session: AsyncSession, count: int) -> None:
    post, tags = await insert_post_and_tags(session, count)
    rows = [{"post_id": post, "tag_id": tag} for tag in tags]
    rows[-1]["tag_id"] = -1
    with pytest.raises(ForeignKeyViolation) as caught:
        await bulk.insert_many(session, post_tags, rows)
    assert caught.value.row_index == count - 1
    rows[-1]["tag_id"] = tags[-1]
    with pytest.raises(UniqueViolation) as twice:
        await bulk.insert_many(session, post_tags, [*rows, rows[0]])
    assert twice.value.row_index == count
    with pytest.raises(UnknownAttribute, match="post_tags has no attribute 'tag'"):
        await bulk.insert_many(session, post_tags, [{"post_id": post, "tag": 1}])
    with pytest.raises(NotNullViolation):
        await bulk.insert_many(session, numbered, [{"payload": None}] * count)
    assert await session.scalar(select(func.count()).select_from(post_tags)) == 0


@pytest.mark.parametrize("count", SIZES)
async def test_a_table_without_a_key_stores_every_value_unchanged(session: AsyncSession, count: int) -> None:
    """None is stored as NULL, also in a column with a default. A row contains the keys of columns, not their names."""
    now = datetime(2024, 1, 1, tzinfo=UTC)
    rows: list[dict[str, Any]] = [{"page": None, "time": now, "seconds": 2}, {"time": None, "seconds": None}]
    created = await bulk.insert_many(session, without_key, (rows[number % 2] for number in range(count)))
    assert (created.count, created.keys) == (count, [])
    found = await session.execute(select(without_key, func.count()).group_by(*without_key.c))
    assert {(*row,) for row in found} == {
        (None, now, 4, 2, (count + 1) // 2),
        *([("home", None, None, None, count // 2)] if count > 1 else []),
    }


@pytest.mark.parametrize("count", SIZES)
async def test_generated_keys_are_in_the_order_of_the_rows(session: AsyncSession, count: int) -> None:
    rows = [{"payload": str(number)} for number in range(count)]
    keys = (await bulk.insert_many(session, numbered, rows)).keys
    found = dict((await session.execute(select(numbered.c.id, numbered.c.payload))).all())
    assert [found[key] for key in keys] == [row["payload"] for row in rows]
    assert (await bulk.insert_many(session, numbered, rows, keys=False)).keys == []


async def test_an_empty_input_inserts_nothing(session: AsyncSession) -> None:
    assert (await bulk.insert_many(session, post_tags, [])).count == 0


def test_a_table_with_defaults_only_and_no_key_is_rejected() -> None:
    table = Table("defaults", MetaData(), Column("a", Integer, server_default="1"), Column("b", Integer, default=2))
    with pytest.raises(TypeError, match="give it a primary key"):
        map_table(table)


def test_a_table_is_always_mapped_to_the_same_class_and_its_copy_to_another_one() -> None:
    assert map_table(post_tags) is map_table(post_tags)
    copied = without_key.to_metadata(MetaData())
    assert map_table(copied) is not map_table(without_key)
    assert map_table(copied.to_metadata(MetaData())) is not map_table(copied)


def test_a_mapped_table_is_garbage_collected() -> None:
    table = Table("temporary", MetaData(), Column("id", Uuid, primary_key=True, default=uuid7))
    map_table(table)
    reference = weakref.ref(table)
    del table
    gc.collect()
    assert reference() is None


async def test_the_same_table_can_be_written_as_a_class_and_as_a_table(session: AsyncSession) -> None:
    table = LinkedTag.__table__
    assert isinstance(table, Table)
    await bulk.insert_many(session, table, [{"id": 1}])
    await bulk.insert_many(session, LinkedTag, [{"id": 2}])
    assert (await session.scalars(select(LinkedTag.id).order_by(LinkedTag.id))).all() == [1, 2]
    assert await session.scalar(text("SELECT count(*) FROM tags")) == 2
