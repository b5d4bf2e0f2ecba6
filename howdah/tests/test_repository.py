"""AsyncRepository: every method, on the real database."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid4

import pytest
from sample import Album, Car, Corner, Counter, Order, Seat, Specimen, Status, Track, User, UserRepository, Vehicle
from sqlalchemy import Select, event, func, insert, literal, select, text, union_all
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, joinedload, selectinload
from sqlalchemy.orm.exc import StaleDataError

from howdah import (
    AsyncRepository,
    Base,
    Database,
    ForeignKeyViolation,
    NotFound,
    NotNullViolation,
    StaleRow,
    UniqueViolation,
    UnknownAttribute,
    bulk,
)
from howdah.testing import assert_statements

ModelT = TypeVar("ModelT", bound=Base)
OtherT = TypeVar("OtherT")


class Tenanted(AsyncRepository[ModelT]):
    """An intermediate that leaves the model open."""


class TenantedUsers(Tenanted[User]): ...


class OnlyActiveUsers(TenantedUsers): ...


class WithContext(AsyncRepository[ModelT], Generic[OtherT, ModelT]):
    """The model isn't its first type parameter."""


class UsersWithContext(WithContext[int, User]): ...


class Mixin: ...


class MixedUsers(Mixin, UserRepository): ...


class ByArgument(AsyncRepository[User]):
    """The constructor of the reference."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, User)


class ReferenceRepository:
    """The reference's own methods, as controls."""

    def __init__(self, session: AsyncSession, model: type[Any]) -> None:
        self.session = session
        self.model = model

    async def get_by_ids(self, ids: list[UUID]) -> list[Any]:
        result = await self.session.execute(select(self.model).where(self.model.id.in_(ids)))
        return list(result.scalars().all())

    async def update(self, instance: Any, **kwargs: Any) -> Any:
        for key, value in kwargs.items():
            setattr(instance, key, value)
        await self.session.flush()
        return instance


def user_rows(count: int, **values: Any) -> list[dict[str, Any]]:
    return [{"email": f"user{i}@example.org", "name": f"User {i % 10}", "age": i, **values} for i in range(count)]


@pytest.fixture
def users(session: AsyncSession) -> UserRepository:
    return UserRepository(session)


@pytest.fixture
async def twenty(users: UserRepository) -> list[UUID]:
    """The keys of twenty users, in key order."""
    return (await users.create_many(user_rows(20))).keys


# --- which model


@pytest.mark.parametrize(
    "repository", [UserRepository, TenantedUsers, OnlyActiveUsers, UsersWithContext, MixedUsers, ByArgument]
)
def test_the_model_comes_from_the_type_parameter(repository: Any) -> None:
    assert repository(AsyncSession()).model is User


def test_the_model_may_be_the_second_argument() -> None:
    assert AsyncRepository(AsyncSession(), Seat).model is Seat
    assert Tenanted(AsyncSession(), Seat).model is Seat


def test_a_second_argument_goes_before_the_type_parameter() -> None:
    class Vehicles(AsyncRepository[Vehicle]): ...

    assert Vehicles(AsyncSession(), Car).model is Car


@pytest.mark.parametrize("repository", [AsyncRepository, Tenanted, type("Plain", (AsyncRepository,), {})])
def test_without_a_model_it_says_how_to_name_one(repository: Any) -> None:
    with pytest.raises(TypeError, match=r"which model\? Pass it, AsyncRepository\(session, User\), or name it, class"):
        repository(AsyncSession())


def test_a_models_name_as_text_is_no_model() -> None:
    class Quoted(AsyncRepository["User"]): ...

    with pytest.raises(TypeError, match="which model"):
        Quoted(AsyncSession())


# --- get, get_one, get_by_ids


async def test_gets_an_object_by_its_key(users: UserRepository, twenty: list[UUID]) -> None:
    found = await users.get(twenty[3])
    assert found is not None
    assert found.email == "user3@example.org"


async def test_gets_none_for_a_key_that_no_row_has(users: UserRepository) -> None:
    assert await users.get(uuid4()) is None
    assert await users.get(uuid4(), load=[User.orders]) is None


