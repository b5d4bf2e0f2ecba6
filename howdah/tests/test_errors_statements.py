"""Errors of statements and commits, compared with the errors that SQLAlchemy raises without Howdah."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Date, DateTime, Integer, bindparam, exc, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from howdah import AwareDateTime, Database, errors
from howdah_tests.support.pickling import pickle_roundtrip
from howdah_tests.support.sample_models import Order, User
from howdah_tests.support.waiting import until_waiting

TABLES = (
    "CREATE TABLE parents (id int PRIMARY KEY)",
    """CREATE TABLE things (
        id int CONSTRAINT pk_things PRIMARY KEY,
        parent int CONSTRAINT fk_parent REFERENCES parents,
        kept int CONSTRAINT fk_kept REFERENCES parents ON DELETE RESTRICT,
        name varchar(5) NOT NULL DEFAULT '' CONSTRAINT ck_name CHECK (name <> 'x'),
        during int4range,
        CONSTRAINT ex_during EXCLUDE USING gist (during WITH &&)
    )""",
    "CREATE VIEW positive AS SELECT * FROM things WHERE id > 0 WITH CHECK OPTION",
    "CREATE TYPE colour AS ENUM ('red')",
    "CREATE DOMAIN even AS int CONSTRAINT ck_even CHECK (value % 2 = 0)",
    "INSERT INTO parents VALUES (1)",
    "INSERT INTO things VALUES (1, NULL, 1, 'a', '[1,9]')",
)

# A role without rights of its own may see the rows 2 to 4, and write the rows 1 to 4.
POLICY = (
    "INSERT INTO things (id) VALUES (3)",
    "ALTER TABLE things ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY few ON things USING (id BETWEEN 2 AND 4) WITH CHECK (id BETWEEN 1 AND 4)",
    "GRANT ALL ON things TO pg_monitor",
    "SET LOCAL ROLE pg_monitor",
)


@dataclass(frozen=True)
class ErrorCase:
    """The last statement raises `error_class`."""

    error_class: type[errors.DatabaseError]
    sqlstates: str
    statements: Sequence[Any]
    parameters: dict[str, Any] = field(default_factory=dict)
    constraint: str | None = None
    table: str | None = None
    column: str | None = None

    @property
    def id(self) -> str:
        return f"{self.error_class.__name__}-{self.sqlstates}-{str(self.statements[-1])[:40]}"


def error_case(
    error_class: type[errors.DatabaseError],
    sqlstates: str,
    *statements: Any,
    facts: Sequence[str | None] = (),
    **parameters: Any,
) -> ErrorCase:
    constraint, table, column = (*facts, None, None, None)[:3]
    return ErrorCase(error_class, sqlstates, statements, parameters, constraint, table, column)


ERROR_CASES = [
    error_case(errors.UniqueViolation, "23505", "INSERT INTO things VALUES (1)", facts=("pk_things", "things")),
    error_case(errors.ForeignKeyViolation, "23503", "INSERT INTO things VALUES (2, 2)", facts=("fk_parent", "things")),
    error_case(errors.ForeignKeyViolation, "23001 23503", "DELETE FROM parents", facts=("fk_kept", "things")),
    error_case(
        errors.CheckViolation,
        "23514",
        "INSERT INTO things (id, name) VALUES (2, :name)",
        facts=("ck_name", "things"),
        name="x",
    ),
    error_case(errors.CheckViolation, "23514", "SELECT CAST(3 AS even)", facts=("ck_even",)),
    error_case(errors.CheckViolation, "44000", "INSERT INTO positive VALUES (-1)"),
    error_case(
        errors.NotNullViolation, "23502", "INSERT INTO things VALUES (2, 1, 1, NULL)", facts=(None, "things", "name")
    ),
    error_case(
        errors.ExclusionViolation,
        "23P01",
        "INSERT INTO things VALUES (2, 1, 1, 'b', '[9,9]')",
        facts=("ex_during", "things"),
    ),
    error_case(errors.TooLong, "22001", "INSERT INTO things (id, name) VALUES (2, :name)", name="secret"),
    error_case(errors.OutOfRange, "22003", "SELECT CAST(2147483647 AS int) + 1"),
    error_case(errors.OutOfRange, "22003", "SELECT CAST(CAST(:n AS text) AS smallint)", n="40000"),
    error_case(errors.OutOfRange, "22008", "SELECT CAST(CAST(:day AS text) AS date)", day="2020-02-30"),
    error_case(errors.OutOfRange, "22008", "SELECT timestamp '290000-01-01' + interval '9999 years'"),
    error_case(errors.OutOfRange, "22015", "SELECT interval '99999999999 days'"),
    error_case(errors.OutOfRange, "", select(bindparam("n", type_=Integer)), n=2**31),
    error_case(errors.OutOfRange, "", "SELECT CAST(:n AS bigint)", n=-(2**63) - 1),
    error_case(errors.InvalidText, "22P02", "SELECT CAST(CAST(:key AS text) AS uuid)", key="secret"),
    error_case(errors.InvalidText, "22P02", "SELECT CAST(:colour AS colour)", colour="secret"),
    error_case(errors.InvalidText, "22021", "SELECT CAST(:name AS text)", name="secret\0"),
    error_case(errors.InvalidText, "", "SELECT CAST(:name AS text)", name="secret\ud800"),
    error_case(errors.InvalidText, "22P05", "SELECT CAST(CAST(:json AS text) AS jsonb)", json='"secret\\u0000"'),
    error_case(errors.InvalidText, "22007", "SELECT CAST(CAST(:day AS text) AS date)", day="secret"),
    error_case(errors.InvalidValue, "22012", "SELECT 1/0"),
    error_case(errors.InvalidValue, "", select(bindparam("n", type_=Integer)), n="secret"),
    error_case(errors.InvalidValue, "", "SELECT CAST(:key AS uuid)", key="secret"),
    error_case(errors.InvalidValue, "", select(bindparam("day", type_=Date)), day="secret"),
    error_case(
        errors.InvalidValue, "", select(bindparam("at", type_=DateTime(timezone=True))), at=timedelta(days=12345)
    ),
    error_case(errors.ReadOnly, "25006", "SET TRANSACTION READ ONLY", "DELETE FROM things"),
    error_case(errors.InvalidStatement, "42601", "SELEC 1"),
    error_case(errors.InvalidStatement, "42P01", "SELECT * FROM nowhere"),
    error_case(errors.InvalidStatement, "42703", "SELECT nothing FROM things"),
    error_case(errors.InvalidStatement, "42501", "SET LOCAL ROLE pg_monitor", "DELETE FROM things"),
    error_case(errors.InvalidStatement, "42501", *POLICY, "SELECT * FROM parents"),
    error_case(errors.InvalidStatement, "42501", "DO $$ BEGIN RAISE SQLSTATE '42501'; END $$"),
    error_case(errors.PolicyViolation, "42501", *POLICY, "INSERT INTO things VALUES (9)"),
    error_case(errors.PolicyViolation, "42501", *POLICY, "UPDATE things SET id = 9 WHERE id = 3"),
    error_case(
        errors.PolicyViolation,
        "42501",
        *POLICY,
        "INSERT INTO things VALUES (1) ON CONFLICT (id) DO UPDATE SET name = 'b'",  # the policy hides row 1
    ),
    error_case(
        errors.PolicyViolation,
        "42501",
        *POLICY,
        "MERGE INTO things USING (SELECT 9 AS id) AS new ON new.id = things.id "
        "WHEN NOT MATCHED THEN INSERT (id) VALUES (new.id)",
    ),
    error_case(errors.InvalidStatement, "3F000", "CREATE TABLE nowhere.things (id int)"),
    error_case(errors.InvalidStatement, "3D000", "ALTER DATABASE nowhere SET work_mem = '4MB'"),
    error_case(errors.InvalidStatement, "0A000", "SELECT count(*) FROM things FOR UPDATE"),
    error_case(errors.StatementTimeout, "57014", "SET LOCAL statement_timeout = 1", "SELECT pg_sleep(9)"),
    error_case(
        errors.LimitExceeded,
        "54000",
        "CREATE TABLE texts (text text)",
        "CREATE INDEX ix_text ON texts (text)",
        "INSERT INTO texts SELECT string_agg(CAST(gen_random_uuid() AS text), '') FROM generate_series(1, 500)",
    ),
    error_case(errors.LimitExceeded, "54001", "SELECT CAST(repeat('[', 1000000) AS jsonb)"),
    error_case(
        errors.OutOfResources,
        "53400",
        "SET LOCAL temp_file_limit = 0",
        "SELECT * FROM generate_series(1, 999999) ORDER BY 1",
    ),
    error_case(errors.SystemFailure, "58P01", "SELECT pg_read_file('/nowhere')"),
    error_case(errors.InvalidStatement, "25001", "VACUUM"),
    error_case(errors.InvalidStatement, "55000", "SELECT lastval()"),
    error_case(errors.InvalidStatement, "21000", "SELECT (SELECT 1 UNION SELECT 2)"),
    error_case(errors.CompletionUnknown, "40003", "DO $$ BEGIN RAISE SQLSTATE '40003'; END $$"),
    error_case(errors.CompletionUnknown, "08007", "DO $$ BEGIN RAISE SQLSTATE '08007'; END $$"),
    error_case(errors.OutOfResources, "53100", "DO $$ BEGIN RAISE SQLSTATE '53100'; END $$"),
    error_case(errors.OutOfResources, "53200", "DO $$ BEGIN RAISE SQLSTATE '53200'; END $$"),
    error_case(errors.SystemFailure, "58030", "DO $$ BEGIN RAISE SQLSTATE '58030'; END $$"),
    error_case(errors.ObjectInUse, "55006", "DO $$ BEGIN RAISE SQLSTATE '55006'; END $$"),
    error_case(errors.TransactionConflict, "72000", "DO $$ BEGIN RAISE SQLSTATE '72000'; END $$"),
    error_case(errors.ServerFault, "XX000", "DO $$ BEGIN RAISE SQLSTATE 'XX000'; END $$"),
    error_case(
        errors.DatabaseError,
        "P0001",
        "DO $$ BEGIN RAISE 'no' USING CONSTRAINT = 'c', TABLE = 't', COLUMN = 'k'; END $$",
        facts=("c", "t", "k"),
    ),
]


@pytest.fixture
async def engines(database_url: str) -> AsyncIterator[tuple[AsyncEngine, AsyncEngine]]:
    """The engine of a `Database`, and a plain engine of SQLAlchemy."""
    plain = create_async_engine(database_url, pool_size=1, isolation_level="READ COMMITTED")
    async with Database(database_url, pool_size=1) as database:
        yield database.engine, plain
    await plain.dispose()


async def raised_by(engine: AsyncEngine, statements: Sequence[Any], parameters: dict[str, Any]) -> Exception:
    """The error of the last statement. Everything is rolled back."""
    *before, last = (text(each) if isinstance(each, str) else each for each in statements)
    async with engine.connect() as connection:
        for statement in before:
            await connection.execute(statement)
        with pytest.raises(Exception) as caught:  # noqa: PT011  # the callers check it
            await connection.execute(last, parameters)
        return caught.value


@pytest.mark.parametrize("case", ERROR_CASES, ids=lambda case: case.id)
async def test_an_error_has_the_class_constraint_table_and_column_of_its_cause(
    case: ErrorCase, engines: tuple[AsyncEngine, AsyncEngine]
) -> None:
    ours, plain = engines
    statements = (*TABLES, *case.statements)
    error = await raised_by(ours, statements, case.parameters)
    assert type(error) is case.error_class
    assert isinstance(error, errors.DatabaseError)
    assert (error.sqlstate or "") in (case.sqlstates.split() or [""])
    assert (error.constraint, error.table, error.column) == (case.constraint, case.table, case.column)
    assert error.statement
    assert error.__cause__ is error.orig is not None
    assert isinstance(error.orig.__cause__, asyncpg.PostgresError)

    without_howdah = await raised_by(plain, statements, case.parameters)
    assert isinstance(without_howdah, exc.DBAPIError)
    assert isinstance(error, type(without_howdah))

    for twin in (copy.copy(error), pickle_roundtrip(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        facts = ("sqlstate", "constraint", "table", "column", "reason", "row_index", "statement", "params")
        assert [getattr(twin, each) for each in facts] == [getattr(error, each) for each in facts]

    assert "secret" not in str(error)
    assert "secret" not in repr(error)


async def test_the_text_of_an_error_contains_no_values(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    insertion = "INSERT INTO things (id, name) VALUES (2, CAST(:name AS text))"
    taken = (*TABLES, "CREATE UNIQUE INDEX ON things (name)", insertion.replace(":name", "'shh'"))
    error = await raised_by(engines[0], (*taken, insertion.replace("(2", "(3")), {"name": "shh"})
    assert isinstance(error, errors.UniqueViolation)
    assert "shh" in (error.reason or "")
    assert "shh" not in str(error)
    assert "things_name_idx" in str(error)


async def test_the_text_of_an_error_contains_values_if_hide_parameters_is_false(database_url: str) -> None:
    async with Database(database_url, hide_parameters=False) as database:
        error = await raised_by(database.engine, ["SELECT CAST(:key AS uuid)"], {"key": "shown"})
    assert str(error).count("shown") > 1


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        (select(bindparam("at", datetime(2026, 1, 1), AwareDateTime())), "datetime without a time zone"),  # noqa: DTZ001
        (insert(Order).values(details={"n": float("nan")}), "NaN or an infinity"),
        (insert(Order).values(details={"n": 2**64}), "64-bit"),
        (insert(Order).values(details={"n": {1, 2}}), "not JSON serializable: set"),
    ],
    ids=["naive", "nan", "huge", "set"],
)
async def test_reports_a_value_that_a_column_type_rejected(
    statement: Any, says: str, engines: tuple[AsyncEngine, AsyncEngine]
) -> None:
    error = await raised_by(engines[0], [statement], {})
    assert type(error) is errors.InvalidValue
    assert error.sqlstate is None
    assert isinstance(error.__cause__, ValueError)
    assert says in str(error)
    assert "2026" not in str(error)
    assert pickle_roundtrip(error).statement == error.statement


async def test_leaves_misuse_to_sqlalchemy(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    missing = await raised_by(engines[0], ["SELECT :missing"], {})
    assert isinstance(missing, exc.StatementError)
    names = [f"p{n}" for n in range(32_768)]
    too_many = await raised_by(
        engines[0], [f"SELECT 1 IN ({', '.join(f':{name}' for name in names)})"], dict.fromkeys(names, 1)
    )
    assert isinstance(too_many, exc.InterfaceError)
    assert not isinstance(missing, errors.HowdahError)
    assert not isinstance(too_many, errors.HowdahError)


async def test_translates_a_commit_that_fails(committed_url: str) -> None:
    plain = create_async_engine(committed_url)
    async with plain.begin() as connection:
        await connection.execute(text("CREATE TABLE once (id int CONSTRAINT uq_once UNIQUE INITIALLY DEFERRED)"))
    with pytest.raises(exc.IntegrityError):
        async with plain.begin() as connection:
            await connection.execute(text("INSERT INTO once VALUES (1), (1)"))
    await plain.dispose()

    async with Database(committed_url) as database:
        async with database.session() as session:
            await session.execute(text("INSERT INTO once VALUES (1), (1)"))
            with pytest.raises(errors.UniqueViolation) as caught:
                await session.commit()
        assert (caught.value.constraint, caught.value.table) == ("uq_once", "once")
        async with database.session() as session:
            assert await session.scalar(text("SELECT count(*) FROM once")) == 0


async def test_reports_a_serialization_failure(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        session.add(User(email="a@example.com", name="a", age=1))
    changed = text("UPDATE users SET age = age + 1")
    async with (
        committed_database.session(isolation_level="REPEATABLE READ") as ours,
        committed_database.session() as theirs,
    ):
        await ours.execute(text("SELECT 1 FROM users"))
        await theirs.execute(changed)
        await theirs.commit()
        with pytest.raises(errors.SerializationFailure) as caught:
            await ours.execute(changed)
    assert caught.value.sqlstate == "40001"
    assert isinstance(caught.value, errors.TransactionConflict)
    assert isinstance(caught.value, exc.OperationalError)


async def test_reports_a_deadlock_to_one_of_two_sessions(real_database: Database) -> None:
    lock = text("SELECT pg_advisory_xact_lock(:key)")
    async with real_database.session() as one, real_database.session() as other:
        await one.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
        await one.execute(lock, {"key": 1})
        await other.execute(lock, {"key": 2})
        waiting = asyncio.create_task(other.execute(lock, {"key": 1}))
        await until_waiting(real_database)
        with pytest.raises(errors.DeadlockDetected) as caught:
            await one.execute(lock, {"key": 2})
        await one.rollback()
        await waiting
    assert caught.value.sqlstate == "40P01"
    assert isinstance(caught.value, errors.TransactionConflict)
    assert isinstance(caught.value, exc.OperationalError)


@pytest.mark.parametrize("nowait", ["", "NOWAIT"])
async def test_reports_a_lock_timeout(nowait: str, database_url: str) -> None:
    lock = text(f"LOCK TABLE users {nowait}")
    timeout = 60 if nowait else 0.05
    async with (
        Database(database_url, lock_timeout=timeout) as database,
        database.session() as holder,
        database.session() as session,
    ):
        await holder.execute(lock)
        with pytest.raises(errors.LockTimeout) as caught:
            await session.execute(lock)
    assert caught.value.sqlstate == "55P03"


async def test_reports_a_table_that_was_altered_after_a_statement_was_prepared(committed_database: Database) -> None:
    emails = select(User.email)
    async with committed_database.session() as session, committed_database.session() as migration:
        await session.execute(emails)
        await session.commit()
        await migration.execute(text("ALTER TABLE users ALTER email TYPE text"))
        await migration.commit()
        with pytest.raises(errors.SchemaChanged) as caught:
            await session.execute(emails)
        assert isinstance(caught.value, exc.NotSupportedError)
        await session.rollback()
        assert (await session.execute(emails)).all() == []
