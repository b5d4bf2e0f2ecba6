"""`delete_where`: the rows that a criterion finds, and the session's objects of them."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from sqlalchemy import MetaData, delete, func, select, text, true
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, aliased, mapped_column

from howdah import AsyncRepository, Base, Database, DeadlockDetected, ForeignKeyViolation, bulk
from howdah.testing import assert_statements
from howdah_tests.support.case_insensitive_types import create_citext
from howdah_tests.support.sample_models import Counter, Engineer, Order, Seat, User, UserRepository
from howdah_tests.support.sample_rows import make_orders


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Alias(Separate):
    __tablename__ = "aliases"

    name: Mapped[str] = mapped_column(CITEXT, primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


async def test_the_rows_are_deleted_and_counted(users: UserRepository, twenty: list[UUID]) -> None:
    with assert_statements(users.session, 1):
        assert await users.delete_where(User.age < 5) == 5
    assert await users.count() == 15
    assert await users.delete_where(User.age < 5) == 0
    assert await users.delete_where(User.id.in_(select(User.id).where(User.age < 7))) == 2


async def test_objects_of_deleted_rows_are_expunged(users: UserRepository, twenty: list[UUID]) -> None:
    loaded = await users.list()
    loaded[0].age = 99  # flushed first, so its row is not found
    with assert_statements(users.session, 2):
        assert await users.delete_where(User.age < 10) == 9
    assert loaded[0] in users.session
    assert [user in users.session for user in loaded[1:]] == [False] * 9 + [True] * 10


async def test_an_object_with_another_spelling_of_the_key_is_expunged(session: AsyncSession) -> None:
    await create_citext(session)
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    aliases = AsyncRepository(session, Alias)
    one, two = await aliases.create(name="Ada"), await aliases.create(name="Bob")
    await session.execute(text("UPDATE aliases SET name = upper(name)"))
    assert await aliases.delete_where(Alias.name == "ada") == 1
    assert one not in session
    assert two in session


async def test_a_criterion_that_would_find_all_rows_by_mistake_is_rejected(users: UserRepository) -> None:
    """SQLAlchemy would combine each row with the rows of the other table. It takes True for all rows."""
    await users.create_many([{"email": f"{n}@example.org", "name": "Ada", "age": n} for n in range(3)])
    user = await users.get_one_by(age=1)
    other = aliased(User)
    with assert_statements(users.session, 0):
        for criterion in (Order.total_cents > 0, other.age == 1, Order.user_id == User.id):
            for write in (users.delete_where, users.update_where):
                with pytest.raises(ValueError, match=r"can't join (orders|.* alias of users): use a subquery"):
                    await write(criterion)
        for mistake in (user.age == 1, User.age is None, None):
            with pytest.raises(TypeError, match="the criterion must be an SQL condition"):
                await users.delete_where(mistake)  # type: ignore[arg-type]
        for value in (other.age, Order.total_cents + 1):
            with pytest.raises(ValueError, match="can't join"):
                await users.update_where(User.age == 1, age=value)
            with pytest.raises(ValueError, match="can't join"):
                await bulk.update_by_key(users.session, User, [user.id], {"age": value})
    oldest = select(func.max(other.age)).scalar_subquery()
    assert await users.update_where(~User.orders.any() & (User.age == oldest), age=oldest + 1) == 1
    assert await users.delete_where(User.age == oldest) == 1
    assert await users.delete_where(true()) == 2


async def test_composite_keys_and_constraints(session: AsyncSession) -> None:
    await bulk.insert_many(session, Seat, [{"row": row, "number": n} for row in "AB" for n in range(3)])
    seat = await session.get_one(Seat, ("B", 1))
    assert await bulk.delete_where(session, Seat, Seat.number == 1) == 2
    assert seat not in session
    await make_orders(session, 2)
    with pytest.raises(ForeignKeyViolation):
        await bulk.delete_where(session, User, User.age == 0)
    assert await session.scalar(select(func.count()).select_from(Order)) == 2
    with pytest.raises(TypeError, match="Engineer is stored in several tables"):
        await bulk.delete_where(session, Engineer, Engineer.name == "Ada")


async def test_two_deletes_in_opposite_order_do_not_deadlock(committed_database: Database) -> None:
    """Control: deletes of the rows one by one in opposite orders deadlock."""
    halfway = asyncio.Barrier(2)

    async def delete_both(order: int, *, together: bool) -> int:
        async with committed_database.begin() as session:
            await session.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
            await halfway.wait()
            if together:
                return await bulk.delete_where(session, Counter, Counter.value > 0)
            first, second = (1, 2)[::order]
            await session.execute(delete(Counter).where(Counter.value == first))
            await halfway.wait()
            await session.execute(delete(Counter).where(Counter.value == second))
            return 0

    for together in (True, False):
        async with committed_database.begin() as session:
            await bulk.insert_many(session, Counter, [{"value": n} for n in (1, 2)])
        results = await asyncio.gather(
            delete_both(1, together=together), delete_both(-1, together=together), return_exceptions=True
        )
        if together:
            assert sorted(result for result in results if isinstance(result, int)) == [0, 2]
        else:
            assert [type(each) for each in results if not isinstance(each, int)] == [DeadlockDetected]
