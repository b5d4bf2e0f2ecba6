"""Mapped objects as rows: a bulk write never overwrites a column that the caller didn't set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy
from pydantic import BaseModel
from sqlalchemy import MetaData, String, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, defer, mapped_column, registry

from howdah import Base, StaleRow, UpsertResult, bulk
from howdah_tests.support.sample_models import Order, User
from howdah_tests.support.sample_rows import make_orders, make_users

SHOWS_DEFAULTS = not sqlalchemy.__version__.startswith("2.0.")  # since 2.1 a dataclass doesn't store its defaults
MANY = 1100


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Careful(Separate):
    """Its constructor sets an attribute."""

    __tablename__ = "careful"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    status: Mapped[str]

    def __init__(self, *, status: str = "new", **values: Any) -> None:
        super().__init__(status=status, **values)


class Animal(Separate):
    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]
    name: Mapped[str]
    legs: Mapped[int | None]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class Bird(Animal):
    wings: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "bird"}  # noqa: RUF012


class AsDataclass(MappedAsDataclass, DeclarativeBase):
    metadata = Separate.metadata


class Task(AsDataclass):
    __tablename__ = "tasks"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(default="new")
    note: Mapped[str | None] = mapped_column(default=None)
    rank: Mapped[int | None] = mapped_column(default=None, server_default="7")


class Stamped(AsDataclass):
    __tablename__ = "stamped"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    stamp: Mapped[str] = mapped_column(String, default_factory=lambda: "made")


class TaskChange(BaseModel):
    id: int
    name: str = "unnamed"
    status: str = "new"


@pytest.fixture
async def separate(session: AsyncSession) -> AsyncIterator[AsyncSession]:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    yield session
    await session.rollback()


async def stored(session: AsyncSession, model: Any, *names: str) -> list[Any]:
    rows = await session.execute(select(*(getattr(model, name) for name in names)).order_by(model.id))
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("write", [bulk.update_many, bulk.upsert_many])
@pytest.mark.parametrize("many", [1, 25, MANY])
async def test_a_new_object_changes_only_the_passed_attributes(separate: AsyncSession, write: Any, many: int) -> None:
    rows = [{"id": n, "name": "One", "legs": 4} for n in range(many)]
    await bulk.insert_many(separate, Animal, rows)
    await write(separate, Animal, [Animal(id=n, name="Two") for n in range(many)])
    assert await stored(separate, Animal, "name", "legs") == [("Two", 4)] * many
    await bulk.insert_many(separate, Bird, [{"id": many, "name": "One", "legs": 2, "wings": 2}])
    await write(separate, Bird, [Bird(id=many, name="Two", legs=None)])
    assert await stored(separate, Bird, "name", "legs", "wings") == [("Two", None, 2)]
    await bulk.update_many(separate, Animal, [Animal(id=many, name="Three")])
    assert await stored(separate, Bird, "name", "kind") == [("Three", "bird")]


@pytest.mark.parametrize("write", [bulk.update_many, bulk.upsert_many])
async def test_a_dataclass_changes_only_the_passed_attributes_or_is_rejected(
    separate: AsyncSession, write: Any
) -> None:
    await bulk.insert_many(separate, Task, [Task(1, "One", "done", "note", 3)])
    if SHOWS_DEFAULTS:
        await write(separate, Task, [Task(id=1, name="Two")])
        assert await stored(separate, Task, "name", "status", "note", "rank") == [("Two", "done", "note", 3)]
        await write(separate, Task, [Task(id=1, name="Two", status="new", note=None)])
        assert await stored(separate, Task, "name", "status", "note", "rank") == [("Two", "new", None, 3)]
    else:
        with pytest.raises(TypeError, match="doesn't show whether status, note, rank was passed or is a default"):
            await write(separate, Task, [Task(id=1, name="Two")])
        assert await stored(separate, Task, "name", "status", "note", "rank") == [("One", "done", "note", 3)]
    await write(separate, Task, [Task(1, "Three", "late", "x", 5)])
    assert await stored(separate, Task, "name", "status", "note", "rank") == [("Three", "late", "x", 5)]


@pytest.mark.parametrize("write", [bulk.update_many, bulk.upsert_many])
async def test_an_object_whose_constructor_may_have_set_values_is_rejected_with_what_to_pass_instead(
    separate: AsyncSession, write: Any
) -> None:
    advice = "pass mappings or Pydantic models with the values to write"
    with pytest.raises(TypeError, match=f"whether stamp was passed or is a default: {advice}") as caught:
        await write(separate, Stamped, [{"id": 1, "name": "A", "stamp": "x"}, Stamped(id=1, name="Two")])
    assert caught.value.__notes__ == ["in row 1 of the input, counted from 0"]
    with pytest.raises(
        TypeError, match=f"whether a value that its constructor sets was passed or is a default: {advice}"
    ):
        await write(separate, Careful, [Careful(id=1, name="Two")])


@pytest.mark.parametrize("many", [1, 25])
async def test_new_rows_get_the_values_of_the_constructor_and_the_defaults_of_the_columns(
    separate: AsyncSession, many: int
) -> None:
    await bulk.insert_many(separate, Task, [Task(id=n, name="One") for n in range(many)])
    assert await stored(separate, Task, "name", "status", "note", "rank") == [("One", "new", None, 7)] * many
    await bulk.insert_many(separate, Stamped, [Stamped(id=n, name="One") for n in range(many)])
    assert await stored(separate, Stamped, "stamp") == [("made",)] * many
    await bulk.insert_many(separate, Careful, [Careful(id=n, name="One") for n in range(many)])
    assert await stored(separate, Careful, "status") == [("new",)] * many


async def test_an_upsert_with_update_accepts_objects_that_do_not_show_which_values_were_set(
    separate: AsyncSession,
) -> None:
    rows = [Careful(id=n, name="One", status="old") for n in range(2)]
    await bulk.insert_many(separate, Careful, rows)
    rows = [Careful(id=n, name="Two") for n in range(3)]
    assert await bulk.upsert_many(separate, Careful, rows, update=["name"]) == UpsertResult(1, 2, 0)
    assert await stored(separate, Careful, "name", "status") == [("Two", "old"), ("Two", "old"), ("Two", "new")]


@pytest.mark.parametrize("write", [bulk.update_many, bulk.upsert_many])
async def test_a_pydantic_model_changes_only_the_passed_attributes(separate: AsyncSession, write: Any) -> None:
    await bulk.insert_many(separate, Task, [Task(1, "One", "done", "note", 3)])
    await write(separate, Task, [TaskChange(id=1, name="Two")])
    assert await stored(separate, Task, "name", "status") == [("Two", "done")]


async def test_a_detached_object_writes_only_its_changed_attributes(session: AsyncSession) -> None:
    """Control: the object's other values are stale, because they have been changed in the database."""
    await make_users(session, 2)
    users = list(await session.scalars(select(User).order_by(User.age)))
    session.expunge_all()
    await bulk.update_by_key(session, User, [user.id for user in users], {"nickname": "newer"})
    for user in users:
        user.name = "Two"
        assert user.nickname == "nobody"
    assert (await bulk.update_many(session, User, users)).count == 2
    assert [tuple(row) for row in await session.execute(select(User.name, User.nickname))] == [("Two", "newer")] * 2