async def test_gets_what_the_session_holds_without_a_statement_however_the_key_is_written(
    users: UserRepository, twenty: list[UUID]
) -> None:
    """Control: the session's own `get` doesn't know an object by its key as text."""
    held = await users.get(twenty[0])
    with assert_statements(users.session, 0):
        assert await users.get(twenty[0]) is held
        assert await users.get(str(twenty[0])) is held
    with assert_statements(users.session, 1):
        await users.session.get(User, str(twenty[0]))


async def test_gets_by_a_key_written_as_text(users: UserRepository, twenty: list[UUID]) -> None:
    found = await users.get(str(twenty[1]), load=[User.orders])
    assert found is not None
    assert found.id == twenty[1]
    assert await users.get_one(str(twenty[1])) is found


async def test_text_that_is_no_key_is_a_value_error_before_anything_is_sent(users: UserRepository) -> None:
    with assert_statements(users.session, 0):
        for call in (users.get("x"), users.get_one("x"), users.get("x", load=[User.orders]), users.get_by_ids(["x"])):
            with pytest.raises(ValueError, match="badly formed"):
                await call


async def test_gets_by_a_composite_key_in_every_way(session: AsyncSession) -> None:
    seats = AsyncRepository(session, Seat)
    await seats.create_many([{"row": "A", "number": n} for n in range(3)])
    first = await seats.get(("A", 1))
    assert first is not None
    assert (first.row, first.number) == ("A", 1)
    assert await seats.get(["A", 1], load=[joinedload("*")]) is first  # a list, and with something to load
    assert await seats.get_by_ids([("A", 2), ("B", 0), ("A", 1)]) == [await seats.get(("A", 2)), first]
    for wrong in ("A", ("A",), ("A", 1, 2)):
        with pytest.raises(ValueError, match="a key of Seat is row, number"):
            await seats.get(wrong)


async def test_get_one_raises_not_found_with_the_model_and_the_key(users: UserRepository) -> None:
    missing = uuid4()
    with pytest.raises(NotFound, match=f"no User with key {missing}") as caught:
        await users.get_one(missing)
    assert (caught.value.model, caught.value.keys) == (User, [missing])


async def test_load_loads_the_relationship_also_of_an_object_that_the_session_holds(
    users: UserRepository, twenty: list[UUID]
) -> None:
    """Control: without `load` the relationship raises."""
    await AsyncRepository(users.session, Order).create(user_id=twenty[0])
    held = await users.get_one(twenty[0])
    with pytest.raises(InvalidRequestError, match="raise"):
        _ = held.orders
    with assert_statements(users.session, 2):
        again = await users.get_one(twenty[0], load=[User.orders])
    assert again is held
    assert len(held.orders) == 1


async def test_load_works_for_an_object_that_was_just_created(users: UserRepository) -> None:
    user = await users.create(email="new@example.org", name="New")
    assert (await users.get_one(user.id, load=[User.orders])).orders == []


async def test_load_takes_loader_options_of_any_depth(users: UserRepository, twenty: list[UUID]) -> None:
    await AsyncRepository(users.session, Order).create_many([{"user_id": twenty[0]}, {"user_id": twenty[0]}])
    for option in (selectinload(User.orders).selectinload(Order.user), joinedload(User.orders).joinedload(Order.user)):
        users.session.expunge_all()
        user = await users.get_one(twenty[0], load=[option])
        assert [order.user for order in user.orders] == [user, user]
        users.session.expunge_all()
        assert len((await users.get_by_ids(twenty[:1], load=[option]))[0].orders) == 2
        users.session.expunge_all()
        assert [len(each.orders) for each in await users.list(limit=3, load=[option])] == [2, 0, 0]


