"""Repositories: create, update and delete. They commit nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from howdah import (
    AsyncRepository,
    Database,
    ForeignKeyViolation,
    InsertResult,
    NotNullViolation,
    StaleRow,
    UniqueViolation,
    UnknownAttribute,
    UpsertResult,
)
from howdah.testing import assert_statements
from howdah_tests.support.reference_repository import ReferenceRepository
from howdah_tests.support.sample_models import Album, Car, Corner, Order, Specimen, Track, User, UserRepository, Vehicle
from howdah_tests.support.sample_rows import user_rows


async def test_create_inserts_a_row_with_its_defaults_in_one_statement(users: UserRepository) -> None:
    await users.count()  # the first statement of the session opens the savepoint of the fixture
    with assert_statements(users.session, 1):
        user = await users.create(email="a@example.org", name="A")
        assert user.nickname == "nobody"
    assert user.id is not None
    assert (await users.session.scalars(select(User.email))).all() == ["a@example.org"]


@pytest.mark.parametrize("name", ["emial", "metadata", "registry", "_sa_instance_state", "__dict__", "shout", "get"])
async def test_an_unknown_attribute_is_rejected_before_anything_is_sent(users: UserRepository, name: str) -> None:
    """Fault 10."""
    values: dict[str, Any] = {"email": "a@example.org", "name": "A", name: "x"}
    with assert_statements(users.session, 0), pytest.raises(UnknownAttribute, match=f"attribute {name!r}") as caught:
        await users.create(**values)
    assert (caught.value.model, caught.value.attribute) == (User, name)
    assert not users.session.new


async def test_an_unknown_attribute_is_rejected_before_anything_is_set(users: UserRepository) -> None:
    """Fault 10. Control: the reference's update sets the attribute and writes nothing."""
    user = await users.create(email="a@example.org", name="A")
    with assert_statements(users.session, 0), pytest.raises(UnknownAttribute):
        await users.update(user, name="B", emial="b@example.org")
    assert user.name == "A"
    assert not users.session.dirty
    with assert_statements(users.session, 0):
        await ReferenceRepository(users.session, User).update(user, emial="b@example.org")
    assert user.emial == "b@example.org"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["doubled", "is_above", "name_length"])
async def test_attributes_that_the_database_or_a_method_computes_cannot_be_set(
    session: AsyncSession, name: str
) -> None:
    repository: AsyncRepository[Any] = AsyncRepository(session, User if name == "name_length" else Specimen)
    values: dict[str, Any] = {name: 1}
    with pytest.raises(UnknownAttribute):
        await repository.create(**values)


async def test_a_view_only_relationship_cannot_be_set(session: AsyncSession) -> None:
    with pytest.raises(UnknownAttribute):
        await AsyncRepository(session, Album).create(first_tracks=[])


async def test_relationships_synonyms_composites_and_hybrids_with_a_setter_can_be_set(session: AsyncSession) -> None:
    user = await UserRepository(session).create(email="a@example.org", name="A", orders=[Order(), Order()])
    order = await AsyncRepository(session, Order).create(user=user)
    assert order.user_id == user.id
    specimens = AsyncRepository(session, Specimen)
    specimen = await specimens.create(id=1, alias="word", half=4, corner=Corner(1, 2))
    assert (specimen.words, specimen.whole, specimen.left, specimen.top) == ("word", 8, 1, 2)
    assert specimen.doubled == 16
    await specimens.update(specimen, alias="other", half=5)
    assert (specimen.words, specimen.whole) == ("other", 10)


async def test_the_attributes_of_a_subclass_can_be_set_through_the_repository_of_its_base(
    session: AsyncSession,
) -> None:
    car = await AsyncRepository(session, Car).create(wheels=4, doors=3)
    await AsyncRepository(session, Vehicle).update(car, doors=5)
    assert car.doors == 5


async def test_a_failed_create_raises_a_subclass_of_the_error_of_sqlalchemy(users: UserRepository) -> None:
    await users.create(email="a@example.org", name="A")
    with pytest.raises(IntegrityError) as caught:
        await users.create(email="a@example.org", name="B")
    assert isinstance(caught.value, UniqueViolation)
    assert caught.value.constraint == "uq_users_email"


async def test_update_writes_the_changes_and_sets_updated_at(users: UserRepository) -> None:
    user = await users.create(email="a@example.org", name="A")
    before = user.updated_at
    with assert_statements(users.session, 1):
        assert await users.update(user, name="B", age=7) is user
    assert user.updated_at > before
    users.session.expunge_all()
    assert (await users.get_one(user.id)).name == "B"
    users.session.add(user)
    with assert_statements(users.session, 0):
        await users.update(user)


async def test_an_object_that_is_not_in_the_session_is_rejected(users: UserRepository, database: Database) -> None:
    """Control: the reference's update sets the attribute and writes nothing."""
    user = await users.create(email="a@example.org", name="A")
    async with database.session() as other:
        for instance in (user, User(email="b@example.org", name="B")):
            with pytest.raises(InvalidRequestError, match="isn't in the repository's session"):
                await UserRepository(other).update(instance, name="C")
            with pytest.raises(InvalidRequestError, match="isn't in the repository's session"):
                await UserRepository(other).delete(instance)
        with assert_statements(other, 0):
            await ReferenceRepository(other, User).update(User(), name="C")


