"""`link` and `unlink`: rows of the association table of a many-to-many relationship."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    func,
    select,
    text,
)
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, relationship

from howdah import (
    AsyncRepository,
    AwareDateTime,
    Base,
    Database,
    ForeignKeyViolation,
    InvalidValue,
    UUIDv7PrimaryKey,
    bulk,
    utcnow,
    uuid7,
)
from howdah_tests.support.sample_models import User


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


post_topics = Table(
    "post_topics",
    Separate.metadata,
    Column("post_id", ForeignKey("notes.id"), primary_key=True),
    Column("topic_id", ForeignKey("topics.id"), primary_key=True),
    Column("linked_at", AwareDateTime(), default=utcnow),
)
# A key of its own, and another order of the columns.
followers = Table(
    "followers",
    Separate.metadata,
    Column("id", Integer, primary_key=True),
    Column("followed", ForeignKey("topics.id"), nullable=False),
    Column("follower", ForeignKey("topics.id"), nullable=False),
    UniqueConstraint("follower", "followed"),
)
loose = Table(
    "loose", Separate.metadata, Column("post_id", ForeignKey("notes.id")), Column("topic_id", ForeignKey("topics.id"))
)
room_topics = Table(
    "room_topics",
    Separate.metadata,
    Column("topic_id", ForeignKey("topics.id"), primary_key=True),
    Column("room_number", Integer, primary_key=True),
    Column("house", String, primary_key=True),
    ForeignKeyConstraint(["house", "room_number"], ["rooms.house", "rooms.number"]),
)
by_name = Table(
    "by_name",
    Separate.metadata,
    Column("post_id", ForeignKey("notes.id"), primary_key=True),
    Column("topic_name", ForeignKey("topics.name"), primary_key=True),
)


class Topic(Separate):
    __tablename__ = "topics"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(unique=True)
    posts: Mapped[list[LinkedNote]] = relationship(secondary=post_topics, back_populates="topics")
    followed: Mapped[list[Topic]] = relationship(
        secondary=followers,
        primaryjoin=lambda: Topic.id == followers.c.follower,
        secondaryjoin=lambda: Topic.id == followers.c.followed,
    )


class LinkedNote(UUIDv7PrimaryKey, Separate):
    __tablename__ = "notes"

    topics: Mapped[list[Topic]] = relationship(secondary=post_topics, back_populates="posts")
    first_topics: Mapped[list[Topic]] = relationship(
        secondary=post_topics,
        secondaryjoin=lambda: (Topic.id == post_topics.c.topic_id) & (Topic.id < 9),
        viewonly=True,
    )
    topic_links: Mapped[list[TopicLink]] = relationship(viewonly=True)
    loose_topics: Mapped[list[Topic]] = relationship(secondary=loose, viewonly=False, overlaps="topics")
    named_topics: Mapped[list[Topic]] = relationship(secondary=by_name)


class TopicLink(Separate):
    __table__ = post_topics


class Room(Separate):
    __tablename__ = "rooms"

    house: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    topics: Mapped[list[Topic]] = relationship(secondary=room_topics)


@pytest.fixture
async def linked(session: AsyncSession) -> AsyncSession:
    """A session with the tables, 30 topics and two notes."""
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    await bulk.insert_many(session, Topic, [{"id": number} for number in range(30)])
    return session


async def make_notes(session: AsyncSession, count: int) -> list[Any]:
    return (await bulk.insert_many(session, LinkedNote, [{} for _ in range(count)])).keys


async def test_links_are_inserted_once_and_deleted(linked: AsyncSession) -> None:
    first, second = await make_notes(linked, 2)
    notes = AsyncRepository(linked, LinkedNote)
    assert await notes.link(LinkedNote.topics, [(first, n) for n in range(20)]) == 20
    assert await notes.link(LinkedNote.topics, [(first, 5), (first, 25), (second, 5), (second, 5)]) == 2
    assert await linked.scalar(select(func.count(post_topics.c.linked_at))) == 22
    assert await notes.unlink(LinkedNote.topics, ((first, n) for n in range(2, 30))) == 19
    assert await notes.unlink(LinkedNote.topics, []) == 0
    assert await notes.link(LinkedNote.topics, []) == 0
    found = await linked.execute(select(post_topics.c.post_id, post_topics.c.topic_id).order_by(*post_topics.c[:2]))
    assert found.all() == [(first, 0), (first, 1), (second, 5)]


async def test_the_pairs_may_come_from_the_other_side_and_from_an_async_iterable(linked: AsyncSession) -> None:
    keys = await make_notes(linked, 2)

    async def pairs() -> AsyncIterator[tuple[Any, Any]]:
        for key in keys:
            yield 3, str(key)

    assert await bulk.link(linked, Topic.posts, pairs()) == 2
    assert await bulk.unlink(linked, Topic.posts, pairs()) == 2


async def test_all_loaded_relationships_that_read_the_table_are_expired(linked: AsyncSession) -> None:
    (key,) = await make_notes(linked, 1)
    loaded = [LinkedNote.topics, LinkedNote.first_topics, LinkedNote.topic_links, LinkedNote.named_topics]
    note = await AsyncRepository(linked, LinkedNote).get_one(key, load=loaded)
    topic = await AsyncRepository(linked, Topic).get_one(1, load=[Topic.posts])
    note.topics.append(await linked.get_one(Topic, 2))  # flushed before
    for change in (bulk.link, bulk.unlink):
        await change(linked, LinkedNote.topics, [(key, 1)])
        for owner, name in ((note, "topics"), (note, "first_topics"), (note, "topic_links"), (topic, "posts")):
            with pytest.raises(InvalidRequestError, match="lazy='raise'"):
                getattr(owner, name)
        assert note.named_topics == []  # a relationship of another table
        await linked.refresh(note, ["topics", "first_topics", "topic_links"])
        await linked.refresh(topic, ["posts"])
        assert [each.id for each in sorted(note.topics, key=lambda each: each.id)] == ([1, 2] if topic.posts else [2])


async def test_a_table_with_a_key_of_its_own_and_a_composite_key(linked: AsyncSession) -> None:
    pairs = [(n, n + 1) for n in range(25)]
    assert await bulk.link(linked, Topic.followed, pairs) == 25
    assert await bulk.link(linked, Topic.followed, [*pairs, (1, 0)]) == 1
    assert await bulk.unlink(linked, Topic.followed, [(1, 0), (0, 2)]) == 1
    assert [tuple(row) for row in await linked.execute(select(followers.c.follower, followers.c.followed))] == pairs
    await bulk.insert_many(linked, Room, [{"house": "A", "number": 1}, {"house": "B", "number": 1}])
    assert await bulk.link(linked, Room.topics, [(("A", 1), 7), ({"number": 1, "house": "B"}, 7)]) == 2
    assert await bulk.unlink(linked, Room.topics, [(("A", 1), 7)]) == 1
    assert (await linked.execute(select(room_topics))).all() == [(7, 1, "B")]


async def test_a_missing_row_is_identified_and_nothing_is_written(linked: AsyncSession) -> None:
    (key,) = await make_notes(linked, 1)
    with pytest.raises(ForeignKeyViolation) as caught:
        await bulk.link(linked, LinkedNote.topics, [(key, 1), (uuid7(), 2), (key, 3)])
    assert caught.value.row_index == 1
    assert await linked.scalar(select(func.count()).select_from(post_topics)) == 0
    for wrong in ([key], [(key, 1, 2)], [("x", 1)]):
        with pytest.raises((TypeError, ValueError, InvalidValue)) as rejected:
            await bulk.link(linked, LinkedNote.topics, wrong)  # type: ignore[arg-type]
        assert any("pair 0 of the input" in note for note in rejected.value.__notes__)


async def test_relationships_that_cannot_be_linked_are_rejected(linked: AsyncSession) -> None:
    with pytest.raises(TypeError, match="loose can have the same link twice"):
        await bulk.link(linked, LinkedNote.loose_topics, [])
    with pytest.raises(TypeError, match="use insert_many with the rows of the table"):
        await bulk.unlink(linked, LinkedNote.named_topics, [])
    for other in (User.orders, User.name):
        with pytest.raises(TypeError, match="has no association table"):
            await bulk.link(linked, other, [])
    (key,) = await make_notes(linked, 1)
    await bulk.insert_many(linked, LinkedNote.loose_topics, [{"post_id": key, "topic_id": 1}] * 2)
    assert await linked.scalar(select(func.count()).select_from(loose)) == 2


async def test_concurrent_links_in_opposite_order_do_not_deadlock(committed_database: Database) -> None:
    """Control: inserts of the rows one by one in opposite orders deadlock or fail with a unique violation."""
    async with committed_database.begin() as session:
        await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
        await bulk.insert_many(session, Topic, [{"id": number} for number in range(40)])
        (key,) = await make_notes(session, 1)
    pairs = [(key, n) for n in range(40)]
    ready = asyncio.Barrier(2)

    async def change(order: int, *, as_rows: bool) -> int:
        async with committed_database.begin() as session:
            await session.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
            await ready.wait()
            if not as_rows:
                return await bulk.link(session, LinkedNote.topics, pairs[::order])
            for post_id, topic_id in pairs[::order]:
                await session.execute(post_topics.insert().values(post_id=post_id, topic_id=topic_id))
            return 0

    assert sorted(await asyncio.gather(change(1, as_rows=False), change(-1, as_rows=False))) == [0, 40]
    async with committed_database.begin() as session:
        assert await bulk.unlink(session, LinkedNote.topics, pairs) == 40
    outcomes = await asyncio.gather(change(1, as_rows=True), change(-1, as_rows=True), return_exceptions=True)
    assert any(isinstance(each, Exception) for each in outcomes)
