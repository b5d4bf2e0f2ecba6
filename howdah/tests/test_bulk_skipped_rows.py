"""`max_rejected`: a bulk write skips rejected rows, reports each with its position, and writes all others."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import CheckConstraint, ForeignKey, MetaData, event, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, mapped_column

from howdah import (
    AsyncRepository,
    Base,
    CheckViolation,
    Database,
    DatabaseError,
    ForeignKeyViolation,
    InvalidText,
    InvalidValue,
    LockTimeout,
    NotNullViolation,
    RejectedRow,
    TooLong,
    UniqueViolation,
    bulk,
)
from howdah._writes.rejected_rows import RejectedRows, write_and_skip_rejected_rows
from howdah_tests.support.sample_models import Counter, User
from howdah_tests.support.sample_rows import emails, make_users, user_rows


class SeparateBase(Base):
    __abstract__ = True
    metadata = MetaData()


class Folder(SeparateBase):
    """A tree whose names are unique. The database generates its keys if `id` is left out."""

    __tablename__ = "skipping_folders"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("skipping_folders.id"))
    name: Mapped[str] = mapped_column(CheckConstraint("name <> 'bad'", name="name_not_bad"), unique=True)


BAD: dict[int, tuple[dict[str, Any], type[DatabaseError], str | None]] = {
    0: ({"age": -1}, CheckViolation, "ck_users_age_not_negative"),
    1: ({"name": None}, NotNullViolation, None),
    57: ({"email": "user56@example.org"}, UniqueViolation, "uq_users_email"),  # the first of two equal rows is written
    58: ({"name": "x" * 21}, TooLong, None),
    99: ({"email": "nul\x00"}, InvalidValue, None),
    100: ({"age": "seven"}, InvalidValue, None),
    215: ({"email": "user3@example.org"}, UniqueViolation, "uq_users_email"),  # in another chunk
    259: ({"id": "no key"}, InvalidValue, None),
}
ROWS = [{**row, **BAD[i][0]} if i in BAD else row for i, row in enumerate(user_rows(260))]
ACCEPTED = [f"user{i}@example.org" for i in range(260) if i not in BAD]


async def as_stream(rows: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for row in rows:
        yield row


async def read_pairs(session: AsyncSession, statement: Any) -> dict[Any, Any]:
    return {key: value for key, value in await session.execute(statement)}  # noqa: C416


def show(rejected: list[RejectedRow]) -> list[tuple[int, type[DatabaseError], str | None, int | None]]:
    return [(each.index, type(each.error), each.error.constraint, each.error.row_index) for each in rejected]


def expected() -> list[tuple[int, type[DatabaseError], str | None, int | None]]:
    found = [(i, error, constraint, i) for i, (_, error, constraint) in BAD.items()]
    return [(i, InvalidText if i == 99 else error, constraint, i) for i, error, constraint, _ in found]


@pytest.mark.parametrize(("chunk_size", "is_streamed"), [(None, False), (100, True)])
async def test_rejected_rows_of_every_kind_are_skipped_and_reported(
    session: AsyncSession, chunk_size: int | None, is_streamed: bool
) -> None:
    rows: Any = as_stream(ROWS) if is_streamed else ROWS
    result = await AsyncRepository(session, User).create_many(rows, chunk_size=chunk_size, max_rejected=8)
    assert show(result.rejected) == expected()
    assert result.count == len(result.keys) == len(ACCEPTED)
    found = await read_pairs(session, select(User.id, User.email))
    assert [found[key] for key in result.keys] == ACCEPTED, "the keys are those of the written rows, in order"


@pytest.mark.parametrize("chunk_size", [None, 100])
async def test_an_upsert_skips_rejected_rows_and_counts_the_others(
    session: AsyncSession, chunk_size: int | None
) -> None:
    await bulk.insert_many(session, User, [{**row, "age": 999} for row in user_rows(4)[2:]])
    rows = user_rows(150)
    rows[3] = {**rows[3], "name": None}  # of an existing row
    rows[60] = {**rows[59], "age": -7}  # of a row that is written before it
    rows[149] = {**rows[149], "age": 2**31}
    result = await bulk.upsert_many(session, User, rows, on=["email"], chunk_size=chunk_size, max_rejected=5)
    assert [each.index for each in result.rejected] == [3, 60, 149]
    assert [type(each.error).__name__ for each in result.rejected] == [
        "NotNullViolation",
        "CheckViolation",
        "OutOfRange",
    ]
    assert (result.created, result.updated, result.unchanged, result.suppressed) == (146, 1, 0, 0)
    ages = await read_pairs(session, select(User.email, User.age))
    assert (ages["user2@example.org"], ages["user3@example.org"], ages["user59@example.org"]) == (2, 999, 59)
    assert len(ages) == 148


async def test_one_row_too_many_fails_the_whole_call(session: AsyncSession) -> None:
    for chunk_size in (None, 100):
        with pytest.raises(InvalidValue) as caught:
            await bulk.insert_many(session, User, ROWS, chunk_size=chunk_size, max_rejected=7)
        assert caught.value.row_index == 259
        assert "7 rows were rejected before it, and max_rejected allows no more" in caught.value.__notes__
        assert await emails(session) == []
    with pytest.raises(ValueError, match="max_rejected is a number of rows"):
        await bulk.insert_many(session, User, [], max_rejected=-1)


async def test_keys_that_the_database_generates_are_those_of_the_accepted_rows(session: AsyncSession) -> None:
    rows = [{"value": 2**31 if i in (0, 7, 8, 39) else i} for i in range(40)]
    result = await bulk.insert_many(session, Counter, rows, max_rejected=40)
    assert [each.index for each in result.rejected] == [0, 7, 8, 39]
    values = await read_pairs(session, select(Counter.id, Counter.value))
    assert [values[key] for key in result.keys] == [i for i in range(40) if i not in (0, 7, 8, 39)]
    without_keys = await bulk.insert_many(session, Counter, rows, keys=False, max_rejected=40)
    assert (without_keys.count, without_keys.keys, len(without_keys.rejected)) == (36, [], 4)


async def test_rows_of_a_tree_are_rejected_with_their_rejected_parent(session: AsyncSession) -> None:
    await (await session.connection()).run_sync(SeparateBase.metadata.create_all)
    rows = [
        {"id": 3, "parent_id": 2, "name": "child of bad"},
        {"id": 5, "parent_id": 4, "name": "child"},
        {"id": 2, "parent_id": None, "name": "bad"},
        {"id": 4, "parent_id": None, "name": "parent"},
    ]
    result = await bulk.insert_many(session, Folder, rows, max_rejected=4)
    assert [(each.index, type(each.error)) for each in result.rejected] == [
        (0, ForeignKeyViolation),
        (2, CheckViolation),
    ]
    assert result.keys == [5, 4]


async def test_a_lock_timeout_is_raised_and_nothing_is_written(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        await make_users(session, 10)
    async with committed_database.session() as holder, committed_database.session() as session:
        await holder.execute(select(User).where(User.email == "user8@example.org").with_for_update())
        await session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        rows = [{**row, "name": None if row["age"] == 3 else "New"} for row in user_rows(20)]
        with pytest.raises(LockTimeout):
            await bulk.upsert_many(session, User, rows, on=["email"], max_rejected=20)
        assert await session.scalar(select(User.name).where(User.name == "New")) is None
        assert len(await emails(session)) == 10


async def test_an_error_that_a_trigger_raises_is_not_skipped(session: AsyncSession) -> None:
    body = "BEGIN IF NEW.val = 3 THEN RAISE 'no'; END IF; RETURN NEW; END"
    await session.execute(text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
    trigger = "CREATE TRIGGER refuse BEFORE INSERT ON counters FOR EACH ROW EXECUTE FUNCTION refuse()"
    await session.execute(text(trigger))
    with pytest.raises(DatabaseError, match="no") as caught:
        await bulk.insert_many(session, Counter, [{"value": i} for i in range(5)], max_rejected=5)
    assert caught.value.row_index == 3
    assert await AsyncRepository(session, Counter).count() == 0


async def test_with_a_plain_engine_nothing_is_skipped(committed_database: Database) -> None:
    engine = create_async_engine(committed_database.engine.url)
    async with AsyncSession(engine) as session:
        with pytest.raises(IntegrityError) as caught:
            await bulk.insert_many(session, User, user_rows(3, age=-1), max_rejected=3)
        assert caught.value.__notes__ == ["row 0 of the input, counted from 0, was rejected, so no row was written"]
    await engine.dispose()


async def test_the_search_takes_few_statements_and_the_errors_keep_no_rows(
    session: AsyncSession, database: Database
) -> None:
    class Row(dict[str, Any]):
        """A mapping that can be referred to weakly."""

    rows = [Row(row) for row in user_rows(1024)]
    for position in (0, 512, 1023):
        rows[position]["age"] = -1
    statements: list[str] = []

    def count(*args: Any) -> None:
        statements.append(args[2])

    event.listen(database.engine.sync_engine, "before_cursor_execute", count)
    result = await bulk.insert_many(session, User, rows, max_rejected=3)
    event.remove(database.engine.sync_engine, "before_cursor_execute", count)
    assert [each.index for each in result.rejected] == [0, 512, 1023]
    writes = [each for each in statements if each.startswith(("INSERT", "COPY"))]
    assert len(writes) <= 2 + 3 * 2 * 10
    kept = weakref.ref(rows[100])
    del rows
    gc.collect()
    assert kept() is None


@settings(max_examples=settings().max_examples // 15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ages=st.lists(st.sampled_from([1, 2, 3, 40, 41, -1, 2**31]), max_size=45),
    is_upsert=st.booleans(),
    chunk_size=st.sampled_from([None, 3]),
)
async def test_the_rejected_rows_are_those_that_single_inserts_reject(
    session: AsyncSession, ages: list[int], is_upsert: bool, chunk_size: int | None
) -> None:
    rows = [{"email": f"{i if age > 39 else age}@example.org", "name": "N", "age": age} for i, age in enumerate(ages)]
    seen: set[str] = set()
    rejected = []
    for i, row in enumerate(rows):
        if not 0 <= int(str(row["age"])) < 2**31 or (row["email"] in seen and not is_upsert):
            rejected.append(i)
        else:
            seen.add(str(row["email"]))
    nested = await session.begin_nested()
    try:
        repository = AsyncRepository(session, User)
        result: Any
        if is_upsert:
            result = await repository.upsert_many(rows, on=["email"], chunk_size=chunk_size, max_rejected=len(rows))
            assert result.created == len(seen)
            assert result.created + result.updated + result.unchanged + len(result.rejected) == len(rows)
        else:
            result = await repository.create_many(rows, chunk_size=chunk_size, max_rejected=len(rows))
            assert result.count == len(seen)
        assert [each.index for each in result.rejected] == rejected
        assert {*await emails(session)} == seen
    finally:
        await nested.rollback()


async def test_a_part_is_written_if_its_error_does_not_occur_again(session: AsyncSession) -> None:
    calls: list[list[int]] = []

    async def write(ids: Any) -> int:
        calls.append([*ids])
        await bulk.insert_many(session, Counter, [{"id": id, "value": 2**31 if len(calls) == 1 else 1} for id in ids])
        return len(ids)

    rejected = RejectedRows(5)
    parts = await write_and_skip_rejected_rows(session, [1, 2, 3], write, range(3), rejected)
    assert [(list(positions), count) for positions, count in parts] == [([0], 1), ([1, 2], 2)]
    assert (rejected.rows, calls) == ([], [[1, 2, 3], [1], [2, 3]])
