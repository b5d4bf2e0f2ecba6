from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import ForeignKey, MetaData, event, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, relationship

from howdah import (
    NAMING_CONVENTION,
    Base,
    Database,
    DeadlockDetected,
    InvalidValue,
    LockTimeout,
    NotFound,
    UUIDv7PrimaryKey,
    Versioned,
    lock,
    uuid7,
)
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Counter, Label, Seat, User
from howdah_tests.support.waiting import until_waiting


class Model(Base):
    """The base of tables that the test database doesn't have."""

    __abstract__ = True
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Account(UUIDv7PrimaryKey, Versioned, Model):
    """Its relationships are loaded in the same statement."""

    __tablename__ = "accounts"

    owner_id: Mapped[UUID | None] = mapped_column(ForeignKey("owners.id"))
    balance: Mapped[int] = mapped_column(default=0)

    owner: Mapped[Owner | None] = relationship(lazy="joined")
    entries: Mapped[list[Entry]] = relationship(lazy="joined")
    kind: Mapped[str] = mapped_column(default="account")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "account"}  # noqa: RUF012


class Savings(Account):
    __tablename__ = "savings"

    id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    rate: Mapped[int] = mapped_column(default=1)
    __mapper_args__ = {"polymorphic_identity": "savings"}  # noqa: RUF012


class Owner(UUIDv7PrimaryKey, Model):
    __tablename__ = "owners"

    name: Mapped[str]


class Entry(UUIDv7PrimaryKey, Model):
    __tablename__ = "entries"

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    amount: Mapped[int]


@pytest.fixture
async def own_tables(session: AsyncSession) -> AsyncSession:
    await (await session.connection()).run_sync(Model.metadata.create_all)
    return session


@pytest.fixture
async def counters(committed_database: Database) -> Database:
    """A database with the committed counters 1 to 10."""
    async with committed_database.begin() as session:
        session.add_all(Counter(id=n) for n in range(1, 11))
    return committed_database


async def locked_in(session: AsyncSession, *ids: Any, model: type[Any] = Counter) -> list[Any]:
    return list(await lock(session, model, ids))


class TestOrder:
    async def test_is_that_of_the_keys_for_any_order_of_the_input(self, session: AsyncSession) -> None:
        session.add_all(Counter(id=n) for n in range(1, 11))
        await session.flush()
        locked = await lock(session, Counter, [7, 3, 9, 3, 1])
        assert list(locked) == [1, 3, 7, 9]
        assert [row.id for row in locked.values()] == [1, 3, 7, 9]

    @pytest.mark.parametrize("disabled", ["enable_sort", "enable_indexscan", "enable_bitmapscan"])
    async def test_is_that_of_the_keys_for_any_plan(self, disabled: str, session: AsyncSession) -> None:
        """LockRows is above the sort or above a scan in key order, so PostgreSQL locks the rows in this order."""
        await session.execute(text(f"SET LOCAL {disabled} = off"))
        statements: list[str] = []
        event.listen(session.sync_session, "do_orm_execute", lambda state: statements.append(str(state.statement)))
        await lock(session, Counter, [2, 1], skip_locked=True)
        query = statements[0].replace(":howdah_parameter_1", "'{2,1}'")
        plan = [line async for line in await session.stream_scalars(text(f"EXPLAIN {query}"))]
        assert plan[0].startswith("LockRows")
        assert "Sort" in plan[1] or "Index Scan using pk_counters" in plan[1]

    async def test_prevents_deadlocks_of_concurrent_clients(self, counters: Database) -> None:
        keys = list(range(1, 11))

        async def client(seed: int) -> None:
            shuffle = random.Random(seed)
            for _ in range(20):
                async with counters.begin() as session:
                    for counter in (await lock(session, Counter, shuffle.sample(keys, 5))).values():
                        counter.value += 1

        await asyncio.gather(*(client(seed) for seed in range(16)))
        async with counters.session() as session:
            assert await session.scalar(select(func.sum(Counter.value))) == 16 * 20 * 5

    async def test_control_the_order_of_the_arguments_deadlocks(self, counters: Database) -> None:
        """The reference's `transfer_funds` locks the rows one by one, in the order of its arguments."""
        reached = asyncio.Barrier(2)

        async def client(first: int, second: int) -> None:
            async with counters.begin() as session:
                await session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
                await session.get(Counter, first, with_for_update=True)
                await reached.wait()
                await session.get(Counter, second, with_for_update=True)

        outcomes = await asyncio.gather(client(1, 2), client(2, 1), return_exceptions=True)
        assert [type(each) for each in outcomes if each] == [DeadlockDetected]

    async def test_of_composite_keys_is_that_of_their_columns(self, session: AsyncSession) -> None:
        seats = [("b", 1), ("a", 10), ("a", 9), ("A", 1)]
        session.add_all(Seat(row=row, number=number) for row, number in seats)
        await session.flush()
        ordered = select(Seat.row, Seat.number).order_by(Seat.row, Seat.number)
        in_order = [tuple(row) for row in await session.execute(ordered)]
        assert await locked_in(session, *seats, model=Seat) == in_order


