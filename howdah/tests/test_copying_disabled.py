"""After a rejected COPY, the rows of the table are inserted for a minute. Then COPY is tried again."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable

import pytest
from sqlalchemy import Float, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import MetaData

from howdah import Base, Database, UUIDv7PrimaryKey, bulk
from howdah._writes import copying
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import User
from howdah_tests.support.sample_rows import user_rows


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class CopiedMeasure(UUIDv7PrimaryKey, Separate):
    __tablename__ = "measures"

    v: Mapped[float] = mapped_column(Float())


ROWS = [{"v": 1.5}] * 30

Advance = Callable[[float], None]


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Advance:
    """Stops the clock. Returns a function that advances it."""
    now = 1000.0

    def forward(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(copying, "monotonic", lambda: now)
    return forward


async def verbs(session: AsyncSession, expected: int) -> list[str]:
    """The first words of the statements that write the rows."""
    with assert_statements(session, expected) as sent:
        assert (await bulk.insert_many(session, CopiedMeasure, ROWS)).count == len(ROWS)
    return [statement.split()[0] for statement in sent]


async def test_a_table_that_replaces_a_view_is_copied_into_after_a_minute(
    database: Database, advance: Advance, caplog: pytest.LogCaptureFixture
) -> None:
    async with database.begin() as session:
        await session.execute(text("CREATE TABLE stored (id uuid PRIMARY KEY, v double precision)"))
        await session.execute(text("CREATE VIEW measures AS SELECT * FROM stored"))
        with caplog.at_level(logging.WARNING, "howdah._writes.copying"):
            assert await verbs(session, 2) == ["COPY", "INSERT"]
            assert await verbs(session, 1) == ["INSERT"]
            await session.execute(text("DROP VIEW measures"))
            await session.execute(text("ALTER TABLE stored RENAME TO measures"))
            advance(59.9)
            assert await verbs(session, 1) == ["INSERT"]
            assert len(caplog.records) == 1
            advance(0.2)
            assert await verbs(session, 1) == ["COPY"]
            assert await verbs(session, 1) == ["COPY"]
        assert len(caplog.records) == 1
        assert await session.scalar(select(func.count()).select_from(CopiedMeasure)) == 5 * len(ROWS)


async def test_each_rejection_is_logged_once_with_its_reason(
    database: Database, advance: Advance, caplog: pytest.LogCaptureFixture
) -> None:
    """In this test the column has another type in the database than in the model."""
    async with database.begin() as session:
        await session.execute(text("CREATE TABLE measures (id uuid PRIMARY KEY, v bigint)"))
        with caplog.at_level(logging.WARNING, "howdah._writes.copying"):
            for _ in range(3):
                await verbs(session, 2)
                await verbs(session, 1)
                advance(61)
        assert [record.getMessage() for record in caplog.records] == [
            "COPY into measures isn't possible, so rows are inserted for 60 s: "
            "v is int8 in the database, and FLOAT in the model"
        ] * 3
        assert set(await session.scalars(text("SELECT v FROM measures"))) == {2}


async def test_a_rejection_applies_to_one_database_and_one_table(
    committed_database: Database, committed_url: str
) -> None:
    async with committed_database.begin() as session:
        await session.execute(text("CREATE TABLE measures (id uuid PRIMARY KEY, v bigint)"))
        await verbs(session, 2)
        with assert_statements(session, 1) as sent:
            await bulk.insert_many(session, User, user_rows(30))
        assert sent[0].startswith("COPY users")
    async with Database(committed_url) as other, other.begin() as session:
        await verbs(session, 2)


async def test_a_rejected_row_disables_nothing(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("CREATE TABLE measures (id uuid PRIMARY KEY, v double precision CHECK (v > 0))"))
        with pytest.raises(Exception, match="violates check"):
            await bulk.insert_many(session, CopiedMeasure, [*ROWS, {"v": -1}])
        assert await verbs(session, 1) == ["COPY"]


def test_entries_expire_after_a_minute_and_the_table_stays_small(advance: Advance) -> None:
    tables = copying._DisabledTables()
    for number in range(1000):
        tables.add(f"tenant_{number}.measures")
        assert f"tenant_{number}.measures" in tables
        assert len(tables) <= 61
        advance(1)
    advance(60)
    assert "tenant_999.measures" not in tables


async def test_the_entries_of_a_database_are_garbage_collected_with_it(committed_url: str) -> None:
    async with Database(committed_url) as database, database.begin() as session:
        await session.execute(text("CREATE TABLE measures (id uuid PRIMARY KEY, v bigint)"))
        await verbs(session, 2)
        reference = weakref.ref(copying._disabled[database.engine.dialect])
    del database, session
    gc.collect()
    assert reference() is None


async def test_a_role_with_row_level_security_disables_copy_for_other_roles_for_at_most_a_minute(
    committed_database: Database, advance: Advance
) -> None:
    async with committed_database.begin() as session:
        await session.execute(text("CREATE TABLE measures (id uuid PRIMARY KEY, v double precision)"))
        await session.execute(text("ALTER TABLE measures ENABLE ROW LEVEL SECURITY"))
        await session.execute(text("CREATE POLICY everyone ON measures USING (true)"))
        await session.execute(text("DROP ROLE IF EXISTS howdah_guarded"))
        await session.execute(text("CREATE ROLE howdah_guarded"))
        await session.execute(text("GRANT ALL ON measures TO howdah_guarded"))
        try:
            await session.execute(text("SET LOCAL ROLE howdah_guarded"))
            assert await verbs(session, 2) == ["COPY", "INSERT"]
            await session.execute(text("RESET ROLE"))
            assert await verbs(session, 1) == ["INSERT"]
            advance(60)
            assert await verbs(session, 1) == ["COPY"]
        finally:
            await session.rollback()
