"""Sessions: what they commit and reject, and the sessions of a database that is bound to a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import exc, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from howdah import (
    Database,
    InvalidStatement,
    InvalidValue,
    ReadOnly,
    TooLong,
    UniqueViolation,
    run_transaction,
    savepoint,
)
from howdah_tests.support.sample_models import User
from howdah_tests.support.sample_rows import new_user, users


class TestSessions:
    async def test_roll_back_uncommitted_work_by_default(self, committed_database: Database) -> None:
        async with committed_database.session() as session:
            session.add(new_user())
            await session.flush()
        assert await users(committed_database) == 0
        async with committed_database.session_factory() as session:
            session.add(new_user())
            await session.commit()
        assert await users(committed_database) == 1

    async def test_begin_commits_on_leaving_and_rolls_back_on_an_exception(self, committed_database: Database) -> None:
        async with committed_database.begin() as session:
            session.add(new_user())
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with committed_database.begin() as session:
                session.add(new_user("grace@example.com"))
                await session.flush()
                _ = 1 / 0
        assert await users(committed_database) == 1

    async def test_reject_writes_when_read_only(self, real_database: Database) -> None:
        for read_only in (real_database.session(read_only=True), real_database.begin(read_only=True)):
            async with read_only as session:
                assert await session.scalar(select(func.count()).select_from(User)) == 0
                session.add(new_user())
                with pytest.raises(ReadOnly):
                    await session.flush()
                await session.rollback()
        assert real_database.pool_status().idle == 1  # so the next session uses the same connection
        async with real_database.session() as session:
            session.add(new_user())
            await session.flush()

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    async def test_have_the_requested_isolation_level(self, level: Any, real_database: Database) -> None:
        shown = text("SHOW transaction_isolation")
        async with real_database.session(isolation_level=level, read_only=True) as session:
            assert await session.scalar(shown) == level.lower()
            await session.commit()
            assert await session.scalar(shown) == level.lower()
        async with real_database.begin(isolation_level=level) as session:
            assert await session.scalar(shown) == level.lower()
        assert real_database.pool_status().idle == 1
        async with real_database.session() as session:
            assert await session.scalar(shown) == "read committed"

    async def test_reject_use_after_they_were_closed(self, real_database: Database) -> None:
        async with real_database.session() as session:
            pass
        with pytest.raises(exc.InvalidRequestError, match="permanently closed"):
            await session.execute(text("SELECT 1"))


async def suppress_error(session: AsyncSession) -> None:
    async with savepoint(session):
        session.add(new_user("grace@example.com"))
        await session.flush()
        with pytest.raises(InvalidValue):
            await session.execute(text("SELECT 1/0"))


class TestAbortedTransactions:
    """After an error in a transaction, PostgreSQL rolls back on COMMIT, without an error."""

    async def test_control_plain_sqlalchemy_rolls_back_without_an_error(self, committed_url: str) -> None:
        engine = create_async_engine(committed_url)
        async with AsyncSession(engine) as session:
            session.add(new_user())
            await session.flush()
            with pytest.raises(exc.DBAPIError):
                await session.execute(text("SELECT 1/0"))
            await session.commit()
            assert await session.scalar(select(func.count()).select_from(User)) == 0
        await engine.dispose()

    async def test_cannot_be_committed(self, committed_database: Database) -> None:
        async with committed_database.session() as session:
            session.add(new_user())
            await session.flush()
            with pytest.raises(InvalidValue) as first:
                await session.execute(text("SELECT 1/0"))
            with pytest.raises(InvalidValue) as again:
                await session.commit()
            assert again.value is first.value
            assert "use a savepoint" in again.value.__notes__[0]
            await session.rollback()
            session.add(new_user())
            await session.commit()
        assert await users(committed_database) == 1
        assert committed_database.pool_status().in_use == 0

    async def test_fail_in_begin_and_run_transaction(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            with pytest.raises(InvalidValue):
                await session.execute(text("SELECT 1/0"))

        with pytest.raises(InvalidValue):
            async with real_database.begin() as session:
                await work(session)
        with pytest.raises(InvalidValue):
            await run_transaction(real_database, work)
        assert real_database.pool_status().in_use == 0

    async def test_cannot_be_committed_on_a_bare_connection(self, real_database: Database) -> None:
        async with real_database.engine.connect() as connection:
            for _ in range(2):
                with pytest.raises(InvalidValue):
                    await connection.execute(text("SELECT 1/0"))
                with pytest.raises(InvalidValue):
                    await connection.commit()
                await connection.rollback()
            assert await connection.scalar(text("SELECT 1")) == 1
            await connection.commit()

    async def test_do_not_arise_from_an_error_in_a_savepoint(self, committed_database: Database) -> None:
        async with committed_database.begin() as session:
            session.add(new_user())
            with pytest.raises(InvalidValue):
                async with savepoint(session):
                    await session.execute(text("SELECT 1/0"))
        assert await users(committed_database) == 1

    async def test_are_rolled_back_to_the_savepoint_in_which_an_error_was_suppressed(
        self, committed_database: Database
    ) -> None:
        async with committed_database.begin() as session:
            session.add(new_user())
            with pytest.raises(InvalidValue):
                await suppress_error(session)
        assert await users(committed_database) == 1

    async def test_do_not_arise_from_statements_that_were_never_sent(self, real_database: Database) -> None:
        async with real_database.begin() as session:
            await session.execute(text("SELECT 1"))
            with pytest.raises(InvalidValue):
                await session.execute(text("SELECT CAST(:n AS int)"), {"n": 2**40})

    async def test_by_a_flush_cannot_be_committed(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            session.add(User(email="a", name="a name that is too long"))
            with pytest.raises(TooLong):
                await session.flush()

        with pytest.raises(exc.PendingRollbackError):
            async with real_database.begin() as session:
                await work(session)
        async with real_database.session() as session:
            await work(session)
            with pytest.raises(exc.PendingRollbackError):
                await session.commit()
        async with (
            AsyncSession(real_database.engine) as session,
            session.begin(),
        ):
            await work(session)

    async def test_may_be_rolled_back_by_hand(self, real_database: Database) -> None:
        async with real_database.begin() as session:
            with pytest.raises(InvalidValue):
                await session.execute(text("SELECT 1/0"))
            await session.rollback()

    async def test_do_not_arise_with_autocommit(self, real_database: Database) -> None:
        engine = real_database.engine.execution_options(isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            with pytest.raises(InvalidValue):
                await connection.execute(text("SELECT 1/0"))
            await connection.commit()


class TestBoundDatabase:
    @pytest.fixture
    async def bound(self, real_database: Database) -> AsyncIterator[Database]:
        async with real_database.engine.connect() as connection:
            transaction = await connection.begin()
            yield real_database.bound_to(connection)
            await transaction.rollback()

    async def test_keeps_committed_rows_until_its_connection_is_rolled_back(
        self, bound: Database, real_database: Database
    ) -> None:
        async with bound.begin() as session:
            session.add(new_user())
        async with bound.session() as session:
            session.add(new_user("grace@example.com"))
            await session.commit()
        assert await users(bound) == 2
        assert await users(real_database) == 0

    async def test_rolls_a_session_back_to_its_beginning(self, bound: Database) -> None:
        async with bound.begin() as session:
            session.add(new_user())
        async with bound.session() as session:
            session.add(new_user("grace@example.com"))
            await session.flush()
            await session.rollback()
            session.add(new_user("edsger@example.com"))
            await session.flush()
        with pytest.raises(UniqueViolation):
            async with bound.begin() as session:
                session.add(new_user())
        assert await users(bound) == 1

    async def test_uses_only_the_connection_that_it_is_bound_to(self, bound: Database, real_database: Database) -> None:
        assert await users(bound) == 0
        assert real_database.pool_status().in_use == 1
        assert real_database.pool_status().idle == 0

    async def test_runs_transactions_while_a_session_is_open(self, bound: Database) -> None:
        async def work(session: AsyncSession) -> str:
            session.add(new_user())
            return "done"

        assert await run_transaction(bound, work, isolation_level="SERIALIZABLE") == "done"
        async with bound.begin():
            pass
        async with bound.begin() as session:
            await session.execute(text("DELETE FROM users"))
            assert await run_transaction(bound, work) == "done"
        assert await users(bound) == 1

    async def test_rejects_writes_when_read_only_and_accepts_them_afterwards(self, bound: Database) -> None:
        for read_only in (bound.session(read_only=True), bound.begin(read_only=True)):
            async with read_only as session:
                with pytest.raises(ReadOnly):
                    await session.execute(insert(User).values(email="a@example.org", name="a"))
                await session.rollback()
        async with bound.begin() as session:
            session.add(new_user())
        assert await users(bound) == 1

    async def test_rejects_a_commit_after_an_error(self, bound: Database) -> None:
        async with bound.session() as session:
            with pytest.raises(InvalidValue):
                await session.execute(text("SELECT 1/0"))
            with pytest.raises(InvalidValue):
                await session.commit()
        async with bound.begin() as session:
            session.add(new_user())
        assert await users(bound) == 1

    async def test_can_be_closed_alone(self, bound: Database, real_database: Database) -> None:
        await bound.close()
        with pytest.raises(RuntimeError):
            bound.session()
        real_database.session()

    async def test_autocommit_is_rolled_back_with_the_rest(self, bound: Database, real_database: Database) -> None:
        async with bound.autocommit() as same:
            await same.execute(insert(User).values(email="ada@example.com", name="Ada"))
        with pytest.raises(InvalidStatement):
            async with bound.autocommit() as same:
                await same.execute(text("SELECT nothing FROM nowhere"))
        assert await users(bound) == 1
        assert await users(real_database) == 0


class TestAutocommit:
    async def test_each_statement_is_committed_at_once(self, committed_database: Database) -> None:
        """Control: a statement of a session isn't committed at once."""
        async with committed_database.autocommit() as connection:
            await connection.execute(insert(User).values(email="ada@example.com", name="Ada"))
            assert await users(committed_database) == 1
            with pytest.raises(InvalidStatement):
                await connection.execute(text("SELECT nothing FROM nowhere"))
            await connection.execute(insert(User).values(email="grace@example.com", name="Grace"))
            assert await users(committed_database) == 2
        async with committed_database.session() as session:
            await session.execute(insert(User).values(email="alan@example.com", name="Alan"))
            assert await users(committed_database) == 2

    async def test_a_closed_database_rejects_autocommit(self, database_url: str) -> None:
        database = Database(database_url)
        await database.close()
        with pytest.raises(RuntimeError, match="closed"):
            async with database.autocommit():
                pass