async def test_get_by_ids_keeps_the_order_asked_each_once_and_leaves_out_the_missing(
    users: UserRepository, twenty: list[UUID]
) -> None:
    """Control: the reference's come in any order (here that of the table)."""
    asked = [twenty[7], uuid4(), twenty[2], twenty[7], str(twenty[2]), twenty[11]]
    with assert_statements(users.session, 1):
        found = await users.get_by_ids(iter(asked))
    assert [user.id for user in found] == [twenty[7], twenty[2], twenty[11]]
    plain = await ReferenceRepository(users.session, User).get_by_ids([twenty[7], twenty[2], twenty[11]])
    assert [user.id for user in plain] == [twenty[2], twenty[7], twenty[11]]


async def test_get_by_ids_of_nothing_sends_nothing(users: UserRepository) -> None:
    with assert_statements(users.session, 0):
        assert await users.get_by_ids([]) == []


async def test_get_by_ids_loads_relationships(users: UserRepository, twenty: list[UUID]) -> None:
    await AsyncRepository(users.session, Order).create(user_id=twenty[1])
    with assert_statements(users.session, 2):
        found = await users.get_by_ids([twenty[1], twenty[0]], load=[User.orders])
    assert [len(user.orders) for user in found] == [1, 0]


async def test_get_by_ids_takes_any_number_of_keys_in_one_statement(committed_database: Database) -> None:
    """Fault 4. Control: the reference's fails over 32,767."""
    ids = [uuid4() for _ in range(100_000)]
    async with committed_database.session() as session:
        users = UserRepository(session)
        await users.create(id=ids[99_999], email="last@example.org", name="Last")
        with assert_statements(session, 1):
            assert [user.name for user in await users.get_by_ids(ids)] == ["Last"]
        with pytest.raises(SQLAlchemyError, match="32767"):
            await ReferenceRepository(session, User).get_by_ids(ids[:32_768])


# --- list


async def test_lists_in_key_order_and_100_by_default(users: UserRepository) -> None:
    keys = (await users.create_many(user_rows(120))).keys
    await users.session.execute(text("UPDATE users SET age = age WHERE age < 50"))  # moves them to the table's end
    assert [user.id for user in await users.list()] == sorted(keys)[:100]
    in_table = (await users.session.scalars(select(User.id).limit(100))).all()
    assert in_table != sorted(keys)[:100], "control: without an order it isn't"
    assert len(await users.list(limit=None)) == 120


async def test_the_key_breaks_ties_of_the_callers_order_in_its_direction(
    users: UserRepository, twenty: list[UUID]
) -> None:
    ascending = await users.list(select(User).order_by(User.name))
    assert [user.id for user in ascending] == [key for i in range(10) for key in (twenty[i], twenty[i + 10])]
    descending = await users.list(select(User).order_by(User.name.desc()))
    assert [user.id for user in descending] == [user.id for user in reversed(ascending)]
    by_text = await users.list(select(User).order_by(text("name")))
    assert by_text == ascending
    by_name = await users.list(select(User).order_by("name"))
    assert by_name == ascending


async def test_a_listing_may_be_ordered_by_its_key_downwards(users: UserRepository, twenty: list[UUID]) -> None:
    assert [user.id for user in await users.list(select(User).order_by(User.id.desc()), limit=3)] == twenty[:-4:-1]


async def test_offset_and_limit_cut_out_a_part(users: UserRepository, twenty: list[UUID]) -> None:
    assert [user.id for user in await users.list(offset=5, limit=3)] == twenty[5:8]
    assert [user.id for user in await users.list(offset=18, limit=None)] == twenty[18:]
    assert await users.list(limit=0) == []
    assert await users.list(offset=20) == []


async def test_huge_offsets_and_limits_are_only_beyond_the_end(users: UserRepository, twenty: list[UUID]) -> None:
    assert await users.list(offset=2**62) == []
    assert len(await users.list(limit=2**62)) == 20


@pytest.mark.parametrize("bounds", [{"offset": -1}, {"limit": -1}])
async def test_negative_bounds_are_refused(users: UserRepository, bounds: dict[str, Any]) -> None:
    with assert_statements(users.session, 0), pytest.raises(ValueError, match="can't be negative"):
        await users.list(**bounds)


