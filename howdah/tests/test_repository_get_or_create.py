"""`get_or_create`: one row for concurrent calls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import MetaData, UniqueConstraint, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah import AsyncRepository, Base, Database, NotFound, UniqueViolation, UnknownAttribute, UUIDv7PrimaryKey
from howdah._writes import single_row
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Counter, Engineer, Order, Seat, User, UserRepository
from howdah_tests.support.sample_rows import user_rows
from howdah_tests.support.waiting import until_waiting

EMAIL = "ada@example.org"


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Setting(UUIDv7PrimaryKey, Separate):
    __tablename__ = "settings"
    __table_args__ = (
        UniqueConstraint("owner", "name"),
        UniqueConstraint("name", "value", deferrable=True),
    )

    owner: Mapped[str]
    name: Mapped[str | None]
    value: Mapped[int] = mapped_column(default=7)
    load: Mapped[str | None]


async def test_the_row_is_created_once(users: UserRepository) -> None:
    with assert_statements(users.session, 3):  # the third one reads `name_length`, which is an SQL expression
        user, is_new = await users.get_or_create(email=EMAIL, defaults={"name": "Ada", "age": 36})
    assert is_new
    assert (user.name, user.age, user.nickname, user.name_length) == ("Ada", 36, "nobody", 3)
    with assert_statements(users.session, 1):
        found = await users.get_or_create(email=EMAIL, defaults={"name": "Eve"}, load=[])
    assert found == (user, False)
    assert user.name == "Ada"
    user.name = "Changed"  # the object is in the session, like one that was read
    await users.session.flush()
    assert await users.session.scalar(select(func.count()).select_from(User).where(User.name == "Changed")) == 1


async def test_a_created_row_can_have_its_relationships_loaded(users: UserRepository) -> None:
    for is_new in (True, False):
        user, created = await users.get_or_create(email=EMAIL, defaults={"name": "Ada"}, load=[User.orders])
        assert created is is_new
        assert user.orders == []


async def test_concurrent_calls_create_one_row_and_return_it(committed_database: Database) -> None:
    """Control: a SELECT and an INSERT fail with a unique violation."""
    ready = asyncio.Barrier(4)

    async def get_or_create(_: int) -> tuple[Any, bool]:
        async with committed_database.begin() as session:
            await session.connection()
            await ready.wait()
            user, is_new = await UserRepository(session).get_or_create(email=EMAIL, defaults={"name": "Ada"})
            return user.id, is_new

    async def select_and_create(_: int) -> None:
        async with committed_database.begin() as session:
            users = UserRepository(session)
            found = await users.get_by(email="eve@example.org")
            await ready.wait()
            if found is None:
                await users.create(email="eve@example.org", name="Eve")

    results = await asyncio.gather(*map(get_or_create, range(4)))
    assert len({key for key, _ in results}) == 1
    assert sorted(is_new for _, is_new in results) == [False, False, False, True]
    failed = await asyncio.gather(*map(select_and_create, range(4)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in failed) == ["NoneType"] + ["UniqueViolation"] * 3


async def test_a_call_waits_for_the_transaction_that_inserts_the_row(committed_database: Database) -> None:
    """If that transaction is rolled back, the waiting call creates the row."""

    async def create_second() -> tuple[str, bool]:
        async with committed_database.session() as session:
            user, is_new = await UserRepository(session).get_or_create(email=EMAIL, defaults={"name": "Second"})
            return user.name, is_new

    for commits, expected in ((False, ("Second", True)), (True, ("First", False))):
        async with committed_database.session() as first:
            await UserRepository(first).get_or_create(email=EMAIL, defaults={"name": "First"})
            waiting = asyncio.create_task(create_second())
            await until_waiting(committed_database)
            await (first.commit() if commits else first.rollback())
            assert await waiting == expected


async def test_another_constraint_raises_its_error(users: UserRepository) -> None:
    await users.create(id="01890000-0000-7000-8000-000000000000", email="other@example.org", name="Other")
    with pytest.raises(UniqueViolation) as caught:
        await users.get_or_create(email=EMAIL, defaults={"id": "01890000-0000-7000-8000-000000000000", "name": "Ada"})
    assert caught.value.constraint == "pk_users"


async def test_attributes_without_a_unique_constraint_are_rejected(session: AsyncSession) -> None:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    settings = AsyncRepository(session, Setting)
    created, is_new = await settings.get_or_create(name="a", owner="b")
    assert (created.value, is_new) == (7, True)
    with assert_statements(session, 0):
        for attributes in ({"owner": "b"}, {"name": "a", "value": 7}, {"owner": "b", "name": "a", "value": 7}, {}):
            with pytest.raises(ValueError, match=r"no unique constraint on exactly .* move attributes"):
                await settings.get_or_create(**attributes)
        with pytest.raises(ValueError, match="name must not be None"):
            await settings.get_or_create(owner="b", name=None)
        with pytest.raises(ValueError, match="owner can't be in `defaults` too"):
            await settings.get_or_create(owner="b", name="a", defaults={"owner": "c"})
        with pytest.raises(UnknownAttribute):
            await settings.get_or_create(owner="b", name="a", defaults={"colour": "c"})
        with pytest.raises(TypeError, match="Setting has an attribute 'load'"):
            await settings.get_or_create(owner="b", name="a", load=5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="Engineer is stored in several tables"):
            await AsyncRepository(session, Engineer).get_or_create(id="01890000-0000-7000-8000-000000000000")


async def test_keys_of_any_kind_can_be_the_attributes(session: AsyncSession) -> None:
    seats = AsyncRepository(session, Seat)
    seat, is_new = await seats.get_or_create(number=1, row="A", defaults={"taken_by": "Ada"})
    assert (seat.taken_by, is_new) == ("Ada", True)
    assert await seats.get_or_create(row="A", number=1) == (seat, False)
    counter, _ = await AsyncRepository(session, Counter).get_or_create(id=5)
    assert counter.value == 0


async def test_a_versioned_row_has_its_first_version(users: UserRepository) -> None:
    user = await users.create(**user_rows(1)[0])
    orders = AsyncRepository(users.session, Order)
    key = "01890000-0000-7000-8000-000000000000"
    order, _ = await orders.get_or_create(id=key, defaults={"user_id": user.id, "details": None})
    assert order.version == 1
    await orders.update(order, total_cents=5)
    assert order.version == 2


async def test_a_row_that_a_trigger_suppresses_is_not_found(users: UserRepository) -> None:
    for statement in (
        "CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER suppress BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION suppress()",
    ):
        await users.session.execute(text(statement))
    for earlier_record in ("", "0:5", "0:5:(0,1)"):  # of another transaction or statement
        await users.session.execute(select(func.set_config("howdah.conflicts", earlier_record, True)))
        with pytest.raises(NotFound) as caught:
            await users.get_or_create(email=EMAIL, defaults={"name": "Ada"})
        assert "a trigger has suppressed it" in caught.value.__notes__[0]


async def test_a_row_that_is_deleted_between_the_insert_and_the_read_is_created_again(
    users: UserRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await users.create(email=EMAIL, name="Old")
    find, get_by = single_row._find, users.get_by

    async def see_nothing(**_: Any) -> None:
        """The row is inserted by another transaction after the first read."""
        monkeypatch.setattr(users, "get_by", get_by)

    async def delete_and_find(*arguments: Any) -> Any:
        await users.delete_where(User.id == old.id)
        return await find(*arguments)

    monkeypatch.setattr(users, "get_by", see_nothing)
    monkeypatch.setattr(single_row, "_find", delete_and_find)
    user, is_new = await users.get_or_create(email=EMAIL, defaults={"name": "New"})
    assert (user.name, is_new, user is old) == ("New", True, False)
