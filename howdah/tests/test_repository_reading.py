"""Repositories: reads by key, lists, pages and counts."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Select, event, func, literal, select, text, union_all
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, joinedload, selectinload

from howdah import AsyncRepository, Database, InvalidValue, NotFound
from howdah.testing import assert_statements
from howdah_tests.support.reference_repository import ReferenceRepository
from howdah_tests.support.sample_models import Car, Order, Seat, Status, User, UserRepository, Vehicle
from howdah_tests.support.sample_rows import user_rows

# --- get, get_one, get_by_ids


async def test_get_returns_the_object_with_the_key(users: UserRepository, twenty: list[UUID]) -> None:
    found = await users.get(twenty[3])
    assert found is not None
    assert found.email == "user3@example.org"


async def test_get_returns_none_for_a_key_without_a_row(users: UserRepository) -> None:
    assert await users.get(uuid4()) is None
    assert await users.get(uuid4(), load=[User.orders]) is None


async def test_get_returns_an_object_of_the_session_without_a_statement_for_any_spelling_of_the_key(
    users: UserRepository, twenty: list[UUID]
) -> None:
    """Control: the session's `get` doesn't find a loaded object by its key as text."""
    loaded = await users.get(twenty[0])
    with assert_statements(users.session, 0):
        assert await users.get(twenty[0]) is loaded
        assert await users.get(str(twenty[0])) is loaded
    with assert_statements(users.session, 1):
        await users.session.get(User, str(twenty[0]))


async def test_get_accepts_a_key_as_text(users: UserRepository, twenty: list[UUID]) -> None:
    found = await users.get(str(twenty[1]), load=[User.orders])
    assert found is not None
    assert found.id == twenty[1]
    assert await users.get_one(str(twenty[1])) is found


async def test_text_that_is_not_a_key_is_rejected_before_anything_is_sent(users: UserRepository) -> None:
    with assert_statements(users.session, 0):
        for call in (users.get("x"), users.get_one("x"), users.get("x", load=[User.orders]), users.get_by_ids(["x"])):
            with pytest.raises(InvalidValue, match="isn't a UUID"):
                await call


async def test_get_accepts_a_composite_key_in_every_form(session: AsyncSession) -> None:
    seats = AsyncRepository(session, Seat)
    await seats.create_many([{"row": "A", "number": n} for n in range(3)])
    first = await seats.get(("A", 1))
    assert first is not None
    assert (first.row, first.number) == ("A", 1)
    assert (
        await seats.get(["A", 1], load=[joinedload("*")]) is first
    )  # a list instead of a tuple, and with a loader option
    assert await seats.get_by_ids([("A", 2), ("B", 0), ("A", 1)]) == [await seats.get(("A", 2)), first]
    for wrong in ("A", ("A",), ("A", 1, 2)):
        with pytest.raises(ValueError, match="a key of Seat needs one value for each column"):
            await seats.get(wrong)


async def test_get_one_raises_not_found_with_the_model_and_the_key(users: UserRepository) -> None:
    missing = uuid4()
    with pytest.raises(NotFound, match=f"no User with key {missing}") as caught:
        await users.get_one(missing)
    assert (caught.value.model, caught.value.keys) == (User, [missing])


async def test_load_loads_a_relationship_of_an_object_that_is_in_the_session(
    users: UserRepository, twenty: list[UUID]
) -> None:
    """Control: without `load` the relationship raises."""
    await AsyncRepository(users.session, Order).create(user_id=twenty[0])
    loaded = await users.get_one(twenty[0])
    with pytest.raises(InvalidRequestError, match="raise"):
        _ = loaded.orders
    with assert_statements(users.session, 2):
        again = await users.get_one(twenty[0], load=[User.orders])
    assert again is loaded
    assert len(loaded.orders) == 1


async def test_load_works_for_an_object_that_was_just_created(users: UserRepository) -> None:
    user = await users.create(email="new@example.org", name="New")
    assert (await users.get_one(user.id, load=[User.orders])).orders == []


async def test_load_accepts_loader_options_of_any_depth(users: UserRepository, twenty: list[UUID]) -> None:
    await AsyncRepository(users.session, Order).create_many([{"user_id": twenty[0]}, {"user_id": twenty[0]}])
    for option in (selectinload(User.orders).selectinload(Order.user), joinedload(User.orders).joinedload(Order.user)):
        users.session.expunge_all()
        user = await users.get_one(twenty[0], load=[option])
        assert [order.user for order in user.orders] == [user, user]
        users.session.expunge_all()
        assert len((await users.get_by_ids(twenty[:1], load=[option]))[0].orders) == 2
        users.session.expunge_all()
        assert [len(each.orders) for each in await users.list(limit=3, load=[option])] == [2, 0, 0]


async def test_get_by_ids_keeps_the_order_of_the_input_without_duplicates_and_missing_rows(
    users: UserRepository, twenty: list[UUID]
) -> None:
    """Control: the reference returns the rows in any order (here that of the table)."""
    requested = [twenty[7], uuid4(), twenty[2], twenty[7], str(twenty[2]), twenty[11]]
    with assert_statements(users.session, 1):
        found = await users.get_by_ids(iter(requested))
    assert [user.id for user in found] == [twenty[7], twenty[2], twenty[11]]
    plain = await ReferenceRepository(users.session, User).get_by_ids([twenty[7], twenty[2], twenty[11]])
    assert [user.id for user in plain] == [twenty[2], twenty[7], twenty[11]]


async def test_get_by_ids_of_an_empty_list_sends_nothing(users: UserRepository) -> None:
    with assert_statements(users.session, 0):
        assert await users.get_by_ids([]) == []


async def test_get_by_ids_loads_relationships(users: UserRepository, twenty: list[UUID]) -> None:
    await AsyncRepository(users.session, Order).create(user_id=twenty[1])
    with assert_statements(users.session, 2):
        found = await users.get_by_ids([twenty[1], twenty[0]], load=[User.orders])
    assert [len(user.orders) for user in found] == [1, 0]


async def test_get_by_ids_accepts_any_number_of_keys_in_one_statement(committed_database: Database) -> None:
    """Fault 4. Control: the reference fails with more than 32,767 keys."""
    ids = [uuid4() for _ in range(100_000)]
    async with committed_database.session() as session:
        users = UserRepository(session)
        await users.create(id=ids[99_999], email="last@example.org", name="Last")
        with assert_statements(session, 1):
            assert [user.name for user in await users.get_by_ids(ids)] == ["Last"]
        with pytest.raises(SQLAlchemyError, match="32767"):
            await ReferenceRepository(session, User).get_by_ids(ids[:32_768])


# --- list


async def test_list_returns_100_rows_in_key_order_by_default(users: UserRepository) -> None:
    keys = (await users.create_many(user_rows(120))).keys
    await users.session.execute(
        text("UPDATE users SET age = age WHERE age < 50")
    )  # moves these rows to the end of the table
    assert [user.id for user in await users.list()] == sorted(keys)[:100]
    in_table = (await users.session.scalars(select(User.id).limit(100))).all()
    assert in_table != sorted(keys)[:100], "control: without ORDER BY the order is another one"
    assert len(await users.list(limit=None)) == 120


async def test_the_key_breaks_ties_in_the_direction_of_the_order_by(users: UserRepository, twenty: list[UUID]) -> None:
    ascending = await users.list(select(User).order_by(User.name))
    assert [user.id for user in ascending] == [key for i in range(10) for key in (twenty[i], twenty[i + 10])]
    descending = await users.list(select(User).order_by(User.name.desc()))
    assert [user.id for user in descending] == [user.id for user in reversed(ascending)]
    by_text = await users.list(select(User).order_by(text("name")))
    assert by_text == ascending
    by_name = await users.list(select(User).order_by("name"))
    assert by_name == ascending


async def test_a_list_query_may_be_ordered_by_its_key_descending(users: UserRepository, twenty: list[UUID]) -> None:
    assert [user.id for user in await users.list(select(User).order_by(User.id.desc()), limit=3)] == twenty[:-4:-1]


async def test_offset_and_limit_select_a_part(users: UserRepository, twenty: list[UUID]) -> None:
    assert [user.id for user in await users.list(offset=5, limit=3)] == twenty[5:8]
    assert [user.id for user in await users.list(offset=18, limit=None)] == twenty[18:]
    assert await users.list(limit=0) == []
    assert await users.list(offset=20) == []


async def test_a_huge_offset_returns_no_rows_and_a_huge_limit_all_rows(
    users: UserRepository, twenty: list[UUID]
) -> None:
    assert await users.list(offset=2**62) == []
    assert len(await users.list(limit=2**62)) == 20


@pytest.mark.parametrize("options", [{"offset": -1}, {"limit": -1}])
async def test_negative_limits_and_offsets_are_rejected(users: UserRepository, options: dict[str, Any]) -> None:
    with assert_statements(users.session, 0), pytest.raises(ValueError, match="must not be negative"):
        await users.list(**options)


async def test_an_offset_beyond_the_range_of_bigint_is_a_database_error(users: UserRepository) -> None:
    with pytest.raises(DBAPIError):
        await users.list(offset=10**30)


@pytest.mark.parametrize("limited", [select(User).limit(3), select(User).offset(3), select(User).fetch(3)])
async def test_a_statement_with_its_own_limit_is_rejected(users: UserRepository, limited: Select[Any]) -> None:
    for call in (users.list(limited), users.page(limited)):
        with pytest.raises(ValueError, match="pass them as arguments"):
            await call


@pytest.mark.parametrize(
    "other", [select(Order), select(User.id), select(User, Order), select(func.count()), select(User.__table__)]
)
async def test_a_statement_of_another_model_is_rejected(users: UserRepository, other: Select[Any]) -> None:
    for call in (users.list(other), users.page(other), anext(users.stream(other))):
        with pytest.raises(ValueError, match=r"select\("):
            await call


async def test_list_returns_the_rows_of_an_alias_and_of_a_subclass(session: AsyncSession) -> None:
    vehicles = AsyncRepository(session, Vehicle)
    await vehicles.create_many([{"wheels": n} for n in range(3)])
    await AsyncRepository(session, Car).create_many([{"wheels": 4, "doors": n} for n in range(2)])
    assert len(await vehicles.list()) == 5
    assert len(await vehicles.list(select(Car))) == 2
    other = aliased(Vehicle)
    assert len(await vehicles.list(select(other).where(other.wheels < 2))) == 2
    both = union_all(select(Vehicle).where(Vehicle.wheels == 0), select(Vehicle).where(Vehicle.wheels == 4)).subquery()
    assert [vehicle.wheels for vehicle in await vehicles.list(select(aliased(Vehicle, both)))] == [0, 4, 4]


async def test_list_accepts_distinct_and_grouped_statements(users: UserRepository, twenty: list[UUID]) -> None:
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


async def test_an_object_that_a_join_repeats_is_returned_once(users: UserRepository, twenty: list[UUID]) -> None:
    await AsyncRepository(users.session, Order).create_many([{"user_id": twenty[0]}, {"user_id": twenty[0]}])
    assert [user.id for user in await users.list(select(User).join(User.orders))] == twenty[:1]


# --- count, exists


async def test_count_counts_all_rows_or_those_of_a_statement(users: UserRepository, twenty: list[UUID]) -> None:
    with assert_statements(users.session, 4):
        assert await users.count() == 20
        assert await users.count(select(User).where(User.age < 5)) == 5
        assert await users.count(select(User).order_by(User.name).limit(7)) == 7
        assert await users.count(select(User).order_by(User.name).offset(15).limit(7)) == 5
    assert await users.count(select(User).where(literal(False))) == 0
    assert await users.count(select(User.name).distinct()) == 10, "DISTINCT counts distinct rows, not one"


async def test_count_counts_rows_of_joins_limits_and_outer_joins(users: UserRepository, twenty: list[UUID]) -> None:
    await AsyncRepository(users.session, Order).create_many([{"user_id": twenty[0]} for _ in range(3)])
    assert await users.count(select(User).join(User.orders)) == 3
    assert await users.count(select(User).outerjoin(User.orders)) == 22
    assert await users.count(select(User).join(User.orders).where(Order.status == Status.PAID)) == 0
    assert await users.count(select(User).where(User.orders.any())) == 1


async def test_exists_is_true_if_there_is_any_row(users: UserRepository, twenty: list[UUID]) -> None:
    with assert_statements(users.session, 5):
        assert await users.exists() is True
        assert await users.exists(select(User).where(User.age == 3).order_by(User.name)) is True
        assert await users.exists(select(User).where(User.age == 33)) is False
        assert await users.exists(select(User).join(User.orders).distinct()) is False
        assert await users.exists(select(User).limit(1).offset(20)) is False
    assert await AsyncRepository(users.session, Seat).exists() is False


# --- methods that call other modules


async def test_page_accepts_load_and_count(users: UserRepository, twenty: list[UUID]) -> None:
    with assert_statements(users.session, 3):
        page = await users.page(limit=5, load=[User.orders], count=True)
    assert [user.id for user in page.items] == twenty[:5]
    assert page.items[0].orders == []
    assert page.total == 20
    second = await users.page(limit=5, after=page.next)
    assert [user.id for user in second.items] == twenty[5:10]


async def test_lock_returns_the_rows_in_key_order(users: UserRepository, twenty: list[UUID]) -> None:
    locked = await users.lock([twenty[3], twenty[1], str(twenty[3])])
    assert list(locked) == [twenty[1], twenty[3]]
    with pytest.raises(NotFound):
        await users.lock([uuid4()])


# --- objects of the session


async def test_a_list_contains_the_pending_objects_of_the_session(users: UserRepository, session: AsyncSession) -> None:
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