async def test_an_offset_beyond_what_the_database_counts_is_a_catchable_error(users: UserRepository) -> None:
    with pytest.raises(DBAPIError):
        await users.list(offset=10**30)


@pytest.mark.parametrize("limited", [select(User).limit(3), select(User).offset(3), select(User).fetch(3)])
async def test_a_statement_with_a_limit_of_its_own_isnt_silently_overruled(
    users: UserRepository, limited: Select[Any]
) -> None:
    for call in (users.list(limited), users.page(limited)):
        with pytest.raises(ValueError, match="limit and offset are arguments"):
            await call


@pytest.mark.parametrize(
    "other", [select(Order), select(User.id), select(User, Order), select(func.count()), select(User.__table__)]
)
async def test_a_statement_of_something_else_is_refused(users: UserRepository, other: Select[Any]) -> None:
    for call in (users.list(other), users.page(other), anext(users.stream(other))):
        with pytest.raises(ValueError, match=r"a listing (is|of this repository is) a select\("):
            await call


async def test_lists_the_rows_of_an_alias_and_of_a_subclass(session: AsyncSession) -> None:
    vehicles = AsyncRepository(session, Vehicle)
    await vehicles.create_many([{"wheels": n} for n in range(3)])
    await AsyncRepository(session, Car).create_many([{"wheels": 4, "doors": n} for n in range(2)])
    assert len(await vehicles.list()) == 5
    assert len(await vehicles.list(select(Car))) == 2
    other = aliased(Vehicle)
    assert len(await vehicles.list(select(other).where(other.wheels < 2))) == 2
    both = union_all(select(Vehicle).where(Vehicle.wheels == 0), select(Vehicle).where(Vehicle.wheels == 4)).subquery()
    assert [vehicle.wheels for vehicle in await vehicles.list(select(aliased(Vehicle, both)))] == [0, 4, 4]


async def test_lists_distinct_and_grouped_statements(users: UserRepository, twenty: list[UUID]) -> None:
    await AsyncRepository(users.session, Order).create_many([{"user_id": twenty[i % 3]} for i in range(7)])
    joined = select(User).join(User.orders)
    assert [user.id for user in await users.list(joined.distinct())] == twenty[:3]
    grouped = joined.group_by(User.id).having(func.count() > 2)
    assert [user.id for user in await users.list(grouped)] == twenty[:1]
    by_count = joined.group_by(User.id).order_by(func.count().desc())
    assert [user.id for user in await users.list(by_count)] == [twenty[0], twenty[2], twenty[1]]
    first_of_name = select(User).distinct(User.name) if not hasattr(Select, "ext") else _distinct_on_name()
    assert [user.id for user in await users.list(first_of_name.order_by(User.name))] == twenty[:10]
    for statement, count in ((joined, 7), (joined.distinct(), 3), (grouped, 1), (by_count, 3), (first_of_name, 10)):
        assert await users.count(statement) == count
        assert await users.exists(statement)


def _distinct_on_name() -> Select[Any]:
    from sqlalchemy.dialects.postgresql import distinct_on

    return select(User).ext(distinct_on(User.name))


async def test_an_object_that_a_join_repeats_comes_once(users: UserRepository, twenty: list[UUID]) -> None:
    await AsyncRepository(users.session, Order).create_many([{"user_id": twenty[0]}, {"user_id": twenty[0]}])
    assert [user.id for user in await users.list(select(User).join(User.orders))] == twenty[:1]


# --- count, exists


async def test_counts_all_rows_or_those_of_a_statement(users: UserRepository, twenty: list[UUID]) -> None:
    with assert_statements(users.session, 4):
        assert await users.count() == 20
        assert await users.count(select(User).where(User.age < 5)) == 5
        assert await users.count(select(User).order_by(User.name).limit(7)) == 7
        assert await users.count(select(User).order_by(User.name).offset(15).limit(7)) == 5
    assert await users.count(select(User).where(literal(False))) == 0
    assert await users.count(select(User.name).distinct()) == 10, "DISTINCT counts distinct rows, not one"


