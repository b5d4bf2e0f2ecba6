"""`update_many`, `update_by_key` and `delete_many`, and their effect on objects in the session."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import InvalidRequestError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository, ForeignKeyViolation, MatchResult, StaleRow, TooLong, UnknownAttribute, bulk
from howdah_tests.support.sample_models import (
    Album,
    Counter,
    Label,
    Order,
    Seat,
    Specimen,
    Status,
    Track,
    User,
    UserRepository,
)
from howdah_tests.support.sample_rows import LONG_AGO, emails, make_orders, make_users


async def test_each_row_is_updated_to_its_own_values(session: AsyncSession) -> None:
    keys = await make_users(session, 5)
    rows = [{"id": key, "name": f"New {i}", "age": None} for i, key in enumerate(reversed(keys))]
    assert await bulk.update_many(session, User, rows, chunk_size=2) == MatchResult(5, [])
    found = list(await session.scalars(select(User).order_by(User.id)))
    assert [(user.name, user.age) for user in found] == [(f"New {4 - i}", None) for i in range(5)]
    assert [user.email for user in found] == [f"user{i}@example.org" for i in range(5)]
    assert all(user.updated_at > LONG_AGO for user in found)


async def test_more_rows_than_the_maximum_of_parameters_can_be_written(session: AsyncSession) -> None:
    """Fault 4. Control: the reference's IN fails with more than 32,767 keys."""
    await bulk.insert_many(session, Counter, ({"id": i} for i in range(40_000)), chunk_size=10_000)
    ids = list(range(40_000))
    with pytest.raises(StatementError, match="32767"):
        async with session.begin_nested():
            await session.execute(update(Counter).where(Counter.id.in_(ids)).values(value=1))
    assert await bulk.update_by_key(session, Counter, [*ids, -1], {"value": 1}) == MatchResult(40_000, [-1])
    rows = [{"id": i, "value": i} for i in ids]
    assert await bulk.update_many(session, Counter, rows, chunk_size=40_000) == MatchResult(40_000, [])
    assert await session.scalar(select(func.sum(Counter.value))) == sum(ids)
    assert await bulk.delete_many(session, Counter, [-2, *ids]) == MatchResult(40_000, [-2])


async def test_missing_keys_are_reported_in_the_order_of_the_input(session: AsyncSession) -> None:
    keys = await make_users(session, 6)
    missing_keys = [uuid4() for _ in range(4)]
    requested = [missing_keys[2], keys[5], missing_keys[0], keys[0], missing_keys[3], missing_keys[1]]
    rows = [{"id": key, "name": "New"} for key in requested]
    missing = [missing_keys[2], missing_keys[0], missing_keys[3], missing_keys[1]]
    assert await bulk.update_many(session, User, rows, chunk_size=2) == MatchResult(2, missing)
    assert await bulk.update_by_key(session, User, [*requested, missing_keys[2]], {"name": "B"}) == MatchResult(
        2, missing
    )
    assert await bulk.delete_many(session, User, map(str, [*requested, keys[5]])) == MatchResult(2, missing)
    assert len(await emails(session)) == 4


async def test_composite_keys_are_updated_and_deleted(session: AsyncSession) -> None:
    await bulk.insert_many(session, Seat, [{"row": row, "number": n} for row in "AB" for n in range(3)])
    rows = [{"row": "A", "number": 1, "taken_by": "x"}, {"row": "C", "number": 1, "taken_by": "y"}]
    assert await bulk.update_many(session, Seat, rows) == MatchResult(1, [("C", 1)])
    assert await bulk.update_by_key(session, Seat, [("B", 2), ["A", 1]], {"taken_by": "z"}) == MatchResult(2, [])
    assert await bulk.delete_many(session, Seat, [("A", 1), ("Z", 1)]) == MatchResult(1, [("Z", 1)])
    taken = (await session.execute(select(Seat.row, Seat.number).where(Seat.taken_by == "z"))).all()
    assert taken == [("B", 2)]


async def test_a_text_that_is_too_long_is_rejected_and_not_truncated(session: AsyncSession) -> None:
    """Control: a cast to an array of VARCHAR(5), as SQLAlchemy renders it, truncates the text."""
    await bulk.insert_many(session, Label, [{"name": "a", "colour": "red"}])
    with pytest.raises(TooLong) as caught:
        await bulk.update_many(session, Label, [{"name": "a", "colour": "yellow"}])
    assert caught.value.row_index == 0
    truncating = text("UPDATE labels SET colour = g.c FROM unnest(CAST(:c AS VARCHAR(5)[])) AS g(c)")
    await session.execute(truncating, {"c": ["yellow"]})
    assert await session.scalar(select(Label.colour)) == "yello"
    assert await bulk.update_many(session, Label, [{"name": "abcdefgh", "colour": "x"}]) == MatchResult(0, ["abcdefgh"])


