"""Integer types store and compare exactly the value that was passed, or reject it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from pydantic import BaseModel
from sqlalchemy import (
    BigInteger,
    Integer,
    bindparam,
    cast,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy import exc as sa
from sqlalchemy.dialects.postgresql import (
    Range,
)
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository, Database, InvalidValue, JsonView, OutOfRange, bulk, lock
from howdah._types.integers import has_only_integers, to_exact_integer
from howdah_tests.support.integer_values import EXACT, FEW_INEXACT, INEXACT, HalfFloat, Separate, Suit, Tally, Whole

SIZES = [1, 25, 1100]  # INSERT, COPY, and COPY in two parts
NAMES = ["small", "whole", "doubled"]

Write = Callable[[AsyncSession, str, Any, int], Awaitable[Any]]


@pytest.fixture
async def tallies(session: AsyncSession) -> AsyncSession:
    await (await session.connection()).run_sync(Separate.metadata.create_all)
    return session


def rows_with(name: str, value: Any, count: int) -> list[dict[str, Any]]:
    """Rows of which the last one has the value."""
    return [{"id": position, name: 7} for position in range(count - 1)] + [{"id": count - 1, name: value}]


async def insert_many(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await bulk.insert_many(session, Tally, rows_with(name, value, count))


async def insert_many_for_keys(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await AsyncRepository(session, Tally).create_many(rows_with(name, value, count))


async def insert_the_same_value(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await bulk.insert_many(session, Tally, [{"id": position, name: value} for position in range(count)])


async def insert_uneven_rows(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await bulk.insert_many(session, Tally, [*rows_with(name, value, count), {"id": -1, "object_id": 1}])


async def update_many(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await bulk.insert_many(session, Tally, [{"id": position} for position in range(count)])
    await bulk.update_many(session, Tally, rows_with(name, value, count))


async def upsert_many(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await bulk.insert_many(session, Tally, [{"id": position} for position in range(count)])
    await bulk.upsert_many(session, Tally, rows_with(name, value, count), on=["id"])


async def upsert_new_rows(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await bulk.upsert_many(session, Tally, rows_with(name, value, count), on=["id"])


async def update_by_key(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await bulk.insert_many(session, Tally, [{"id": position} for position in range(count)])
    await bulk.update_by_key(session, Tally, range(count), {name: value})


async def update_where(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await bulk.insert_many(session, Tally, [{"id": position} for position in range(count)])
    await bulk.update_where(session, Tally, Tally.id >= 0, {name: value})


async def create(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await AsyncRepository(session, Tally).create(id=count - 1, **{name: value})


async def create_and_update(session: AsyncSession, name: str, value: Any, count: int) -> None:
    repository = AsyncRepository(session, Tally)
    await repository.update(await repository.create(id=count - 1), **{name: value})


async def flush_objects(session: AsyncSession, name: str, value: Any, count: int) -> None:
    session.add_all(Tally(**row) for row in rows_with(name, value, count))
    await session.flush()


async def insert_by_core(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await session.execute(insert(Tally), rows_with(name, value, count))


async def insert_by_executemany(session: AsyncSession, name: str, value: Any, count: int) -> None:
    table: Any = Tally.__table__
    await (await session.connection()).execute(insert(table), rows_with(name, value, count))


async def update_by_core(session: AsyncSession, name: str, value: Any, count: int) -> None:
    await session.execute(insert(Tally), [{"id": position} for position in range(count)])
    await session.execute(update(Tally).values({name: value}))


async def insert_by_text(session: AsyncSession, name: str, value: Any, count: int) -> None:
    statement = text(f"INSERT INTO tallies (id, {name}) VALUES (:id, :value)")
    kind = Tally.__table__.c[name].type
    await session.execute(statement.bindparams(bindparam("value", type_=kind)), {"id": count - 1, "value": value})


async def assert_rejected(session: AsyncSession, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidValue, match="isn't a whole number"):
        await bulk.insert_many(session, Tally, rows)
    with pytest.raises(InvalidValue, match="isn't a whole number"):
        await bulk.upsert_many(session, Tally, rows)
    with pytest.raises(InvalidValue, match="isn't a whole number"):
        async with session.begin_nested():
            await AsyncRepository(session, Tally).create(**rows[-1])


WRITES: list[Write] = [
    insert_many,
    insert_many_for_keys,
    insert_the_same_value,
    insert_uneven_rows,
    update_many,
    upsert_many,
    upsert_new_rows,
    update_by_key,
    update_where,
    create,
    create_and_update,
    flush_objects,
    insert_by_core,
    insert_by_executemany,
    update_by_core,
    insert_by_text,
]
SINGLE: list[Write] = [create, create_and_update, insert_by_text]
CASES = [(write, count) for write in WRITES for count in SIZES if write not in SINGLE or count == 1]


@pytest.mark.parametrize(("write", "count"), CASES)
async def test_every_write_rejects_a_value_that_no_integer_equals(
    tallies: AsyncSession, write: Write, count: int
) -> None:
    for value, name in [*((value, "big") for value in FEW_INEXACT), *((1.25, name) for name in NAMES)]:
        with pytest.raises(InvalidValue, match="isn't a whole number"):
            async with tallies.begin_nested():
                await write(tallies, name, value, count)
        assert await tallies.scalar(text("SELECT count(*) FROM tallies")) == 0


@pytest.mark.parametrize(("write", "count"), CASES)
async def test_every_write_stores_a_value_that_equals_an_integer(
    tallies: AsyncSession, write: Write, count: int
) -> None:
    for value in EXACT if count < 1000 else [True, 1.0, Decimal(1)]:
        async with tallies.begin_nested() as savepoint:
            await write(tallies, "big", value, count)
            stored = await tallies.scalar(text("SELECT big FROM tallies WHERE id = :id"), {"id": count - 1})
            assert (type(stored), stored) == (int, 1), value
            await savepoint.rollback()


@pytest.mark.parametrize("value", INEXACT, ids=lambda value: type(value).__name__)
async def test_every_inexact_value_is_rejected_and_not_shown(tallies: AsyncSession, value: Any) -> None:
    message = f"a {type(value).__name__} that isn't a whole number was rejected for an integer: pass an int, such as"
    for name in ("small", "whole", "big", "object_id"):
        with pytest.raises(InvalidValue) as caught:
            await bulk.insert_many(tallies, Tally, rows_with(name, value, 25))
        assert str(caught.value).startswith(message)
        assert caught.value.row_index == 24
        assert repr(value) not in str(caught.value)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("value", FEW_INEXACT)
async def test_items_of_arrays_are_rejected(tallies: AsyncSession, value: Any, count: int) -> None:
    for name, stored in (
        ("wholes", [value]),
        ("wholes", [1, None, value]),
        ("bigs", [1, value]),
        ("bigs", (1, value)),
        ("bigs", [[1, 2], [3, value]]),
    ):
        rows: Any = [{"id": position, name: [1]} for position in range(count - 1)] + [{"id": count - 1, name: stored}]
        await assert_rejected(tallies, rows)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("value", FEW_INEXACT)
async def test_bounds_of_ranges_are_rejected(tallies: AsyncSession, value: Any, count: int) -> None:
    for name, stored in (
        ("span", Range(value, None)),
        ("big_span", Range(None, value)),
        ("big_span", asyncpg.Range(0, value)),
        ("spans", [Range(1, 2), Range(None, value)]),
        ("spans", MultiRange([Range(value, None)])),
        ("span_array", [Range(1, 2), Range(value, None)]),
    ):
        rows: Any = [{"id": position, name: None} for position in range(count - 1)] + [{"id": count - 1, name: stored}]
        await assert_rejected(tallies, rows)


@pytest.mark.parametrize("count", SIZES)
async def test_valid_arrays_and_ranges_are_stored_unchanged(tallies: AsyncSession, count: int) -> None:
    values: dict[str, Any] = {
        "wholes": [1, None, 3],
        "bigs": [[1, 2], [3, 2**62]],
        "span": Range(1, 5),
        "big_span": Range(None, 2**40),
        "spans": MultiRange([Range(1, 2), Range(5, None)]),
        "span_array": [Range(1, 2), None],
        "object_id": 2**32 - 1,
    }
    await bulk.insert_many(tallies, Tally, [{"id": position, **values} for position in range(count)])
    await AsyncRepository(tallies, Tally).create(id=-1, **values)
    read = await tallies.execute(select(*(Tally.__table__.c[name] for name in values)))
    assert all(row._mapping == values for row in read)
    await AsyncRepository(tallies, Tally).create(id=-2, wholes=[], bigs=[True, 2.0, Suit.CLUBS], span=Range(1.0, 5))
    row = (await tallies.execute(text("SELECT wholes, bigs, lower(span) FROM tallies WHERE id = -2"))).one()
    assert tuple(row) == ([], [1, 2, 1], 1)


@pytest.mark.parametrize("value", FEW_INEXACT)
async def test_inexact_keys_are_rejected(tallies: AsyncSession, value: Any) -> None:
    repository = AsyncRepository(tallies, Tally)
    await bulk.insert_many(tallies, Tally, [{"id": position} for position in range(25)])
    for count in SIZES:
        keys = [*range(count - 1), value]
        for call in (
            lambda keys=keys: repository.get_by_ids(keys),
            lambda keys=keys: repository.lock(keys),
            lambda keys=keys: lock(tallies, Tally, keys),
            lambda keys=keys: repository.delete_many(keys),
            lambda keys=keys: bulk.update_by_key(tallies, Tally, keys, {"big": 1}),
            lambda keys=keys: bulk.update_many(tallies, Tally, [{"id": key, "big": 1} for key in keys]),
            lambda keys=keys: bulk.insert_many(
                tallies, Tally, [{"id": key if key is value else -2 - key} for key in keys]
            ),
            lambda keys=keys: bulk.upsert_many(tallies, Tally, [{"id": key} for key in keys], on=["id"]),
        ):
            with pytest.raises(InvalidValue):
                await call()
    reads: list[Callable[[], Awaitable[Any]]] = [
        lambda: repository.get(value),
        lambda: repository.get_one(value),
        lambda: tallies.get(Tally, value),
    ]
    for single in reads:
        with pytest.raises(InvalidValue):
            await single()


class TallyRead(BaseModel):
    id: int
    big: int | None


async def test_inexact_keys_of_views_and_inexact_filters_are_rejected(
    tallies: AsyncSession, database: Database
) -> None:
    await bulk.insert_many(tallies, Tally, [{"id": 1, "big": 1, "bigs": [1]}])
    half = Fraction(3, 2)
    async with JsonView(Tally, TallyRead).open(database) as view:
        assert await view.get(1) == b'{"id":1,"big":1}'
        for key in FEW_INEXACT:
            with pytest.raises(InvalidValue):
                await view.get(key)
            with pytest.raises(InvalidValue):
                await view.get_many([1, key])
        with pytest.raises(InvalidValue):
            await view.page(select(Tally).where(Tally.big == half).order_by(Tally.id), limit=5)
    for criterion in (
        Tally.big == half,
        Tally.big.in_([1, 1.5]),
        Tally.bigs.contains([1, 1.5]),
        Tally.big == literal(1.5, BigInteger),
        Tally.big == cast(1.5, Integer),
        Tally.big == literal(half, Whole),
    ):
        with pytest.raises(InvalidValue):
            await tallies.execute(select(Tally).where(criterion))
        with pytest.raises(InvalidValue):
            await bulk.update_where(tallies, Tally, criterion, {"small": 2})


async def test_a_literal_in_the_text_of_a_statement_is_rejected(tallies: AsyncSession) -> None:
    for value in FEW_INEXACT:
        with pytest.raises(sa.StatementError, match="Could not render literal value"):
            await tallies.execute(select(literal(value, BigInteger, literal_execute=True)))
    for value in EXACT:
        assert await tallies.scalar(select(literal(value, BigInteger, literal_execute=True))) == 1


async def test_comparisons_with_fractions_are_still_possible(tallies: AsyncSession) -> None:
    """SQLAlchemy sends a float or a Decimal that is compared with an integer column as a float or a Decimal."""
    await bulk.insert_many(tallies, Tally, [{"id": 1, "big": 1}, {"id": 2, "big": 2}])
    for half in (1.5, Decimal("1.5")):
        assert (await tallies.scalars(select(Tally.id).where(Tally.big > half))).all() == [2]
        assert (await tallies.scalars(select(Tally.id).where(Tally.big == half))).all() == []
        assert (await tallies.scalars(select(Tally.big * half).order_by(Tally.id))).all() == [half, 3]


async def test_numbers_beyond_64_bits_are_out_of_range(tallies: AsyncSession) -> None:
    for value in (2**64, 1e30, Decimal(2**64), Decimal("1E+999999999"), Fraction(2**64)):
        for count in SIZES:
            with pytest.raises(OutOfRange):
                await bulk.insert_many(tallies, Tally, rows_with("big", value, count))


async def test_a_rejected_value_leaves_the_transaction_usable(tallies: AsyncSession) -> None:
    with pytest.raises(InvalidValue):
        await tallies.execute(update(Tally).values(big=Fraction(1, 2)))
    assert await tallies.scalar(text("SELECT 1")) == 1


async def test_control_the_driver_truncates(tallies: AsyncSession, database: Database) -> None:
    """Without the types of `howdah._types.integers` these values are stored as 1."""
    raw = await (await tallies.connection()).get_raw_connection()
    driver: Any = raw.driver_connection
    for value in (1.99, Decimal("1.99"), Fraction(3, 2), HalfFloat(), UUID(int=1)):
        assert await driver.fetchval("SELECT $1::bigint", value) == 1
        assert await driver.fetchval("SELECT $1::int[]", [value]) == [1]


def test_a_list_of_integers_is_recognized() -> None:
    assert has_only_integers([])
    assert has_only_integers([1, 2**70, -1])
    assert has_only_integers([1, None])
    assert has_only_integers([None])
    assert has_only_integers([True, 1])
    for value in [*INEXACT, 1.0, Decimal(1), "1", [1]]:
        assert not has_only_integers([1, value])
        assert not has_only_integers([1, None, value])
    assert not has_only_integers([1.5, -1.5])


def test_values_that_the_driver_rejects_are_passed_on() -> None:
    for value in ("1", b"1", [1], 1j, None):
        assert to_exact_integer(value) is value
