"""Keys that are equal in PostgreSQL but not in Python.

Every call that accepts keys finds the rows that PostgreSQL finds, counts each once, and reports only missing keys.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy import (
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import (
    AsyncRepository,
    CheckViolation,
    Database,
    JsonView,
    MatchResult,
    NotFound,
    OutOfRange,
    StaleRow,
    bulk,
    lock,
)
from howdah._keys import has_exact_keys
from howdah_tests.support.inexact_keys import (
    CASES,
    CITEXT_TABLES,
    ICU_TABLES,
    ONE,
    Case,
    CharKey,
    EnumKey,
    GuidKey,
    LowerKey,
    PairKey,
    Separate,
    Size,
    UndeclaredCollation,
    VersionedKey,
)


@pytest.fixture
async def tables(session: AsyncSession) -> AsyncSession:
    """Create all tables that this server supports, and return the session."""
    missing = []
    if await session.scalar(text("SELECT true FROM pg_available_extensions WHERE name = 'citext'")):
        await session.execute(text("CREATE EXTENSION citext"))
    else:
        missing += CITEXT_TABLES
    if await session.scalar(text("SELECT true FROM pg_collation WHERE collname = 'und-x-icu'")):
        options = "provider = icu, locale = 'und-u-ks-level2', deterministic = false"
        await session.execute(text(f"CREATE COLLATION howdah_any_case ({options})"))
    else:
        missing += ICU_TABLES
    create = [table for table in Separate.metadata.tables.values() if table not in missing]
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection(), tables=create))
    if UndeclaredCollation.__table__ in create:
        await session.execute(text("ALTER TABLE undeclared_collations ALTER key TYPE text COLLATE howdah_any_case"))
    return session


@pytest.fixture(params=CASES, ids=lambda case: case.model.__name__)
async def case(tables: AsyncSession, request: pytest.FixtureRequest) -> Case:
    """Insert the two rows without loading objects into the session."""
    found: Case = request.param
    if not await tables.scalar(text("SELECT to_regclass(:name)"), {"name": found.model.__tablename__}):
        pytest.skip("this server has no citext, or no ICU")
    await tables.execute(insert(found.model), [named(found, found.stored), named(found, found.second)])
    return found


def named(case: Case, key: Any, **values: Any) -> dict[str, Any]:
    return {"name": key[0], "number": key[1], **values} if case.model is PairKey else {"key": key, **values}


def key_of(instance: Any) -> Any:
    return (instance.name, instance.number) if isinstance(instance, PairKey) else instance.key


async def values_of(session: AsyncSession, case: Case) -> list[int]:
    """The values of the rows `stored` and `second`. A deleted row is left out."""
    found = dict[Any, int]()
    for instance in await session.scalars(select(case.model).execution_options(populate_existing=True)):
        found[key_of(instance)] = instance.value
    return [found[key] for key in (case.stored, case.second) if key in found]


def test_none_of_these_keys_counts_as_exact() -> None:
    assert not any(has_exact_keys(case.model) for case in CASES)


async def test_the_rows_are_found_by_every_spelling(tables: AsyncSession, case: Case) -> None:
    repository = AsyncRepository(tables, case.model)
    found = await repository.get_one(case.other)
    assert key_of(found) == case.stored
    assert await repository.get(case.other, load=[]) is found
    tables.expunge_all()
    found = await repository.get_by_ids([case.missing, case.second, case.other, case.stored])
    assert [key_of(each) for each in found] == [case.second, case.stored]
    assert await repository.get_by_ids([case.other, case.second, case.stored]) == found[::-1]


async def test_the_rows_are_locked_by_every_spelling(tables: AsyncSession, case: Case) -> None:
    locked = await lock(tables, case.model, [case.second, case.other, case.stored])
    assert list(locked) == [case.stored, case.second]
    assert [key_of(each) for each in locked.values()] == [case.stored, case.second]
    assert list(await lock(tables, case.model, [case.other, case.missing], skip_locked=True)) == [case.stored]
    with pytest.raises(NotFound) as caught:
        await lock(tables, case.model, [case.missing, case.other, case.missing])
    assert caught.value.keys == [case.missing]


async def test_the_rows_are_updated_by_every_spelling(tables: AsyncSession, case: Case) -> None:
    rows = [named(case, case.other, value=1)]
    assert await bulk.update_many(tables, case.model, rows) == MatchResult(1, [])
    assert await values_of(tables, case) == [1, 0]
    assert await bulk.update_by_key(tables, case.model, [case.other], {"value": 2}) == MatchResult(1, [])
    assert await values_of(tables, case) == [2, 0]
    keys = [case.missing, case.stored, case.second, case.other, case.missing]
    assert await bulk.update_by_key(tables, case.model, keys, {"value": 3}) == MatchResult(2, [case.missing])
    assert await values_of(tables, case) == [3, 3]
    assert await bulk.update_by_key(tables, case.model, keys, {}) == MatchResult(2, [case.missing])


@pytest.mark.parametrize("chunk_size", [1, 2, 100])
async def test_of_two_spellings_of_a_key_the_later_update_wins(
    tables: AsyncSession, case: Case, chunk_size: int
) -> None:
    keys = [case.stored, case.second, case.missing, case.other, case.second, case.stored, case.other]
    for order in (keys, [*reversed(keys)]):
        rows = [named(case, key, value=value) for value, key in enumerate(order)]
        done = await bulk.update_many(tables, case.model, rows, chunk_size=chunk_size)
        assert done == MatchResult(6, [case.missing])
        last = max(position for position, key in enumerate(order) if key in (case.stored, case.other))
        assert await values_of(tables, case) == [last, max(n for n, key in enumerate(order) if key == case.second)]


async def test_the_rows_are_deleted_by_every_spelling_and_counted_once(tables: AsyncSession, case: Case) -> None:
    keys = [case.missing, case.other, case.stored, case.missing]
    assert await bulk.delete_many(tables, case.model, keys) == MatchResult(1, [case.missing])
    assert await values_of(tables, case) == [0]
    assert await bulk.delete_many(tables, case.model, [case.other, case.second]) == MatchResult(1, [case.other])


async def test_objects_in_the_session_are_refreshed(tables: AsyncSession, case: Case) -> None:
    loaded = await AsyncRepository(tables, case.model).get_by_ids([case.stored, case.second])
    await bulk.update_many(tables, case.model, [named(case, case.other, value=1)])
    assert [each.value for each in loaded] == [1, 0]
    await bulk.update_by_key(tables, case.model, [case.other], {"value": 2})
    assert [each.value for each in loaded] == [2, 0]
    await tables.execute(update(case.model).values(value=3), execution_options={"synchronize_session": False})
    assert await lock(tables, case.model, [case.other]) == {case.stored: loaded[0]}
    assert loaded[0].value == 3
    await bulk.delete_many(tables, case.model, [case.other])
    assert [each in tables for each in loaded] == [False, True]


async def test_objects_that_were_created_with_another_spelling_are_refreshed(tables: AsyncSession) -> None:
    for model, spelling, stored in ((CharKey, "x", "x    "), (GuidKey, ONE, UUID(ONE)), (EnumKey, "SMALL", Size.SMALL)):
        repository = AsyncRepository(tables, model)
        loaded: Any = await repository.create(key=spelling)
        for key in (spelling, stored):
            await tables.execute(update(model).values(value=0), execution_options={"synchronize_session": False})
            await bulk.update_many(tables, model, [{"key": key, "value": 1}])
            assert loaded.value == 1
            await bulk.update_by_key(tables, model, [key], {"value": 2})
            assert loaded.value == 2
            await repository.update_where(model.value == 2, value=3)
            assert loaded.value == 3
        assert await bulk.delete_many(tables, model, [stored]) == MatchResult(1, [])
        assert loaded not in tables


@pytest.mark.parametrize("count", [1, 25, 1100])
async def test_any_number_of_keys_can_have_another_spelling(tables: AsyncSession, count: int) -> None:
    await bulk.insert_many(tables, CharKey, [{"key": f"{n}"} for n in range(count)])
    keys = [f"{n} " for n in range(count)]
    assert len(await AsyncRepository(tables, CharKey).get_by_ids(keys)) == count
    tables.expunge_all()
    assert {*await lock(tables, CharKey, keys)} == {key.ljust(5) for key in keys}
    rows = [{"key": key, "value": n} for n, key in enumerate(keys)]
    assert await bulk.update_many(tables, CharKey, rows, chunk_size=1000) == MatchResult(count, [])
    assert await tables.scalar(select(func.sum(CharKey.value))) == sum(range(count))
    assert await bulk.update_by_key(tables, CharKey, keys, {"value": 7}) == MatchResult(count, [])
    assert await bulk.delete_many(tables, CharKey, [*keys, *map(str.strip, keys)]) == MatchResult(count, [])


async def test_a_version_is_checked_for_every_spelling(tables: AsyncSession) -> None:
    await bulk.insert_many(tables, VersionedKey, [{"key": key} for key in ("a", "b", "c")])
    rows = [{"key": key, "version": 1, "value": 1} for key in ("a ", "b ", "d ")]
    assert await bulk.update_many(tables, VersionedKey, rows) == MatchResult(2, ["d "])
    with pytest.raises(StaleRow) as caught:
        await bulk.update_many(tables, VersionedKey, [{"key": "c ", "version": 1}, {"key": "a ", "version": 1}])
    assert caught.value.keys == ["a "]
    successive = [{"key": key, "version": version, "value": version} for version, key in enumerate(("c", "c ", "c"), 1)]
    assert await bulk.update_many(tables, VersionedKey, successive) == MatchResult(3, [])
    found = await tables.execute(select(VersionedKey.version, VersionedKey.value).order_by(VersionedKey.key))
    assert found.all() == [(2, 1), (2, 1), (4, 3)]


async def test_a_rejected_row_is_located_among_rows_with_the_same_key(tables: AsyncSession) -> None:
    await bulk.insert_many(tables, CharKey, [{"key": "a"}, {"key": "b"}])
    keys = ["a", "b ", "a ", "x", "b"]
    for position in range(len(keys)):
        if keys[position] != "x":
            rows = [{"key": key, "value": 2**40 if number == position else 1} for number, key in enumerate(keys)]
            with pytest.raises(OutOfRange) as caught:
                await bulk.update_many(tables, CharKey, rows)
            assert caught.value.row_index == position
    await tables.execute(text("ALTER TABLE char_keys ADD CONSTRAINT few CHECK (value < 5 OR key = 'a')"))
    with pytest.raises(CheckViolation) as violation:
        await bulk.update_by_key(tables, CharKey, keys, {"value": 7})
    assert violation.value.row_index == 1
    assert (await tables.scalars(select(CharKey.value))).all() == [0, 0]


async def test_a_delete_that_a_trigger_suppresses_is_reported(tables: AsyncSession) -> None:
    await bulk.insert_many(tables, CharKey, [{"key": "kept"}, {"key": "gone"}])
    body = "BEGIN IF OLD.key = 'kept' THEN RETURN NULL; END IF; RETURN OLD; END"
    await tables.execute(text(f"CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
    await tables.execute(text("CREATE TRIGGER t BEFORE DELETE ON char_keys FOR EACH ROW EXECUTE FUNCTION keep()"))
    assert await bulk.delete_many(tables, CharKey, ["gone ", "kept ", "gone"]) == MatchResult(1, ["kept "])


async def test_a_key_with_an_sql_expression_is_compared_as_it_is_stored(
    tables: AsyncSession, database: Database
) -> None:
    await bulk.insert_many(tables, LowerKey, [{"key": "A"}, {"key": "b"}])
    repository = AsyncRepository(tables, LowerKey)
    found = await repository.get_one("A")
    assert await repository.get_by_ids(["B", "A", "a"]) == [await repository.get("B"), found]
    assert await lock(tables, LowerKey, ["A"]) == {"a": found}
    assert await bulk.update_by_key(tables, LowerKey, ["A", "c"], {"value": 7}) == MatchResult(1, ["c"])
    assert found.value == 7
    rows = [{"key": key, "value": value} for key, value in (("A", 1), ("c", 2), ("a", 7), ("B", 0))]
    assert await bulk.update_many(tables, LowerKey, rows) == MatchResult(3, ["c"])
    assert found.value == 7
    await tables.commit()
    async with JsonView(LowerKey, ValueOut).open(database) as view:
        assert await view.get("A") == b'{"value":7}'
        assert await view.get_many(["B", "A", "a"]) == [b'{"value":0}', b'{"value":7}']
    assert await bulk.delete_many(tables, LowerKey, ["B", "A", "a", "c"]) == MatchResult(2, ["c"])


class ValueOut(BaseModel):
    value: int


@pytest.fixture
async def committed(tables: AsyncSession, case: Case) -> Case:
    for value, key in enumerate((case.stored, case.second), start=1):
        await bulk.update_many(tables, case.model, [named(case, key, value=value)])
    await tables.commit()
    return case


async def test_a_view_finds_the_rows_by_every_spelling(database: Database, committed: Case) -> None:
    case = committed
    async with JsonView(case.model, ValueOut).open(database) as view:
        assert json.loads(await view.get(case.other)) == {"value": 1}
        keys = [case.missing, case.second, case.other, case.stored, case.missing]
        assert list(map(json.loads, await view.get_many(keys))) == [{"value": 2}, {"value": 1}]
        assert list(map(json.loads, await view.get_many([case.other]))) == [{"value": 1}]
        together = await asyncio.gather(*map(view.get, keys), return_exceptions=True)
        assert [json.loads(each) if isinstance(each, bytes) else type(each) for each in together] == [
            *(NotFound, {"value": 2}, {"value": 1}, {"value": 1}, NotFound)
        ]
        assert isinstance(together[0], NotFound)
        assert together[0].keys == [case.missing]


async def test_a_view_finds_them_through_the_driver_too(committed_database: Database) -> None:
    """The statement is executed through the driver."""
    async with committed_database.begin() as session:
        create: list[Any] = [CharKey.__table__, PairKey.__table__]
        await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection(), tables=create))
        await bulk.insert_many(session, CharKey, [{"key": "a", "value": 1}, {"key": "b", "value": 2}])
        await bulk.insert_many(session, PairKey, [{"name": "a", "number": n, "value": n} for n in range(3)])
    async with JsonView(CharKey, ValueOut).open(committed_database) as view:
        assert await view.get("a ") == b'{"value":1}'
        assert await view.get_many(["c", "b  ", "a", "b"]) == [b'{"value":2}', b'{"value":1}']
        assert len(set(await asyncio.gather(*(view.get(f"a{' ' * n}") for n in range(50))))) == 1
    async with JsonView(PairKey, ValueOut).open(committed_database) as view:
        assert await view.get_many([("a ", 2), ("a", 0), ("a", 2)]) == [b'{"value":2}', b'{"value":0}']