async def test_counts_rows_of_joins_limits_and_outer_joins(users: UserRepository, twenty: list[UUID]) -> None:
    await AsyncRepository(users.session, Order).create_many([{"user_id": twenty[0]} for _ in range(3)])
    assert await users.count(select(User).join(User.orders)) == 3
    assert await users.count(select(User).outerjoin(User.orders)) == 22
    assert await users.count(select(User).join(User.orders).where(Order.status == Status.PAID)) == 0
    assert await users.count(select(User).where(User.orders.any())) == 1


async def test_exists_says_whether_there_is_any_row(users: UserRepository, twenty: list[UUID]) -> None:
    with assert_statements(users.session, 5):
        assert await users.exists() is True
        assert await users.exists(select(User).where(User.age == 3).order_by(User.name)) is True
        assert await users.exists(select(User).where(User.age == 33)) is False
        assert await users.exists(select(User).join(User.orders).distinct()) is False
        assert await users.exists(select(User).limit(1).offset(20)) is False
    assert await AsyncRepository(users.session, Seat).exists() is False


# --- stream


@pytest.fixture
async def crowd(session: AsyncSession) -> int:
    numbers = select(func.generate_series(1, 20_000).label("n")).subquery()
    await session.execute(insert(Counter).from_select(["id"], select(numbers.c.n)))
    return 20_000


async def test_streams_every_row_in_order_in_one_statement(session: AsyncSession, crowd: int) -> None:
    with assert_statements(session, 1):
        ids = [counter.id async for counter in AsyncRepository(session, Counter).stream()]
    assert ids == list(range(1, crowd + 1))


async def test_a_stream_holds_no_more_than_its_batch(session: AsyncSession, crowd: int) -> None:
    """Control: a list of them holds all."""
    counters = AsyncRepository(session, Counter)
    most = 0
    async for _ in counters.stream(batch=100):
        most = max(most, len(session.identity_map))
    assert 0 < most <= 201, most  # one batch, the next one, and the row in hand
    held = await counters.list(limit=None)
    assert len(session.identity_map) == len(held) == crowd


async def test_a_stream_takes_the_statements_order_and_limit_and_loads(
    users: UserRepository, twenty: list[UUID]
) -> None:
    await AsyncRepository(users.session, Order).create(user_id=twenty[19])
    statement = select(User).order_by(User.age.desc()).limit(3)
    found = [(user.age, len(user.orders)) async for user in users.stream(statement, batch=2, load=[User.orders])]
    assert found == [(19, 1), (18, 0), (17, 0)]


async def test_an_empty_stream_ends_at_once(users: UserRepository) -> None:
    assert [user async for user in users.stream()] == []


async def test_a_batch_of_no_rows_is_refused(users: UserRepository) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        await anext(users.stream(batch=0))


async def test_the_session_is_usable_inside_a_stream_and_at_once_after_leaving_it(
    committed_database: Database,
) -> None:
    async with committed_database.session() as session:
        users = UserRepository(session)
        await users.create_many(user_rows(500))
        await session.commit()
        seen = 0
        async for user in users.stream(batch=10):
            await users.update(user, nickname="seen")
            seen += 1
            assert await users.count(select(User).where(User.nickname == "seen")) == seen
            if seen == 25:
                break
        assert await users.count() == 500
        await session.commit()
        assert await users.count(select(User).where(User.nickname == "seen")) == 25
    assert committed_database.pool_status().in_use == 0


async def test_a_stream_left_by_an_error_or_never_finished_gives_the_connection_back(
    committed_database: Database,
) -> None:
    async with committed_database.session() as session:
        await UserRepository(session).create_many(user_rows(100))
        await session.commit()
    left: list[AsyncIterator[User]] = []
    for _ in range(3):
        async with committed_database.session() as session:
            stream = UserRepository(session).stream(batch=10)
            await anext(stream)
            left.append(stream)

    async def fail() -> None:
        async with committed_database.session() as session:
            async for user in UserRepository(session).stream(batch=10):
                raise KeyError(user.name)

    with pytest.raises(KeyError):
        await fail()
    assert committed_database.pool_status().in_use == 0
    left.clear()
    gc.collect()
    async with committed_database.session() as session:
        assert await UserRepository(session).count() == 100