async def test_rows_with_one_key_are_written_in_order_for_every_chunk_size(session: AsyncSession) -> None:
    for chunk_size in (1, 2, 3, 100):
        keys = (await bulk.insert_many(session, Counter, [{"value": 0}, {"value": 0}])).keys
        rows = [{"id": key, "value": i} for i, key in enumerate([*keys, keys[0], keys[0], keys[1]], start=1)]
        assert await bulk.update_many(session, Counter, rows, chunk_size=chunk_size) == MatchResult(5, [])
        values = await session.scalars(select(Counter.value).where(Counter.id.in_(keys)).order_by(Counter.id))
        assert list(values) == [4, 5]


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": UUID(int=1), "name": "A"}, {"id": UUID(int=2), "age": 1}],
        [{"id": UUID(int=1), "name": "A"}, {"name": "B"}],
        [{"id": UUID(int=1), "name": "A"}, {"id": UUID(int=2)}],
    ],
)
@pytest.mark.parametrize("write", [bulk.update_many, bulk.upsert_many])
async def test_every_row_must_have_the_key_and_the_same_attributes(
    session: AsyncSession, write: Any, rows: Any
) -> None:
    with pytest.raises(ValueError, match=r"row 1 of the input, counted from 0, (must name id|names other attributes)"):
        await write(session, User, rows)


async def test_rows_with_only_a_key_are_matched_and_not_changed(session: AsyncSession) -> None:
    keys = await make_users(session, 2)
    missing = uuid4()
    assert await bulk.update_many(session, User, [{"id": key} for key in [*keys, missing]]) == MatchResult(2, [missing])
    assert await bulk.update_by_key(session, User, keys, {}) == MatchResult(2, [])
    assert set(await session.scalars(select(User.updated_at))) == {LONG_AGO}


async def test_the_version_is_incremented_and_a_stale_version_is_rejected(session: AsyncSession) -> None:
    keys = await make_orders(session, 3)
    assert await bulk.update_many(session, Order, [{"id": key, "total_cents": 5} for key in keys]) == MatchResult(3, [])
    assert await bulk.update_by_key(session, Order, keys, {"total_cents": 6}) == MatchResult(3, [])
    fresh = [{"id": key, "total_cents": 7, "version": 3} for key in keys]
    assert await bulk.update_many(session, Order, fresh) == MatchResult(3, [])
    rows = (await session.execute(select(Order.version, Order.updated_at, Order.total_cents))).all()
    assert {(version, updated > LONG_AGO, cents) for version, updated, cents in rows} == {(4, True, 7)}
    stale = [{**fresh[0], "version": 4}, {**fresh[1], "version": 3}, {**fresh[2], "version": 4}]
    with pytest.raises(
        StaleRow, match=f"1 Order rows don't have the version that the input names; read them again: {keys[1]}"
    ):
        await bulk.update_many(session, Order, stale)
    assert set(await session.scalars(select(Order.version))) == {4}, "no row is written"


async def test_a_row_with_only_a_version_is_checked_too(session: AsyncSession) -> None:
    keys = await make_orders(session, 1)
    with pytest.raises(StaleRow):
        await bulk.update_many(session, Order, [{"id": keys[0], "version": 2}])
    assert await bulk.update_many(session, Order, [{"id": keys[0], "version": 1}]) == MatchResult(1, [])
    assert await session.scalar(select(Order.version)) == 2


async def test_all_stale_rows_are_reported_and_none_is_written(session: AsyncSession) -> None:
    keys = await make_orders(session, 9)
    await bulk.update_by_key(session, Order, keys[::2], {"total_cents": 100})
    rows = [{"id": key, "version": 1, "total_cents": 7} for key in reversed(keys)]
    with pytest.raises(
        StaleRow, match=r"^5 Order rows don't have the version that the input names; read them again: .*"
    ) as caught:
        await bulk.update_many(session, Order, rows)
    assert caught.value.keys == keys[::-2]
    assert (
        await session.scalar(select(func.count()).where(Order.total_cents == 7)) == 1
    )  # the row that had this value before


