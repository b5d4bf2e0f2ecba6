"""`upsert` of one row: the statements that it sends, and the object that it returns."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel
from sqlalchemy import MetaData, event, func, select, text
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, undefer

from howdah import (
    AsyncRepository,
    Base,
    CheckViolation,
    Database,
    InvalidStatement,
    NotFound,
    Timestamps,
    UnknownAttribute,
    Versioned,
)
from howdah.testing import assert_statements
from howdah_tests.support.case_insensitive_types import create_citext
from howdah_tests.support.sample_models import (
    Car,
    Counter,
    Engineer,
    Order,
    Seat,
    Specimen,
    User,
    UserRepository,
    Vehicle,
)
from howdah_tests.support.sample_rows import LONG_AGO, make_orders, user_rows


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class WikiPage(Timestamps, Versioned, Separate):
    __tablename__ = "pages"

    path: Mapped[str] = mapped_column(CITEXT, primary_key=True)
    title: Mapped[str | None]
    views: Mapped[int] = mapped_column(default=0)


class PageIn(BaseModel):
    path: str
    title: str | None = None
    views: int = 5


@pytest.fixture
async def pages(session: AsyncSession) -> AsyncRepository[WikiPage]:
    await create_citext(session)
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    return AsyncRepository(session, WikiPage)


async def test_one_statement_inserts_or_updates_and_returns_the_object(pages: AsyncRepository[WikiPage]) -> None:
    with assert_statements(pages.session, 1):
        page, is_new = await pages.upsert({"path": "/", "title": "Home"})
    assert (is_new, page.title, page.version, page.views) == (True, "Home", 1, 0)
    before = page.updated_at
    with assert_statements(pages.session, 1):
        same, is_new = await pages.upsert({"path": "/", "title": "Start"})
    assert (same is page, is_new, page.title, page.version) == (True, False, "Start", 2)
    assert page.updated_at > before
    page.views = 3  # the object is in the session with its version
    await pages.session.flush()
    assert page.version == 3


async def test_an_unchanged_row_is_not_written_but_read(pages: AsyncRepository[WikiPage]) -> None:
    await pages.upsert({"path": "/", "title": "Home"})
    pages.session.expunge_all()
    with assert_statements(pages.session, 2):
        page, is_new = await pages.upsert({"path": "/", "title": "Home"})
    assert (is_new, page.version, page.title) == (False, 1, "Home")


async def test_only_one_statement_is_sent_and_no_savepoint(session: AsyncSession) -> None:
    """Control: `upsert_many` opens savepoints."""
    savepoints: list[str] = []
    engine = (await session.connection()).sync_engine  # the fixture's session begins with a savepoint
    event.listen(engine, "savepoint", lambda _, name: savepoints.append(name))
    with assert_statements(session, 1):
        await AsyncRepository(session, Seat).upsert({"row": "A", "number": 1, "taken_by": None})
    assert savepoints == []
    await AsyncRepository(session, Seat).upsert_many([{"row": "A", "number": 1, "taken_by": "Ada"}])
    assert savepoints


async def test_changes_of_the_object_are_written_before_and_the_object_is_refreshed(users: UserRepository) -> None:
    user = await users.create(**user_rows(1)[0])
    user.age = 77
    row = {"email": user.email, "name": "New"}
    same, is_new = await users.upsert(row, on=["email"])
    assert (same is user, is_new, user.name, user.age, user.name_length) == (True, False, "New", 77, 3)


async def test_update_and_the_type_of_the_row_choose_what_is_set(pages: AsyncRepository[WikiPage]) -> None:
    page, _ = await pages.upsert(PageIn(path="/"))
    assert (page.title, page.views) == (None, 0)  # `views` wasn't set
    await pages.upsert({"path": "/", "title": "Home", "views": 9}, update=["views"])
    assert (page.title, page.views) == (None, 9)
    _, is_new = await pages.upsert({"path": "/", "title": "Home", "views": 10}, update=[])
    assert (is_new, page.title, page.views) == (False, None, 9)
    await pages.upsert(WikiPage(path="/", title="Object"))
    assert (page.title, page.views) == ("Object", 9)


async def test_two_spellings_of_a_key_are_one_row(pages: AsyncRepository[WikiPage]) -> None:
    """The object under the old spelling is refreshed too."""
    page, _ = await pages.upsert({"path": "/A", "title": "Old"})
    again, is_new = await pages.upsert({"path": "/a", "title": "New"})
    assert (is_new, again is page, page.path, page.title) == (False, True, "/A", "New")
    await pages.session.execute(text("UPDATE pages SET path = '/a'"))
    other, is_new = await pages.upsert({"path": "/A", "title": "Newest"})
    assert (is_new, other.path, other.title, page.title) == (False, "/a", "Newest", "Newest")


async def test_null_composite_and_generated_keys(session: AsyncSession) -> None:
    seat, is_new = await AsyncRepository(session, Seat).upsert({"row": "A", "number": 1, "taken_by": None})
    assert (is_new, seat.taken_by) == (True, None)
    _, is_new = await AsyncRepository(session, Seat).upsert({"row": "A", "number": 1, "taken_by": "Ada"})
    assert (is_new, seat.taken_by) == (False, "Ada")
    counter, is_new = await AsyncRepository(session, Counter).upsert({"id": None, "value": 3})
    assert is_new
    assert counter.id > 0


async def test_values_of_every_kind_are_stored(session: AsyncSession) -> None:
    specimens = AsyncRepository(session, Specimen)
    row = {"id": 1, "tags": ["a", None], "anything": None, "nothing": None, "loud": "x", "words": None}
    for is_expected in (True, False):
        specimen, is_new = await specimens.upsert(row)
        assert is_new is is_expected
        assert (specimen.tags, specimen.anything, specimen.loud, specimen.words) == (["a", None], None, "x", None)
    nulls = select(func.count()).where(Specimen.nothing.is_(None), Specimen.anything == text("'null'::jsonb"))
    assert await session.scalar(nulls) == 1


async def test_an_error_is_that_of_the_constraint(users: UserRepository) -> None:
    with pytest.raises(CheckViolation):
        async with users.session.begin_nested():
            await users.upsert({"email": "a", "name": "A", "age": -1}, on=["email"])
    with pytest.raises(InvalidStatement) as caught:
        await users.upsert({"email": "a", "name": "A"}, on=["name"])
    assert "`on` must name a unique constraint or index of users" in caught.value.__notes__[0]


async def test_wrong_arguments_are_rejected_before_anything_is_sent(users: UserRepository) -> None:
    orders = AsyncRepository(users.session, Order)
    with assert_statements(users.session, 0):
        with pytest.raises(UnknownAttribute):
            await users.upsert({"email": "a", "colour": "red"}, on=["email"])
        with pytest.raises(ValueError, match="the row has no value for email"):
            await users.upsert({"name": "a"}, on=["email"])
        with pytest.raises(ValueError, match="leave version out of the row"):
            await orders.upsert({"id": "01890000-0000-7000-8000-000000000000", "version": 1})
        with pytest.raises(ValueError, match="`update` can't name the key"):
            await users.upsert({"email": "a", "name": "b"}, on=["email"], update=["email"])
        with pytest.raises(TypeError, match="stored in several tables"):
            await AsyncRepository(users.session, Engineer).upsert({"name": "a", "language": "b"})


async def test_relationships_can_be_loaded(session: AsyncSession) -> None:
    (key,) = await make_orders(session, 1)
    order, is_new = await AsyncRepository(session, Order).upsert(
        {"id": key, "user_id": await session.scalar(select(User.id)), "total_cents": 5}, load=[Order.user]
    )
    assert (is_new, order.total_cents, order.version, order.user.updated_at) == (False, 5, 2, LONG_AGO)


async def test_a_row_of_another_class_is_not_changed(session: AsyncSession) -> None:
    vehicle = await AsyncRepository(session, Vehicle).create(wheels=2)
    with pytest.raises(NotFound) as caught:
        await AsyncRepository(session, Car).upsert({"id": vehicle.id, "wheels": 4, "doors": 5})
    assert "the existing row is of another class" in caught.value.__notes__[0]
    assert await session.scalar(select(Vehicle.wheels)) == 2


async def test_a_view_is_rejected_with_advice(session: AsyncSession) -> None:
    await session.execute(text("CREATE VIEW some_seats AS SELECT * FROM seats"))

    class Other(Base):
        __abstract__ = True
        metadata = MetaData()

    class SomeSeat(Other):
        __tablename__ = "some_seats"
        row: Mapped[str] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)
        taken_by: Mapped[str | None]

    seats = AsyncRepository(session, SomeSeat)
    row = {"row": "A", "number": 1, "taken_by": "Ada"}
    for expected in (True, False):
        _, is_new = await seats.upsert(row, update=[])
        assert is_new is expected
    with pytest.raises(DBAPIError) as caught:
        await seats.upsert(row)
    assert "use upsert_many" in "".join(getattr(caught.value, "__notes__", []))


async def test_concurrent_upserts_of_one_row_create_it_once(committed_database: Database) -> None:
    ready = asyncio.Barrier(6)

    async def upsert(age: int) -> bool:
        async with committed_database.begin() as session:
            await session.connection()
            await ready.wait()
            user, is_new = await UserRepository(session).upsert(
                {"email": "ada@example.org", "name": "Ada", "age": age}, on=["email"]
            )
            assert user.age == age
            return is_new

    assert sorted(await asyncio.gather(*(upsert(age // 2) for age in range(6)))) == [False] * 5 + [True]


async def test_a_deferred_attribute_is_never_stale(session: AsyncSession) -> None:
    specimens = AsyncRepository(session, Specimen)
    await specimens.create(id=1, notes="old", words="a")
    specimen = await specimens.get_one(1, load=[undefer(Specimen.notes)])
    assert specimen.notes == "old"
    same, _ = await specimens.upsert({"id": 1, "notes": "new", "words": "b"})
    await session.refresh(specimen, ["notes"])
    assert (same is specimen, specimen.notes, specimen.words) == (True, "new", "b")
    same, _ = await specimens.upsert({"id": 1, "notes": "newest"})
    assert "notes" not in same.__dict__ or same.notes == "newest"