async def test_a_key_instead_of_an_object_is_rejected(users: UserRepository) -> None:
    user = await users.create(email="a@example.org", name="A")
    for write in (users.update, users.delete):
        with pytest.raises(TypeError, match="pass a User object, as `get` returns it, not a UUID"):
            await write(user.id)  # type: ignore[arg-type]


async def _create_order(database: Database) -> UUID:
    async with database.begin() as session:
        user = await UserRepository(session).create(email="a@example.org", name="A")
        return (await AsyncRepository(session, Order).create(user=user)).id


async def test_updating_a_versioned_object_whose_row_has_changed_raises_stale_row(
    committed_database: Database,
) -> None:
    """Control: an object without a version overwrites the change of the other session."""
    id = await _create_order(committed_database)
    async with committed_database.session() as mine, committed_database.session() as theirs:
        order = await AsyncRepository(mine, Order).get_one(id, load=[Order.user])
        same = await AsyncRepository(theirs, Order).get_one(id, load=[Order.user])
        await UserRepository(theirs).update(same.user, age=1)
        await AsyncRepository(theirs, Order).update(same, total_cents=1)
        await theirs.commit()
        await UserRepository(mine).update(order.user, age=2)
        with pytest.raises(StaleRow) as caught:
            await AsyncRepository(mine, Order).update(order, total_cents=2)
        assert isinstance(caught.value, StaleDataError)
        await mine.rollback()
        assert (await AsyncRepository(mine, Order).get_one(id)).version == 2


async def test_deleting_a_versioned_object_whose_row_has_changed_raises_stale_row(
    committed_database: Database,
) -> None:
    id = await _create_order(committed_database)
    async with committed_database.session() as mine, committed_database.session() as theirs:
        order = await AsyncRepository(mine, Order).get_one(id)
        await AsyncRepository(theirs, Order).update(await AsyncRepository(theirs, Order).get_one(id), total_cents=1)
        await theirs.commit()
        with pytest.raises(StaleRow):
            await AsyncRepository(mine, Order).delete(order)


async def test_delete_deletes_a_row(users: UserRepository, twenty: list[UUID]) -> None:
    user = await users.get_one(twenty[0])
    await users.delete(user)
    assert await users.get(twenty[0]) is None
    assert await users.count() == 19


async def test_a_delete_cascades_over_relationships_with_lazy_raise(session: AsyncSession) -> None:
    albums = AsyncRepository(session, Album)
    album = await albums.create(title="A", tracks=[Track(position=1), Track(position=2)])
    session.expunge_all()
    album = await albums.get_one(album.id)
    await albums.delete(album)
    assert await AsyncRepository(session, Track).count() == 0


async def test_a_delete_without_a_cascade_is_rejected_if_the_foreign_key_is_not_null(
    users: UserRepository, twenty: list[UUID]
) -> None:
    await AsyncRepository(users.session, Order).create(user_id=twenty[0])
    users.session.expunge_all()
    user = await users.get_one(twenty[0])
    with pytest.raises(NotNullViolation) as caught:
        await users.delete(user)
    assert caught.value.column == "user_id"


async def test_a_bulk_delete_of_a_referenced_row_is_a_foreign_key_violation(
    users: UserRepository, twenty: list[UUID]
) -> None:
    await AsyncRepository(users.session, Order).create(user_id=twenty[0])
    with pytest.raises(ForeignKeyViolation) as caught:
        await users.delete_many([twenty[1], twenty[0]])
    assert caught.value.row_index == 1


async def test_nothing_is_committed(committed_database: Database) -> None:
    async with committed_database.session() as session:
        users = UserRepository(session)
        user = await users.create(email="a@example.org", name="A")
        await users.update(user, name="B")
        await users.create_many(user_rows(3))
        await users.update_many([{"id": user.id, "name": "C"}])
        await users.upsert_many(user_rows(5), on=["email"])
        await users.delete_many([user.id])
        assert await users.count() == 5
    async with committed_database.session() as session:
        assert await UserRepository(session).count() == 0


async def test_methods_for_many_rows_call_the_bulk_functions(users: UserRepository) -> None:
    created = await users.create_many(user_rows(3))
    assert isinstance(created, InsertResult)
    matched = await users.update_many([{"id": created.keys[0], "age": 70}], chunk_size=1)
    assert (matched.count, matched.missing) == (1, [])
    upserted = await users.upsert_many([{"email": "user0@example.org", "age": 71, "name": "N"}], on=["email"])
    assert upserted == UpsertResult(0, 1, 0)
    assert (await users.get_one(created.keys[0])).age == 71
    assert (await users.delete_many(created.keys)).count == 3
    assert (await users.create_many(user_rows(3), keys=False)).keys == []
