"""`get_by` and `get_one_by`, and `load=` of `create` and `update`."""

from __future__ import annotations

import pytest
from sqlalchemy import CHAR, MetaData, func
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.exc import InvalidRequestError, MultipleResultsFound
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, relationship, selectinload

from howdah import AsyncRepository, Base, MultipleRowsFound, NotFound, UnknownAttribute
from howdah.testing import assert_statements
from howdah_tests.support.case_insensitive_types import create_citext
from howdah_tests.support.sample_models import (
    Album,
    Corner,
    Engineer,
    Label,
    Order,
    Seat,
    Specimen,
    Status,
    Track,
    User,
    UserRepository,
)
from howdah_tests.support.sample_rows import user_rows


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Loaded(Separate):
    """Has an attribute with the name of an option."""

    __tablename__ = "loaded"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    load: Mapped[int]


class Nick(Separate):
    __tablename__ = "nicks"

    name: Mapped[str] = mapped_column(CITEXT, primary_key=True)
    friends: Mapped[list[Nick]] = relationship(
        primaryjoin="foreign(Nick.friend_of) == Nick.name", remote_side="Nick.friend_of"
    )
    friend_of: Mapped[str | None] = mapped_column(CITEXT)


class BookShelf(Separate):
    __tablename__ = "book_shelves"

    code: Mapped[str] = mapped_column(CHAR(3), primary_key=True)
    part_of: Mapped[str | None] = mapped_column(CHAR(3))
    parts: Mapped[list[BookShelf]] = relationship(
        primaryjoin="foreign(BookShelf.part_of) == BookShelf.code", remote_side="BookShelf.part_of"
    )


async def test_get_by_returns_the_row_or_none(users: UserRepository) -> None:
    await users.create_many(user_rows(3))
    with assert_statements(users.session, 1):
        found = await users.get_by(email="user1@example.org", age=1)
    assert found is not None
    assert found.age == 1
    assert await users.get_by(email="user1@example.org", age=2) is None
    assert await users.get_by(name_length=6, age=2) == await users.get_by(email="user2@example.org")
    assert await users.get_by(email=func.lower("USER1@EXAMPLE.ORG")) == found


async def test_get_one_by_raises_not_found_without_the_values(users: UserRepository) -> None:
    with pytest.raises(NotFound) as caught:
        await users.get_one_by(email="secret@example.org", age=1)
    assert caught.value.keys == [{"email": "secret@example.org", "age": 1}]
    assert str(caught.value) == "no User with these values of email, age"


async def test_several_rows_raise_an_error_that_reads_two_of_them(users: UserRepository) -> None:
    await users.create_many(user_rows(20))
    for get in (users.get_by, users.get_one_by):
        with pytest.raises(MultipleRowsFound, match="several User rows have these values of name") as caught:
            await get(name="User 1")
        assert isinstance(caught.value, MultipleResultsFound)
    with assert_statements(users.session, 1) as sent, pytest.raises(MultipleRowsFound):
        await users.get_by(name="User 1")
    assert "LIMIT" in sent[0]


async def test_none_means_is_null(users: UserRepository) -> None:
    await users.create_many([{**row, "age": None if row["age"] == 1 else 5} for row in user_rows(2)])
    assert (await users.get_one_by(age=None)).email == "user1@example.org"
    specimens = AsyncRepository(users.session, Specimen)
    await specimens.create_many([{"id": 1, "left": 1, "top": None}, {"id": 2, "left": 1, "top": 2}])
    assert (await specimens.get_one_by(corner=Corner(1, None))).id == 1
    assert (await specimens.get_one_by(alias=None, corner=Corner(1, 2))).id == 2


async def test_a_related_object_can_be_compared_but_a_collection_cannot(users: UserRepository) -> None:
    user = await users.create(**user_rows(1)[0])
    orders = AsyncRepository(users.session, Order)
    order = await orders.create(user=user)
    assert await orders.get_one_by(user=user, status=Status.PENDING) is order
    for name in ("orders", "mail", "shout", "is_above"):
        with assert_statements(users.session, 0), pytest.raises(UnknownAttribute) as caught:
            await users.get_by(**{name: []})
        assert "email" in caught.value.known
        assert "orders" not in caught.value.known
    with pytest.raises(TypeError, match="name at least one attribute of User"):
        await users.get_by()


