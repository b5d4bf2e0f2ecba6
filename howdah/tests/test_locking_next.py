"""`lock_next`: rows of a queue that no other transaction has locked."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import ForeignKey, Index, MetaData, column, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, aliased, mapped_column, relationship, selectinload, with_loader_criteria

from howdah import AsyncRepository, Base, Database, UUIDv7PrimaryKey, Versioned, bulk, lock_next, utcnow
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Engineer, Label, Seat, Staff


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Queue(Separate):
    __tablename__ = "queues"

    name: Mapped[str] = mapped_column(primary_key=True)


class Job(UUIDv7PrimaryKey, Versioned, Separate):
    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_waiting", "priority", postgresql_where=column("done_at").is_(None)),)

    priority: Mapped[int]
    done_at: Mapped[datetime | None]
    queue_name: Mapped[str | None] = mapped_column(ForeignKey("queues.name"))
    queue: Mapped[Queue | None] = relationship(lazy="joined")


class PlainJob(UUIDv7PrimaryKey, Separate):
    __tablename__ = "plain_jobs"

    priority: Mapped[int]
    done_at: Mapped[datetime | None]


WAITING = select(PlainJob).where(PlainJob.done_at.is_(None)).order_by(PlainJob.priority.desc())


@pytest.fixture
async def jobs(session: AsyncSession) -> AsyncRepository[Job]:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    await bulk.insert_many(session, Queue, [{"name": "mail"}])
    await bulk.insert_many(session, Job, [{"priority": n % 7, "queue_name": "mail"} for n in range(30)])
    return AsyncRepository(session, Job)


@pytest.fixture
async def committed_jobs(committed_database: Database) -> Database:
    async with committed_database.begin() as session:
        await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
        await bulk.insert_many(session, PlainJob, [{"priority": n} for n in range(60)])
    return committed_database


async def test_rows_are_locked_in_the_order_of_the_statement(committed_jobs: Database) -> None:
    async with committed_jobs.session() as first, committed_jobs.session() as second:
        with assert_statements(committed_jobs, 1):
            mine = await lock_next(first, WAITING, 2)
        assert [job.priority for job in mine] == [59, 58]
        assert [job.priority for job in await lock_next(second, WAITING, 3)] == [57, 56, 55]
        assert [job.priority for job in await AsyncRepository(first, PlainJob).lock_next(1)] == [0]  # in key order


async def test_two_workers_never_get_the_same_row(committed_jobs: Database) -> None:
    """Control: with a SELECT without a lock, all workers get the same rows."""
    taken: list[Any] = []

    async def work() -> None:
        while True:
            async with committed_jobs.begin() as session:
                jobs = await AsyncRepository(session, PlainJob).lock_next(4, WAITING)
                taken.extend(job.id for job in jobs)
                for job in jobs:
                    job.done_at = utcnow()
            if not jobs:
                return

    await asyncio.gather(*(work() for _ in range(4)))
    assert len(taken) == len({*taken}) == 60

    async with committed_jobs.begin() as session:
        await session.execute(update(PlainJob).values(done_at=None))
    ready = asyncio.Barrier(4)

    async def take_unlocked() -> list[Any]:
        async with committed_jobs.begin() as session:
            found = (await session.scalars(WAITING.limit(4))).all()
            await ready.wait()
            return [job.id for job in found]

    results = await asyncio.gather(*(take_unlocked() for _ in range(4)))
    assert len({key for keys in results for key in keys}) == 4


async def test_a_row_that_was_done_in_the_meantime_is_not_returned(committed_jobs: Database) -> None:
    """The session's own, older object is refreshed, and changes that aren't flushed count."""
    async with committed_jobs.session() as session:
        old = (await session.scalars(WAITING.limit(1))).one()
        async with committed_jobs.begin() as other:
            await other.execute(update(PlainJob).where(PlainJob.priority == 59).values(priority=100))
            await other.execute(update(PlainJob).where(PlainJob.priority == 58).values(done_at=utcnow()))
        (found,) = await lock_next(session, WAITING, 1)
        assert found is old
        assert old.priority == 100
        old.done_at = utcnow()
        assert [job.priority for job in await lock_next(session, WAITING, 1)] == [57]


async def test_an_object_that_depends_on_other_rows_is_read_after_the_lock(jobs: AsyncRepository[Job]) -> None:
    statement = select(Job).where(Job.priority > 1, Job.queue_name == "mail").order_by(Job.priority, Job.id.desc())
    with assert_statements(jobs.session, 2):
        found = await jobs.lock_next(3, statement)
    assert [job.priority for job in found] == [2, 2, 2]
    assert found[0].id > found[1].id
    assert found[0].queue is not None
    assert found[0].queue.name == "mail"
    assert await jobs.lock_next(3, statement.where(Job.priority > 100)) == []
    restricted = select(Job).options(with_loader_criteria(Job, Job.priority == 5)).order_by(Job.priority)
    assert {job.priority for job in await jobs.lock_next(30, restricted)} == {5}


async def test_keys_of_any_kind_and_subclasses(session: AsyncSession) -> None:
    await bulk.insert_many(session, Seat, [{"row": row, "number": n} for row in "BA" for n in (2, 1)])
    assert [(seat.row, seat.number) for seat in await AsyncRepository(session, Seat).lock_next(3)] == [
        ("A", 1),
        ("A", 2),
        ("B", 1),
    ]
    await bulk.insert_many(session, Label, [{"name": "b"}, {"name": "a"}])
    assert [label.name for label in await AsyncRepository(session, Label).lock_next(5)] == ["a", "b"]
    await AsyncRepository(session, Engineer).create(name="Ada", language="SQL")
    await AsyncRepository(session, Staff).create(name="Bob")
    assert [one.name for one in await AsyncRepository(session, Staff).lock_next(5)] == ["Ada", "Bob"]
    assert [one.language for one in await AsyncRepository(session, Engineer).lock_next(5)] == ["SQL"]


async def test_the_statement_may_join_and_load_relationships(jobs: AsyncRepository[Job]) -> None:
    statement = select(Job).join(Queue, Queue.name == Job.queue_name).where(Queue.name == "mail").order_by(Job.priority)
    found = await jobs.lock_next(2, statement.options(selectinload(Job.queue)))
    assert [job.priority for job in found] == [0, 0]


async def test_an_index_on_the_order_is_used(jobs: AsyncRepository[Job]) -> None:
    await jobs.create_many([{"priority": n} for n in range(3000)], keys=False)
    await jobs.session.execute(text("ANALYZE jobs"))
    statement = select(Job).where(Job.done_at.is_(None)).order_by(Job.priority)
    with assert_statements(jobs.session, 2) as sent:
        await jobs.lock_next(5, statement)
    plan = "\n".join((await jobs.session.scalars(text(f"EXPLAIN {sent[0].replace('$1::INTEGER', '5')}"))).all())
    assert "ix_jobs_waiting" in plan
    assert "Sort" not in plan


async def test_other_statements_are_rejected(jobs: AsyncRepository[Job]) -> None:
    other = aliased(Job)
    with assert_statements(jobs.session, 0):
        statements: list[Any] = [select(Job.id), select(Job, Job.id), select(other), select(func.count())]
        for statement in statements:
            with pytest.raises(ValueError, match=r"lock_next takes a select\(Model\)"):
                await lock_next(jobs.session, statement, 1)
        with pytest.raises(ValueError, match="pass the limit as an argument"):
            await jobs.lock_next(1, select(Job).limit(1))
        with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
            await jobs.lock_next(0)
        with pytest.raises(ValueError, match="this repository reads Job"):
            await jobs.lock_next(1, select(Queue))
