"""A bulk write is all or nothing, and its error identifies the rejected row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from howdah import (
    AsyncRepository,
    CheckViolation,
    Database,
    ForeignKeyViolation,
    InvalidStatement,
    InvalidValue,
    LockTimeout,
    NotNullViolation,
    OutOfRange,
    TooLong,
    UniqueViolation,
    bulk,
)
from howdah._writes.rejected_rows import write_or_locate_rejected_row
from howdah_tests.support.sample_models import Counter, Order, User
from howdah_tests.support.sample_rows import LONG_AGO, emails, make_users, user_rows


@pytest.fixture
async def used_session(session: AsyncSession) -> AsyncSession:
    """A session that has already written a row in its transaction."""
    await bulk.insert_many(session, User, [{"email": "first@example.org", "name": "First"}])
    return session


ROWS = user_rows(260)  # three chunks of 100


def rows_with(position: int, **values: Any) -> list[dict[str, Any]]:
    return [{**row, **values} if i == position else row for i, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("position", "values", "error", "constraint"),
    [
        (250, {"email": "first@example.org"}, UniqueViolation, "uq_users_email"),
        (259, {"email": "user3@example.org"}, UniqueViolation, "uq_users_email"),
        (215, {"email": "user210@example.org"}, UniqueViolation, "uq_users_email"),
        (234, {"age": -1}, CheckViolation, "ck_users_age_not_negative"),
        (234, {"name": None}, NotNullViolation, None),
        (200, {"name": "x" * 21}, TooLong, None),
        (99, {"age": 2**31}, OutOfRange, None),
        (234, {"age": "seven"}, InvalidValue, None),
        (234, {"email": "nul\x00"}, InvalidValue, None),
        (100, {"created_at": datetime(2024, 1, 1)}, InvalidValue, None),  # noqa: DTZ001
        (234, {"created_at": "yesterday"}, InvalidValue, None),
        (0, {"id": "no key"}, InvalidValue, None),
    ],
    ids=[
        "unique",
        "unique in another chunk",
        "unique in the same chunk",
        "check",
        "null",
        "long",
        "range",
        "type",
        "nul",
        "naive",
        "time as text",
        "key as text",
    ],
)
async def test_a_rejected_row_fails_the_whole_call_and_is_identified(
    used_session: AsyncSession, position: int, values: dict[str, Any], error: Any, constraint: str | None
) -> None:
    with pytest.raises(error) as caught:
        await bulk.insert_many(used_session, User, rows_with(position, **values), chunk_size=100)
    assert caught.value.row_index == position
    assert caught.value.constraint == constraint
    assert f"row {position} of the input" in caught.value.__notes__[-1]
    assert await emails(used_session) == ["first@example.org"], "the transaction is still usable"
    await bulk.insert_many(used_session, User, user_rows(3))
    assert len(await emails(used_session)) == 4


async def test_errors_are_subclasses_of_those_of_sqlalchemy(used_session: AsyncSession) -> None:
    with pytest.raises(IntegrityError):
        await bulk.insert_many(used_session, User, rows_with(234, age=-1))
    with pytest.raises(StatementError) as caught:
        await bulk.insert_many(used_session, User, rows_with(234, created_at=datetime(2024, 1, 1)))  # noqa: DTZ001
    assert "without a time zone" in str(caught.value.__cause__)


async def test_the_first_of_several_rejected_rows_is_identified(used_session: AsyncSession) -> None:
    rows = rows_with(140, age=-1)
    rows[130] = {**rows[130], "name": "x" * 21}
    with pytest.raises(TooLong) as caught:
        await bulk.insert_many(used_session, User, rows)
    assert caught.value.row_index == 130


async def test_an_error_of_the_statement_itself_identifies_no_row(used_session: AsyncSession) -> None:
    with pytest.raises(InvalidStatement) as caught:
        await bulk.upsert_many(used_session, User, user_rows(3), on=["name"])
    assert caught.value.row_index is None


async def test_a_rejected_row_of_an_update_is_identified_and_no_row_is_written(session: AsyncSession) -> None:
    keys = await make_users(session, 250)
    for position, values, error in (
        (222, {"age": -1}, CheckViolation),
        (222, {"email": "user0@example.org"}, UniqueViolation),
        (1, {"name": "x" * 21}, TooLong),
        (249, {"age": 2**31}, OutOfRange),
        (222, {"created_at": datetime(2024, 1, 1)}, InvalidValue),  # noqa: DTZ001
        (222, {"name": None}, NotNullViolation),
    ):
        rows = [
            {"id": key, **row, "name": "New", "created_at": LONG_AGO}
            for key, row in zip(keys, user_rows(250), strict=True)
        ]
        rows[position] |= values
        with pytest.raises(error) as caught:
            await bulk.update_many(session, User, rows, chunk_size=100)
        assert caught.value.row_index == position
        assert await session.scalar(select(func.count()).where(User.name == "New")) == 0


async def test_a_rejected_row_of_an_upsert_is_identified_by_its_position_in_the_input(
    session: AsyncSession,
) -> None:
    rows = list(reversed(user_rows(250)))
    rows[123] = {**rows[123], "age": -1}
    with pytest.raises(CheckViolation) as caught:
        await bulk.upsert_many(session, User, rows, on=["email"], chunk_size=100)
    assert caught.value.row_index == 123
    twice = [*rows[:10], *rows[:10], rows[123], *rows[20:30]]
    with pytest.raises(CheckViolation) as caught:
        await bulk.upsert_many(session, User, twice, on=["email"])
    assert caught.value.row_index == 20
    assert await emails(session) == []


async def test_a_key_that_cannot_be_deleted_or_updated_is_identified(session: AsyncSession) -> None:
    keys = await make_users(session, 10)
    await bulk.insert_many(session, Order, [{"user_id": keys[7]}])
    with pytest.raises(ForeignKeyViolation) as caught:
        await bulk.delete_many(session, User, [uuid4(), *keys])
    assert caught.value.row_index == 8
    with pytest.raises(CheckViolation) as checked:
        await bulk.update_by_key(session, User, [keys[3], *keys[:6]], {"age": 4 - User.age})
    assert checked.value.row_index == 6
    assert list(await session.scalars(select(User.age).order_by(User.id))) == list(range(10))


async def test_a_key_of_another_type_is_identified(session: AsyncSession) -> None:
    with pytest.raises(InvalidValue) as caught:
        await bulk.update_many(session, Counter, [{"id": i if i != 30 else "x", "value": 1} for i in range(50)])
    assert caught.value.row_index == 30
    for call in (bulk.delete_many(session, Counter, [1, "x"]), bulk.update_by_key(session, Counter, [1, "x"], {})):
        with pytest.raises(InvalidValue) as caught:
            await call
        assert caught.value.row_index == 1
    assert await AsyncRepository(session, Counter).count() == 0


async def test_an_error_that_is_not_reproduced_identifies_no_row(session: AsyncSession) -> None:
    calls = 0

    async def write(ids: Sequence[int]) -> None:
        nonlocal calls
        calls += 1
        await session.execute(insert(Counter), [{"id": 7 if calls == 1 else id} for id in ids])

    with pytest.raises(UniqueViolation) as caught:
        async with session.begin_nested():
            await write_or_locate_rejected_row(session, [1, 2, 3], write, range(3))
    assert caught.value.row_index is None
    assert calls == 4
    assert await AsyncRepository(session, Counter).count() == 0


async def test_a_lock_timeout_identifies_no_row(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        keys = await make_users(session, 10)
    async with committed_database.session() as holder, committed_database.session() as session:
        await holder.execute(select(User).where(User.id == keys[8]).with_for_update())
        await session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(LockTimeout) as caught:
            await bulk.update_many(session, User, [{"id": key, "name": "New"} for key in keys])
        assert caught.value.row_index is None
        assert await session.scalar(select(func.count()).where(User.name == "New")) == 0


async def test_with_a_plain_engine_errors_are_those_of_sqlalchemy_and_identify_the_row_in_a_note(
    committed_database: Database,
) -> None:
    engine = create_async_engine(committed_database.engine.url)
    async with AsyncSession(engine) as session:
        with pytest.raises(IntegrityError) as caught:
            await bulk.insert_many(session, User, rows_with(134, age=-1))
        assert type(caught.value) is IntegrityError
        with pytest.raises(StatementError) as without_time_zone:
            await bulk.insert_many(session, User, rows_with(134, created_at=datetime(2024, 1, 1)))  # noqa: DTZ001
        for error in (caught.value, without_time_zone.value):
            assert error.__notes__ == ["row 134 of the input, counted from 0, was rejected, so no row was written"]
        assert await emails(session) == []
    await engine.dispose()


async def test_a_cancelled_bulk_write_writes_no_row_and_its_connection_stays_usable(
    committed_database: Database,
) -> None:
    waiting = asyncio.Event()

    async def slow() -> AsyncIterator[dict[str, Any]]:
        for row in user_rows(25):
            yield row
        waiting.set()
        await asyncio.Event().wait()

    async with committed_database.session() as session:
        await bulk.insert_many(session, User, [{"email": "first@example.org", "name": "First"}])
        task = asyncio.create_task(bulk.insert_many(session, User, slow(), chunk_size=10))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await emails(session) == ["first@example.org"]
        await session.commit()
    assert committed_database.pool_status().in_use == 0


async def test_a_bulk_write_that_is_cancelled_while_it_waits_for_a_lock_writes_no_row(
    committed_database: Database,
) -> None:
    async with committed_database.begin() as session:
        keys = await make_users(session, 10)
    for write in (
        lambda session: bulk.update_many(session, User, [{"id": key, "name": "New"} for key in keys], chunk_size=3),
        lambda session: bulk.upsert_many(
            session, User, [{"id": key, "email": str(key), "name": "New"} for key in keys], chunk_size=3
        ),
        lambda session: bulk.delete_many(session, User, keys),
    ):
        async with committed_database.session() as holder, committed_database.session() as session:
            await holder.execute(select(User).where(User.id == keys[8]).with_for_update())
            pid = (await session.execute(select(func.pg_backend_pid()))).scalar_one()
            task = asyncio.create_task(write(session))
            await until_waiting(committed_database, pid)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await session.rollback()
            assert await session.scalar(select(func.count()).where(User.name == "New")) == 0
            assert len(await emails(session)) == 10
    assert committed_database.pool_status().in_use == 0


async def until_waiting(database: Database, pid: int) -> None:
    """Return when this backend waits for a lock."""
    query = text("SELECT wait_event_type FROM pg_stat_activity WHERE pid = :pid")
    async with asyncio.timeout(10), database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        while await connection.scalar(query, {"pid": pid}) != "Lock":
            await asyncio.sleep(0.005)