class TestReading:
    async def test_returns_the_current_row(self, counters: Database) -> None:
        async with counters.session() as session, counters.session() as other:
            read_before = await session.get(Counter, 1)
            assert read_before is not None
            await other.execute(update(Counter).values(value=5))
            await other.commit()
            assert read_before.value == 0
            locked = await lock(session, Counter, [1])
            assert locked[1] is read_before
            assert read_before.value == 5

    async def test_waits_for_the_holder_and_returns_the_changed_row(self, counters: Database) -> None:
        async with counters.session() as holder, counters.session() as session:
            loaded = (await lock(holder, Counter, [1]))[1]
            read_before = (await session.scalars(select(Counter).where(Counter.id == 1))).one()
            waiting = asyncio.create_task(lock(session, Counter, [1]))
            await until_waiting(counters)
            loaded.value = 7
            await holder.commit()
            assert (await waiting)[1] is read_before
            assert read_before.value == 7

    @pytest.mark.parametrize("how", ["get", "select"])
    async def test_control_without_lock_the_object_is_stale(self, how: str, counters: Database) -> None:
        """SQLAlchemy locks the row of an object that is already loaded, but doesn't read the row again."""
        async with counters.session() as session, counters.session() as other:
            loaded = await session.get(Counter, 1)
            assert loaded is not None
            await other.execute(update(Counter).values(value=5))
            await other.commit()
            if how == "get":
                assert await session.get(Counter, 1, with_for_update=True) is loaded
            else:
                assert (await session.scalars(select(Counter).where(Counter.id == 1).with_for_update())).one() is loaded
            assert loaded.value == 0

    async def test_flushes_pending_changes_first(self, session: AsyncSession) -> None:
        session.add(changed := Counter(id=1))
        await session.flush()
        session.sync_session.autoflush = False
        changed.value = 3
        session.add(Counter(id=2, value=4))
        locked = await lock(session, Counter, [1, 2])
        assert [row.value for row in locked.values()] == [3, 4]

    async def test_sends_one_statement(self, session: AsyncSession) -> None:
        session.add_all(Counter(id=n) for n in range(1, 4))
        await session.flush()
        session.expunge_all()
        with assert_statements(session, 1) as sent:
            await lock(session, Counter, [1, 2, 3])
        assert "FOR UPDATE OF counters" in sent[0]
        with assert_statements(session, 0):
            assert await lock(session, Counter, []) == {}

    async def test_locks_only_the_rows_of_the_model(self, own_tables: AsyncSession) -> None:
        account = Account(owner=Owner(name="Ada"), entries=[Entry(amount=1), Entry(amount=2)])
        own_tables.add_all([account, Account()])
        await own_tables.flush()
        own_tables.expunge_all()
        with assert_statements(own_tables, 2) as sent:  # joined rows are read after the lock
            locked = (await lock(own_tables, Account, [account.id]))[account.id]
        assert sent[0].endswith("FOR UPDATE OF accounts")
        assert locked.owner is not None
        assert locked.owner.name == "Ada"
        assert {entry.amount for entry in locked.entries} == {1, 2}

    async def test_accepts_models_with_joined_table_inheritance(self, own_tables: AsyncSession) -> None:
        savings = [Savings(balance=n) for n in range(3)]
        own_tables.add_all(savings)
        await own_tables.flush()
        own_tables.expunge_all()
        keys = [each.id for each in savings]
        locked = await lock(own_tables, Savings, reversed(keys))
        assert [each.balance for each in locked.values()] == [0, 1, 2]
        locked[keys[0]].balance += 1
        locked[keys[0]].rate += 1
        await own_tables.flush()
        assert locked[keys[0]].version == 2
        assert {type(each) for each in (await lock(own_tables, Account, keys)).values()} == {Savings}