# --- create, update, delete


async def test_creates_a_row_with_its_defaults_in_one_statement(users: UserRepository) -> None:
    await users.count()  # the session's first statement opens the fixture's savepoint
    with assert_statements(users.session, 1):
        user = await users.create(email="a@example.org", name="A")
        assert user.nickname == "nobody"
    assert user.id is not None
    assert (await users.session.scalars(select(User.email))).all() == ["a@example.org"]


@pytest.mark.parametrize("name", ["emial", "metadata", "registry", "_sa_instance_state", "__dict__", "shout", "get"])
async def test_an_unknown_attribute_is_refused_before_anything_is_sent(users: UserRepository, name: str) -> None:
    """Fault 10."""
    with assert_statements(users.session, 0), pytest.raises(UnknownAttribute, match=f"attribute {name!r}") as caught:
        await users.create(**{"email": "a@example.org", "name": "A", name: "x"})
    assert (caught.value.model, caught.value.attribute) == (User, name)
    assert not users.session.new


async def test_an_unknown_attribute_is_refused_before_anything_is_set(users: UserRepository) -> None:
    """Fault 10. Control: the reference's update takes it and writes nothing."""
    user = await users.create(email="a@example.org", name="A")
    with assert_statements(users.session, 0), pytest.raises(UnknownAttribute):
        await users.update(user, name="B", emial="b@example.org")
    assert user.name == "A"
    assert not users.session.dirty
    with assert_statements(users.session, 0):
        await ReferenceRepository(users.session, User).update(user, emial="b@example.org")
    assert user.emial == "b@example.org"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["doubled", "is_above", "name_length"])
async def test_what_the_database_or_a_method_computes_cant_be_set(session: AsyncSession, name: str) -> None:
    repository: AsyncRepository[Any] = AsyncRepository(session, User if name == "name_length" else Specimen)
    with pytest.raises(UnknownAttribute):
        await repository.create(**{name: 1})


async def test_a_relationship_that_is_only_viewed_cant_be_set(session: AsyncSession) -> None:
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


async def test_a_failed_create_raises_an_error_that_sqlalchemys_class_catches(users: UserRepository) -> None:
    await users.create(email="a@example.org", name="A")
    with pytest.raises(IntegrityError) as caught:
        await users.create(email="a@example.org", name="B")
    assert isinstance(caught.value, UniqueViolation)
    assert caught.value.constraint == "uq_users_email"


async def test_updates_what_has_changed_and_moves_updated_at(users: UserRepository) -> None:
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


async def test_an_object_of_no_or_another_session_isnt_silently_left_unwritten(
    users: UserRepository, database: Database
) -> None:
    """Control: the reference's update sets it and writes nothing."""
    user = await users.create(email="a@example.org", name="A")
    async with database.session() as other:
        for instance in (user, User(email="b@example.org", name="B")):
            with pytest.raises(InvalidRequestError, match="isn't in the repository's session"):
                await UserRepository(other).update(instance, name="C")
        with assert_statements(other, 0):
            await ReferenceRepository(other, User).update(User(), name="C")


async def _paid_order(database: Database) -> UUID:
    async with database.begin() as session:
        user = await UserRepository(session).create(email="a@example.org", name="A")
        return (await AsyncRepository(session, Order).create(user=user)).id


async def test_updating_a_versioned_object_whose_row_has_moved_on_raises_stale_row(
    committed_database: Database,
) -> None:
    """Control: an object without a version overwrites the other's change."""
    id = await _paid_order(committed_database)
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


async def test_deleting_a_versioned_object_whose_row_has_moved_on_raises_stale_row(
    committed_database: Database,
) -> None:
    id = await _paid_order(committed_database)
    async with committed_database.session() as mine, committed_database.session() as theirs:
        order = await AsyncRepository(mine, Order).get_one(id)
        await AsyncRepository(theirs, Order).update(await AsyncRepository(theirs, Order).get_one(id), total_cents=1)
        await theirs.commit()
        with pytest.raises(StaleRow):
            await AsyncRepository(mine, Order).delete(order)