async def test_update_where_updates_the_rows_that_match_the_criteria(session: AsyncSession) -> None:
    keys = await make_orders(session, 6)
    orders = AsyncRepository(session, Order)
    loaded = await orders.get_by_ids(keys[:2])
    loaded[0].total_cents = 50  # pending, so it is flushed first
    assert await orders.update_where(Order.total_cents >= 3, total_cents=Order.total_cents + 1) == 4
    found = (await session.execute(select(Order.total_cents, Order.version).order_by(Order.id))).all()
    assert found == [(51, 3), (1, 1), (2, 1), (4, 2), (5, 2), (6, 2)]
    assert [(order.total_cents, order.version) for order in loaded] == [(51, 3), (1, 1)]
    assert await orders.update_where(Order.total_cents < 0, total_cents=0) == 0
    assert await orders.update_where(Order.total_cents > 4) == 3
    session.expunge_all()
    assert await orders.update_where(Order.total_cents > 4, status=Status.PAID) == 3
    assert (await session.scalars(select(Order.updated_at > LONG_AGO).order_by(Order.id))).all() == [
        *(True, False, False, True, True, True)
    ]
    with pytest.raises(ValueError, match="can't be set"):
        await orders.update_where(Order.total_cents > 4, version=1)
    with pytest.raises(UnknownAttribute):
        await orders.update_where(Order.total_cents > 4, totl=1)


async def test_the_key_and_the_version_cannot_be_set_for_many_rows(session: AsyncSession) -> None:
    keys = await make_orders(session, 1)
    for values in ({"id": uuid4()}, {"version": 7}):
        with pytest.raises(ValueError, match="can't be set"):
            await bulk.update_by_key(session, Order, keys, values)
    with pytest.raises(UnknownAttribute):
        await bulk.update_by_key(session, Order, keys, {"user": None})


async def test_objects_in_the_session_are_refreshed(session: AsyncSession) -> None:
    keys = await make_orders(session, 4)
    orders = await AsyncRepository(session, Order).get_by_ids(keys)
    orders[3].total_cents = 99  # pending, so it is flushed first and not lost
    await bulk.update_many(session, Order, [{"id": keys[0], "total_cents": 10}])
    await bulk.update_by_key(session, Order, keys[1:2], {"status": Status.PAID})
    await bulk.upsert_many(session, Order, [{"id": keys[2], "user_id": orders[2].user_id, "total_cents": 30}])
    await bulk.update_many(session, Order, [{"id": keys[3], "weight": Decimal(1)}])
    assert [order.total_cents for order in orders] == [10, 1, 30, 99]
    assert orders[1].status is Status.PAID
    assert [order.version for order in orders] == [2, 2, 2, 3]
    assert all(order.updated_at > LONG_AGO for order in orders)


async def test_a_relationship_is_not_left_stale_when_its_column_changes(session: AsyncSession) -> None:
    users = await make_users(session, 2)
    orders = AsyncRepository(session, Order)
    order = await orders.create(user_id=users[0])
    await orders.get(order.id, load=[Order.user])
    assert order.user.id == users[0]
    await bulk.update_many(session, Order, [{"id": order.id, "user_id": users[1]}])
    with pytest.raises(InvalidRequestError, match="raise"):
        _ = order.user
    await orders.get(order.id, load=[Order.user])
    assert order.user.id == users[1]


async def test_a_deferred_column_is_not_left_stale(session: AsyncSession) -> None:
    specimens = AsyncRepository(session, Specimen)
    specimen = await specimens.create(id=1, notes="old", left=1, top=2)
    assert (specimen.notes, specimen.corner.left) == ("old", 1)
    await bulk.update_by_key(session, Specimen, [1], {"notes": "new", "left": 3})
    assert specimen.corner.left == 3
    assert vars(specimen).get("notes") != "old"
    await session.refresh(specimen, ["notes"])
    assert specimen.notes == "new"


async def test_deleted_objects_are_expunged_and_their_keys_can_be_reused(session: AsyncSession) -> None:
    keys = await make_users(session, 3)
    users = UserRepository(session)
    loaded = await users.get_by_ids(keys)
    loaded[0].name = "pending"
    await bulk.delete_many(session, User, keys[:2])
    assert [user in session for user in loaded] == [False, False, True]
    assert await users.get(keys[0]) is None
    assert (await users.create(id=keys[0], email="again@example.org", name="Again")).id == keys[0]


async def test_a_delete_follows_only_the_cascades_of_the_database(session: AsyncSession) -> None:
    album = await AsyncRepository(session, Album).create(title="A", tracks=[Track(position=1)])
    with pytest.raises(ForeignKeyViolation):
        await bulk.delete_many(session, Album, [album.id])
    assert album in session