class TestKeys:
    async def test_that_are_missing_are_reported_in_the_order_of_the_input(self, session: AsyncSession) -> None:
        session.add(Counter(id=5))
        await session.flush()
        with pytest.raises(NotFound) as caught:
            await lock(session, Counter, [9, 5, 2, 9])
        assert caught.value.model is Counter
        assert caught.value.keys == [9, 2]

    async def test_may_be_more_than_the_maximum_of_parameters(self, session: AsyncSession) -> None:
        session.add_all(Counter(id=n) for n in (1, 20_000, 40_000))
        await session.flush()
        with assert_statements(session, 1):
            locked = await lock(session, Counter, range(40_000, 0, -1), skip_locked=True)
        assert list(locked) == [1, 20_000, 40_000]
        with pytest.raises(NotFound) as caught:
            await lock(session, Counter, range(40_000, 0, -1))
        assert len(caught.value.keys) == 39_997

    async def test_may_be_uuids_as_text(self, session: AsyncSession) -> None:
        user = User(email="a", name="a")
        session.add(user)
        await session.flush()
        locked = await lock(session, User, [str(user.id), user.id, str(user.id).upper()])
        assert locked == {user.id: user}
        with pytest.raises(InvalidValue, match="UUID"):
            await lock(session, User, ["secret"])
        missing = uuid7()
        with pytest.raises(NotFound) as caught:
            await lock(session, User, [str(missing)])
        assert caught.value.keys == [missing]

    async def test_may_come_from_an_iterator(self, session: AsyncSession) -> None:
        session.add_all(Label(name=name) for name in "ab")
        await session.flush()
        assert list(await lock(session, Label, iter("ba"))) == ["a", "b"]

    async def test_may_be_composite(self, session: AsyncSession) -> None:
        session.add_all(Seat(row="a", number=number) for number in (1, 2))
        await session.flush()
        locked = await lock(session, Seat, [("a", 2), ("a", 1)])
        assert list(locked) == [("a", 1), ("a", 2)]
        with pytest.raises(NotFound) as caught:
            await lock(session, Seat, [("a", 2), ("b", 2)])
        assert caught.value.keys == [("b", 2)]
        with pytest.raises(ValueError, match="a key of Seat needs one value for each column"):
            await lock(session, Seat, [("a",)])


class TestWaiting:
    @pytest.fixture
    async def session_with_a_holder(self, counters: Database) -> AsyncIterator[AsyncSession]:
        """A session; another session has locked the counters 2 and 3."""
        async with counters.session() as holder, counters.session() as session:
            await lock(holder, Counter, [2, 3])
            yield session

    async def test_nowait_fails_at_once(self, session_with_a_holder: AsyncSession) -> None:
        started = time.monotonic()
        with pytest.raises(LockTimeout):
            await lock(session_with_a_holder, Counter, [1, 2], nowait=True)
        assert time.monotonic() - started < 1

    async def test_nowait_succeeds_for_free_rows(self, session_with_a_holder: AsyncSession) -> None:
        assert list(await lock(session_with_a_holder, Counter, [4, 1], nowait=True)) == [1, 4]

    async def test_skip_locked_leaves_out_locked_rows(self, session_with_a_holder: AsyncSession) -> None:
        locked = await lock(session_with_a_holder, Counter, [4, 3, 2, 1, 99], skip_locked=True)
        assert list(locked) == [1, 4]

    async def test_ends_with_the_lock_timeout_of_the_session(self, session_with_a_holder: AsyncSession) -> None:
        await session_with_a_holder.execute(text("SET LOCAL lock_timeout = '20ms'"))
        with pytest.raises(LockTimeout):
            await lock(session_with_a_holder, Counter, [1, 2])

    async def test_nowait_and_skip_locked_together_are_rejected(self, session: AsyncSession) -> None:
        with pytest.raises(ValueError, match="nowait"):
            await lock(session, Counter, [1], nowait=True, skip_locked=True)