async def test_deletes_a_row(users: UserRepository, twenty: list[UUID]) -> None:
    user = await users.get_one(twenty[0])
    await users.delete(user)
    assert await users.get(twenty[0]) is None
    assert await users.count() == 19


async def test_a_delete_cascades_over_relationships_that_raise_when_read(session: AsyncSession) -> None:
    albums = AsyncRepository(session, Album)
    album = await albums.create(title="A", tracks=[Track(position=1), Track(position=2)])
    session.expunge_all()
    album = await albums.get_one(album.id)
    await albums.delete(album)
    assert await AsyncRepository(session, Track).count() == 0


async def test_a_delete_without_a_cascade_is_refused_where_others_cant_let_go(
    users: UserRepository, twenty: list[UUID]
) -> None:
    await AsyncRepository(users.session, Order).create(user_id=twenty[0])
    users.session.expunge_all()
    user = await users.get_one(twenty[0])
    with pytest.raises(NotNullViolation) as caught:
        await users.delete(user)
    assert caught.value.column == "user_id"


async def test_a_delete_behind_the_orms_back_is_a_foreign_key_violation(
    users: UserRepository, twenty: list[UUID]
) -> None:
    await AsyncRepository(users.session, Order).create(user_id=twenty[0])
    with pytest.raises(ForeignKeyViolation) as caught:
        await users.delete_many([twenty[1], twenty[0]])
    assert caught.value.row_index == 1


# --- the rest goes to other modules


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


async def test_many_rows_go_through_bulk(users: UserRepository) -> None:
    created = await users.create_many(user_rows(3))
    assert isinstance(created, bulk.Created)
    matched = await users.update_many([{"id": created.keys[0], "age": 70}], chunk_size=1)
    assert (matched.count, matched.missing) == (1, [])
    upserted = await users.upsert_many([{"email": "user0@example.org", "age": 71, "name": "N"}], on=["email"])
    assert upserted == bulk.Upserted(0, 1, 0)
    assert (await users.get_one(created.keys[0])).age == 71
    assert (await users.delete_many(created.keys)).count == 3
    assert (await users.create_many(user_rows(3), keys=False)).keys == []


async def test_pages_take_load_and_count(users: UserRepository, twenty: list[UUID]) -> None:
    with assert_statements(users.session, 3):
        page = await users.page(limit=5, load=[User.orders], count=True)
    assert [user.id for user in page.items] == twenty[:5]
    assert page.items[0].orders == []
    assert page.total == 20
    second = await users.page(limit=5, after=page.next)
    assert [user.id for user in second.items] == twenty[5:10]


async def test_locks_by_key(users: UserRepository, twenty: list[UUID]) -> None:
    locked = await users.lock([twenty[3], twenty[1], str(twenty[3])])
    assert list(locked) == [twenty[1], twenty[3]]
    with pytest.raises(NotFound):
        await users.lock([uuid4()])


async def test_a_listing_sees_what_is_pending_in_the_session(users: UserRepository, session: AsyncSession) -> None:
    session.add(User(email="pending@example.org", name="P"))
    assert await users.count() == 1
    session.add(User(email="pending2@example.org", name="P"))
    assert len(await users.list()) == 2
    session.add(User(email="pending3@example.org", name="P"))
    assert len([user async for user in users.stream()]) == 3


async def test_repositories_read_the_same_objects_in_one_session(users: UserRepository, twenty: list[UUID]) -> None:
    loads = 0

    @event.listens_for(User, "load")
    def count(*_: Any) -> None:
        nonlocal loads
        loads += 1

    try:
        first = await users.list(limit=3)
        assert await users.get_by_ids(twenty[:3]) == first
        assert (await users.page(limit=2)).items == first[:2]
    finally:
        event.remove(User, "load", count)
    assert loads == 3