async def test_a_detached_object_is_stale_if_its_version_has_changed(session: AsyncSession) -> None:
    (key,) = await make_orders(session, 1)
    order = await session.get_one(Order, key)
    session.expunge(order)
    order.total_cents = 500
    assert (await bulk.update_many(session, Order, [order])).count == 1
    with pytest.raises(StaleRow):
        await bulk.update_many(session, Order, [order])
    assert (await session.execute(select(Order.total_cents, Order.version))).one() == (500, 2)
    light = (await session.scalars(select(Order).options(defer(Order.version)))).one()
    session.expunge(light)
    light.total_cents = 600
    assert (await bulk.update_many(session, Order, [light])).count == 1


async def test_objects_without_known_changes_are_rejected(session: AsyncSession) -> None:
    await make_users(session, 1)
    user = (await session.scalars(select(User))).one()
    user.name = "Two"
    with pytest.raises(TypeError, match="this User is in a session, which writes its changes on flush"):
        await bulk.update_many(session, User, [user])
    with pytest.raises(TypeError, match="was loaded from the database, so it isn't known which attributes to update"):
        await bulk.upsert_many(session, User, [user], on=["email"])
    assert await bulk.upsert_many(session, User, [user], on=["email"], update=["name"]) == UpsertResult(0, 0, 1)
    session.expunge(user)
    with pytest.raises(TypeError, match="was loaded from the database and not changed"):
        await bulk.update_many(session, User, [user])
    user.id = uuid4()
    with pytest.raises(TypeError, match="was loaded from the database and then given another key"):
        await bulk.update_many(session, User, [user])