async def test_a_subclass_and_a_composite_key_can_be_searched(session: AsyncSession) -> None:
    engineers = AsyncRepository(session, Engineer)
    engineer = await engineers.create(name="Ada", language="SQL")
    assert await engineers.get_one_by(name="Ada", language="SQL") is engineer
    seats = AsyncRepository(session, Seat)
    seat = await seats.create(row="A", number=1)
    assert await seats.get_one_by(row="A", number=1, taken_by=None) is seat


async def test_get_by_loads_relationships(users: UserRepository) -> None:
    user = await users.create(**user_rows(1)[0])
    await AsyncRepository(users.session, Order).create(user_id=user.id)
    users.session.expunge_all()
    with assert_statements(users.session, 2):
        found = await users.get_one_by(email=user.email, load=[User.orders])
    assert len(found.orders) == 1


async def test_create_and_update_load_relationships_in_one_statement_each(users: UserRepository) -> None:
    user = await users.create(**user_rows(1)[0])
    other = await users.create(email="other@example.org", name="Other")
    orders = AsyncRepository(users.session, Order)
    with assert_statements(users.session, 3):  # the INSERT, the row, its user
        order = await orders.create(user_id=user.id, load=[Order.user])
    assert order.user is user
    with assert_statements(users.session, 4):
        await orders.update(order, user_id=other.id, load=[selectinload(Order.user).selectinload(User.orders)])
    assert order.user is other
    assert other.orders == [order]


async def test_create_loads_an_empty_collection_and_one_that_it_has_written(session: AsyncSession) -> None:
    albums = AsyncRepository(session, Album)
    assert (await albums.create(title="Empty", load=[Album.tracks])).tracks == []
    album = await albums.create(title="Full", tracks=[Track(position=2), Track(position=1)], load=[Album.first_tracks])
    assert [track.position for track in album.first_tracks] == [1]


async def test_an_option_whose_name_is_an_attribute_is_rejected(session: AsyncSession) -> None:
    await session.run_sync(lambda sync: Loaded.__table__.create(sync.connection()))  # type: ignore[attr-defined]
    repository = AsyncRepository(session, Loaded)
    with pytest.raises(TypeError, match="Loaded has an attribute 'load'"):
        await repository.get_by(id=1, load=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Loaded has an attribute 'load'"):
        await repository.create(id=1, load=5)  # type: ignore[arg-type]


async def test_inexact_keys_and_values_are_compared_by_postgresql(session: AsyncSession) -> None:
    await create_citext(session)
    await session.run_sync(lambda sync: Nick.__table__.create(sync.connection()))  # type: ignore[attr-defined]
    nicks = AsyncRepository(session, Nick)
    nick = await nicks.create(name="Ada", load=[Nick.friends])
    assert nick.friends == []
    assert (await nicks.get_one_by(name="ADA")) is nick
    specimens = AsyncRepository(session, Specimen)
    await specimens.create(id=1, code="a")
    assert (await specimens.get_one_by(code="a")).id == 1


async def test_a_key_that_postgresql_pads_is_rejected_with_load(session: AsyncSession) -> None:
    """The SELECT would create a second object of the row."""
    await session.run_sync(lambda sync: Separate.metadata.tables["book_shelves"].create(sync.connection()))
    shelves = AsyncRepository(session, BookShelf)
    assert (await shelves.create(code="abc", load=[BookShelf.parts])).parts == []
    with pytest.raises(InvalidRequestError, match="PostgreSQL stores the key of this BookShelf in another form"):
        await shelves.create(code="a", load=[BookShelf.parts])
    shelf = (await shelves.upsert({"code": "b"}, load=[BookShelf.parts]))[0]
    assert (shelf.code, shelf.parts) == ("b  ", [])


async def test_an_object_of_another_session_is_not_loaded(session: AsyncSession) -> None:
    labels = AsyncRepository(session, Label)
    with pytest.raises(InvalidRequestError):
        await labels.update(Label(name="a"), colour="red", load=[selectinload("*")])
