"""Bulk writes of tables with unusual columns: COPY and arrays have the same result as an INSERT of each row."""

from __future__ import annotations

import enum
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    Dialect,
    Enum,
    Identity,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, Database, DatabaseError, UpsertResult, UUIDv7PrimaryKey, bulk
from howdah_tests.support.sample_models import Label, User, Vehicle
from howdah_tests.support.sample_rows import user_rows

MANY = 40


class Separate(Base):
    """The base of tables that the test database doesn't have."""

    __abstract__ = True
    metadata = MetaData()


def raise_stop_iteration() -> str:
    return next(iter(()))


class Exhausted(Separate):
    __tablename__ = "exhausted"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    word: Mapped[str] = mapped_column(default=raise_stop_iteration)


class Known(TypeDecorator[int]):
    """Sends the number of a word."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> int:
        return next(number for number, word in enumerate(["one", "two"]) if word == value)


class Worded(Separate):
    __tablename__ = "worded"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    word: Mapped[Any] = mapped_column(Known)


class Defaulted(Separate):
    __tablename__ = "defaulted"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    at = mapped_column(String, default="then")


def with_name(function: Callable[[], str]) -> Callable[[Any], str]:
    @functools.wraps(function)
    def wrapped(context: Any) -> str:
        return f"{function()} {context.get_current_parameters()['name']}"

    return wrapped


class Slugged(Separate):
    __tablename__ = "slugged"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    slug: Mapped[str] = mapped_column(default=with_name(lambda: "slug"))


class Unmapped(Separate):
    __table__ = Table(
        "unmapped",
        Separate.metadata,
        Column("id", Integer, Identity(), primary_key=True),
        Column("name", String, unique=True),
        Column("hidden", String, default="hidden"),
    )
    __mapper_args__ = {"exclude_properties": ["hidden"]}  # noqa: RUF012


class Always(Separate):
    __tablename__ = "always"
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Old(Separate):
    __tablename__ = "old"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


class Locked(Separate):
    __tablename__ = "locked"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


class Requested(Separate):
    __tablename__ = "requested"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


class Colour(enum.Enum):
    RED = 1


class Documented(TypeDecorator[Any]):
    impl = JSON
    cache_ok = True


class Described(Separate):
    __tablename__ = "described"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tags: Mapped[Any] = mapped_column(ARRAY(String), unique=True)
    document: Mapped[Any] = mapped_column(JSONB, unique=True)
    plain: Mapped[Any] = mapped_column(Documented)
    colour: Mapped[Any] = mapped_column(Enum(Colour, name="a colour(5)"), default=Colour.RED)


class Contextual(Separate):
    __tablename__ = "contextual"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    shown: Mapped[str | None] = mapped_column(onupdate=lambda context: context.get_current_parameters()["name"])


class Employee(UUIDv7PrimaryKey, Separate):
    __tablename__ = "employees"
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}  # noqa: RUF012


class Manager(Employee):
    bonus: Mapped[int | None] = mapped_column(default=5)
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


@pytest.fixture
async def tables(session: AsyncSession) -> AsyncIterator[AsyncSession]:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    yield session
    await session.rollback()


async def count(session: AsyncSession, model: type[Any]) -> int:
    return (await session.scalars(select(func.count()).select_from(model))).one()


@pytest.mark.parametrize("many", [3, MANY])
async def test_a_stop_iteration_in_a_default_or_a_type_fails_instead_of_ending_the_rows(
    tables: AsyncSession, many: int
) -> None:
    with pytest.raises((StatementError, RuntimeError)):
        await bulk.insert_many(tables, Exhausted, [{} for _ in range(many)])
    with pytest.raises(StatementError) as caught:
        await bulk.insert_many(tables, Worded, [{"word": "one"}] * (many - 1) + [{"word": "three"}], keys=False)
    assert getattr(caught.value, "row_index", many - 1) == many - 1
    assert (await count(tables, Exhausted), await count(tables, Worded)) == (0, 0)


@pytest.mark.parametrize("many", [3, MANY])
@pytest.mark.parametrize("keys", [True, False])
async def test_rows_without_values_are_all_inserted_with_defaults(tables: AsyncSession, many: int, keys: bool) -> None:
    assert (await bulk.insert_many(tables, Defaulted, [{}] * many, keys=keys)).count == many
    assert await count(tables, Defaulted) == many


@pytest.mark.parametrize("many", [3, MANY])
async def test_defaults_apply_if_they_are_wrapped_unmapped_or_of_a_subclass(tables: AsyncSession, many: int) -> None:
    rows = [{"name": f"{n}"} for n in range(many)]
    await bulk.insert_many(tables, Slugged, rows, keys=False)
    assert set(await tables.scalars(select(Slugged.slug))) == {f"slug {n}" for n in range(many)}
    await bulk.insert_many(tables, Unmapped, rows, keys=False)
    await bulk.upsert_many(tables, Unmapped, [{"name": f"more {n}"} for n in range(many)], on=["name"])
    assert list(await tables.scalars(text("SELECT DISTINCT hidden FROM unmapped"))) == ["hidden"]
    await bulk.insert_many(tables, Employee, rows)
    assert list(await tables.scalars(text("SELECT DISTINCT bonus FROM employees"))) == [5]


@pytest.mark.parametrize("many", [3, MANY])
async def test_a_value_for_a_generated_always_key_is_rejected(tables: AsyncSession, many: int) -> None:
    with pytest.raises(DBAPIError, match="non-DEFAULT"):
        await bulk.insert_many(tables, Always, [{"id": n, "name": f"{n}"} for n in range(many)])


async def test_rows_with_generated_keys_can_be_upserted_by_another_column(tables: AsyncSession) -> None:
    rows = [{"name": f"{n}"} for n in range(5)]
    for model in (Always, Unmapped):
        assert await bulk.upsert_many(tables, model, rows[:3], on=["name"]) == UpsertResult(3, 0, 0)
        assert await bulk.upsert_many(tables, model, rows, on=["name"]) == UpsertResult(2, 0, 3)
        assert await count(tables, model) == 5


async def test_rows_with_and_without_a_key_can_be_far_apart(tables: AsyncSession) -> None:
    rows = [{"id": None if n < 1000 else 5000 + n, "at": "now"} for n in range(2000)]
    assert (await bulk.insert_many(tables, Defaulted, rows, keys=False)).count == 2000
    assert await count(tables, Defaulted) == 2000


@pytest.mark.parametrize("model", [Old, Locked, Requested])
async def test_tables_may_have_any_name(tables: AsyncSession, model: Any) -> None:
    rows = [{"id": n, "value": n} for n in range(30)]
    assert await bulk.upsert_many(tables, model, rows[:10]) == UpsertResult(10, 0, 0)
    assert await bulk.upsert_many(tables, model, [{"id": n, "value": -n} for n in range(1, 20)]) == UpsertResult(
        10, 9, 0
    )
    assert (await bulk.update_many(tables, model, rows)).count == 20
    assert (await bulk.update_by_key(tables, model, range(5), {"value": 1})).count == 5
    assert await bulk.update_where(tables, model, model.value == 1, {"value": 2}) == 5
    assert (await bulk.delete_many(tables, model, range(5))).count == 5


async def test_rows_can_be_matched_by_arrays_and_json_documents(tables: AsyncSession) -> None:
    rows = [{"tags": [f"{n % 3}"], "document": {"n": n % 3}, "plain": {"n": n}} for n in range(6)]
    assert await bulk.upsert_many(tables, Described, rows, on=["tags"]) == UpsertResult(3, 3, 0)
    assert await bulk.upsert_many(tables, Described, rows[3:], on=["document"]) == UpsertResult(0, 0, 3)


async def test_an_onupdate_that_upsert_cannot_call_is_reported(tables: AsyncSession) -> None:
    with pytest.raises(TypeError, match=r"can't call the onupdate of Contextual\.shown"):
        await bulk.upsert_many(tables, Contextual, [{"id": 1, "name": "a"}])


async def test_an_upsert_does_not_change_rows_of_another_class(tables: AsyncSession) -> None:
    (key,) = (await bulk.insert_many(tables, Employee, [{"name": "E"}])).keys
    assert await bulk.upsert_many(tables, Manager, [{"id": key, "name": "M", "bonus": 1}]) == UpsertResult(0, 0, 1)
    assert await tables.scalar(select(Employee.name)) == "E"
    (boss,) = (await bulk.insert_many(tables, Manager, [{"name": "B"}])).keys
    assert await bulk.upsert_many(tables, Manager, [{"id": boss, "name": "C", "bonus": 1}]) == UpsertResult(0, 1, 0)


async def test_a_loaded_object_of_a_subclass_is_refreshed_completely(tables: AsyncSession) -> None:
    (key,) = (await bulk.insert_many(tables, Manager, [{"name": "M", "bonus": 7}])).keys
    manager = await tables.get_one(Manager, key)
    await bulk.update_many(tables, Employee, [{"id": key, "name": "N"}])
    assert (manager.name, manager.bonus) == ("N", 7)


@pytest.mark.parametrize("many", [5, MANY])
async def test_a_row_that_a_trigger_rejects_is_identified(session: AsyncSession, many: int) -> None:
    await session.execute(
        text(
            "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF NEW.age = 3 THEN RAISE 'no threes'; END IF; RETURN NEW; END $$"
        )
    )
    await session.execute(text("CREATE TRIGGER reject BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION reject()"))
    with pytest.raises(DatabaseError, match="no threes") as caught:
        await bulk.insert_many(session, User, user_rows(many))
    assert caught.value.row_index == 3


@pytest.mark.parametrize("many", [5, MANY])
async def test_the_schema_translate_map_of_the_session_applies(committed_database: Database, many: int) -> None:
    tenant = committed_database.engine.execution_options(schema_translate_map={None: "tenant"})
    async with AsyncSession(tenant) as session:
        await session.execute(text("CREATE SCHEMA tenant"))
        await session.execute(text("CREATE TABLE tenant.labels (LIKE public.labels INCLUDING ALL)"))
        await bulk.insert_many(session, Label, [{"name": f"{n}"} for n in range(many)])
        assert (await session.scalars(text("SELECT count(*) FROM tenant.labels"))).one() == many


async def test_a_session_may_bind_each_class_to_an_engine(committed_url: str) -> None:
    engine = create_async_engine(committed_url)
    async with AsyncSession(binds={User: engine, Vehicle: engine}) as session:
        assert (await bulk.insert_many(session, User, user_rows(MANY))).count == MANY
        assert await bulk.upsert_many(session, User, user_rows(MANY), on=["email"]) == UpsertResult(0, 0, MANY)
    await engine.dispose()