async def test_objects_with_different_sets_of_attributes_are_rejected(separate: AsyncSession) -> None:
    rows: list[Any] = [Animal(id=1, name="One"), Animal(id=2, name="Two", legs=4)]
    for write in (bulk.update_many, bulk.upsert_many):
        with pytest.raises((TypeError, ValueError), match="other attributes than"):
            await write(separate, Animal, rows)
    assert await bulk.upsert_many(separate, Animal, [{"id": 1, "name": "a"}, Animal(id=2, name="b")]) == UpsertResult(
        2, 0, 0
    )


# --- SQLModel


def make_hero_class() -> Any:
    sqlmodel = pytest.importorskip("sqlmodel")

    class Own(sqlmodel.SQLModel, registry=registry()):  # type: ignore[misc, name-defined, call-arg]
        pass

    class Hero(Own, table=True):  # type: ignore[call-arg]
        id: int | None = sqlmodel.Field(default=None, primary_key=True)
        code: str = sqlmodel.Field(unique=True)
        name: str
        status: str = "new"
        nick: str | None = None
        rank: int | None = sqlmodel.Field(default=None, sa_column_kwargs={"server_default": "7"})

    return Hero


async def test_a_sqlmodel_object_changes_only_the_passed_attributes(session: AsyncSession) -> None:
    Hero = make_hero_class()
    await session.run_sync(lambda sync: Hero.metadata.create_all(sync.connection()))
    names = ("code", "name", "status", "nick", "rank")
    writes: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (bulk.update_many, {}),
        (bulk.upsert_many, {}),
        (bulk.upsert_many, {"on": ["code"]}),
    ]
    for write, key in writes:
        for many in (1, 25):
            await session.execute(sqlalchemy.delete(Hero))
            new = [Hero(code=f"{n:02}", name="One", status="done", nick="x", rank=1) for n in range(many)]
            keys = (await bulk.insert_many(session, Hero, new)).keys
            ids = {} if key else {"id": True}
            rows = [Hero(code=f"{n:02}", name="Two", **({"id": keys[n]} if ids else {})) for n in range(many)]
            result = await write(session, Hero, rows, **key)
            assert getattr(result, "updated", many) == many
            assert await stored(session, Hero, *names) == [(f"{n:02}", "Two", "done", "x", 1) for n in range(many)]
            later = Hero(id=keys[0], code="00", name="Three")
            later.nick = None
            await write(session, Hero, [later], **key)
            assert (await stored(session, Hero, *names))[0] == ("00", "Three", "done", None, 1)


async def test_new_rows_of_a_sqlmodel_get_its_defaults_and_those_of_the_columns(session: AsyncSession) -> None:
    Hero = make_hero_class()
    await session.run_sync(lambda sync: Hero.metadata.create_all(sync.connection()))
    await bulk.insert_many(session, Hero, [Hero(code="a", name="One")])
    await bulk.insert_many(session, Hero, [Hero(code=f"{n}", name="One") for n in range(25)])
    rows = [Hero(code=code, name="Two") for code in ("a", "b")]
    assert await bulk.upsert_many(session, Hero, rows, on=["code"]) == UpsertResult(1, 1, 0)
    assert set(await stored(session, Hero, "status", "nick", "rank")) == {("new", None, 7)}
    assert (await session.scalars(select(func.count()).select_from(Hero))).one() == 27
