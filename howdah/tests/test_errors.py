"""Every error, provoked on the server and compared with what SQLAlchemy raises without Howdah."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from sample import Order, User
from server import kill, until_gone, until_waiting
from sqlalchemy import Date, DateTime, Integer, bindparam, exc, insert, make_url, select, text
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import howdah
from howdah import AwareDateTime, Database, errors

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


@dataclass(frozen=True)
class Provoked:
    """The last statement fails with `becomes`."""

    becomes: type[errors.DatabaseError]
    sqlstates: str
    statements: Sequence[Any]
    parameters: dict[str, Any] = field(default_factory=dict)
    constraint: str | None = None
    table: str | None = None
    column: str | None = None

    @property
    def id(self) -> str:
        return f"{self.becomes.__name__}-{self.sqlstates}-{str(self.statements[-1])[:40]}"


def provoked(
    becomes: type[errors.DatabaseError],
    sqlstates: str,
    *statements: Any,
    facts: Sequence[str | None] = (),
    **given: Any,
) -> Provoked:
    constraint, table, column = (*facts, None, None, None)[:3]
    return Provoked(becomes, sqlstates, statements, given, constraint, table, column)


PROVOKED = [
    provoked(errors.UniqueViolation, "23505", "INSERT INTO things VALUES (1)", facts=("pk_things", "things")),
    provoked(errors.ForeignKeyViolation, "23503", "INSERT INTO things VALUES (2, 2)", facts=("fk_parent", "things")),
    provoked(errors.ForeignKeyViolation, "23001 23503", "DELETE FROM parents", facts=("fk_kept", "things")),
    provoked(
        errors.CheckViolation,
        "23514",
        "INSERT INTO things (id, name) VALUES (2, :name)",
        facts=("ck_name", "things"),
        name="x",
    ),
    provoked(errors.CheckViolation, "23514", "SELECT CAST(3 AS even)", facts=("ck_even",)),
    provoked(errors.CheckViolation, "44000", "INSERT INTO positive VALUES (-1)"),
    provoked(
        errors.NotNullViolation, "23502", "INSERT INTO things VALUES (2, 1, 1, NULL)", facts=(None, "things", "name")
    ),
    provoked(
        errors.ExclusionViolation,
        "23P01",
        "INSERT INTO things VALUES (2, 1, 1, 'b', '[9,9]')",
        facts=("ex_during", "things"),
    ),
    provoked(errors.TooLong, "22001", "INSERT INTO things (id, name) VALUES (2, :name)", name="secret"),
    provoked(errors.OutOfRange, "22003", "SELECT CAST(2147483647 AS int) + 1"),
    provoked(errors.OutOfRange, "22003", "SELECT CAST(CAST(:n AS text) AS smallint)", n="40000"),
    provoked(errors.OutOfRange, "22008", "SELECT CAST(CAST(:day AS text) AS date)", day="2020-02-30"),
    provoked(errors.OutOfRange, "22008", "SELECT timestamp '290000-01-01' + interval '9999 years'"),
    provoked(errors.OutOfRange, "22015", "SELECT interval '99999999999 days'"),
    provoked(errors.OutOfRange, "", select(bindparam("n", type_=Integer)), n=2**31),
    provoked(errors.OutOfRange, "", "SELECT CAST(:n AS bigint)", n=-(2**63) - 1),
    provoked(errors.InvalidText, "22P02", "SELECT CAST(CAST(:key AS text) AS uuid)", key="secret"),
    provoked(errors.InvalidText, "22P02", "SELECT CAST(:colour AS colour)", colour="secret"),
    provoked(errors.InvalidText, "22021", "SELECT CAST(:name AS text)", name="secret\0"),
    provoked(errors.InvalidText, "", "SELECT CAST(:name AS text)", name="secret\ud800"),
    provoked(errors.InvalidText, "22P05", "SELECT CAST(CAST(:json AS text) AS jsonb)", json='"secret\\u0000"'),
    provoked(errors.InvalidText, "22007", "SELECT CAST(CAST(:day AS text) AS date)", day="secret"),
    provoked(errors.InvalidValue, "22012", "SELECT 1/0"),
    provoked(errors.InvalidValue, "", select(bindparam("n", type_=Integer)), n="secret"),
    provoked(errors.InvalidValue, "", "SELECT CAST(:key AS uuid)", key="secret"),
    provoked(errors.InvalidValue, "", select(bindparam("day", type_=Date)), day="secret"),
    provoked(errors.InvalidValue, "", select(bindparam("at", type_=DateTime(timezone=True))), at=timedelta(days=12345)),
    provoked(errors.ReadOnly, "25006", "SET TRANSACTION READ ONLY", "DELETE FROM things"),
    provoked(errors.InvalidStatement, "42601", "SELEC 1"),
    provoked(errors.InvalidStatement, "42P01", "SELECT * FROM nowhere"),
    provoked(errors.InvalidStatement, "42703", "SELECT nothing FROM things"),
    provoked(errors.InvalidStatement, "42501", "SET LOCAL ROLE pg_monitor", "DELETE FROM things"),
    provoked(errors.InvalidStatement, "3F000", "CREATE TABLE nowhere.things (id int)"),
    provoked(errors.InvalidStatement, "3D000", "ALTER DATABASE nowhere SET work_mem = '4MB'"),
    provoked(errors.InvalidStatement, "0A000", "SELECT count(*) FROM things FOR UPDATE"),
    provoked(errors.StatementTimeout, "57014", "SET LOCAL statement_timeout = 1", "SELECT pg_sleep(9)"),
    provoked(errors.ServerFault, "XX000", "DO $$ BEGIN RAISE SQLSTATE 'XX000'; END $$"),
    provoked(
        errors.DatabaseError,
        "P0001",
        "DO $$ BEGIN RAISE 'no' USING CONSTRAINT = 'c', TABLE = 't', COLUMN = 'k'; END $$",
        facts=("c", "t", "k"),
    ),
]

# The codes that mean nothing more particular than DatabaseError, each on purpose: SQL that PostgreSQL itself never
# raises, faults of a program rather than of a request, and what an operator must see as a fault (disk full).
LEFT_PLAIN = """
    03000 09000 0B000 0F000 0F001 0L000 0LP01 0P000 0Z000 0Z002 10608 20000 21000 24000 25000 25001 25002 25003 25004
    25005 25007 25008 25P01 25P02 26000 27000 2B000 2BP01 2D000 2F000 2F002 2F003 2F004 2F005 34000 38000 38001 38002
    38003 38004 39000 39001 39004 39P01 39P02 39P03 3B000 3B001 40000 40002 40003 53000 53100 53200 53400 54000 54001
    54011 54023 55000 55006 55P02 55P04 57000 58000 58030 58P01 58P02 58P03 72000 F0000 F0001 P0000 P0001 P0002 P0003
    P0004
"""


@pytest.fixture
async def engines(database_url: str) -> AsyncIterator[tuple[AsyncEngine, AsyncEngine]]:
    """Howdah's, and SQLAlchemy's own for comparison."""
    plain = create_async_engine(database_url, pool_size=1, isolation_level="READ COMMITTED")
    async with Database(database_url, pool_size=1) as database:
        yield database.engine, plain
    await plain.dispose()


@pytest.fixture
async def real_database(database_url: str) -> AsyncIterator[Database]:
    """With a real pool, for tests that commit nothing."""
    async with Database(database_url) as database:
        yield database


def pickled(error: Exception) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301


async def raised_by(engine: AsyncEngine, statements: Sequence[Any], parameters: dict[str, Any]) -> Exception:
    """What the last of the statements raises; all is rolled back."""
    *before, last = (text(each) if isinstance(each, str) else each for each in statements)
    async with engine.connect() as connection:
        for statement in before:
            await connection.execute(statement)
        with pytest.raises(Exception) as caught:  # noqa: PT011  # it is what the callers examine
            await connection.execute(last, parameters)
        return caught.value


@pytest.mark.parametrize("case", PROVOKED, ids=lambda case: case.id)
async def test_says_what_postgresql_refused(case: Provoked, engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    ours, plain = engines
    statements = (*TABLES, *case.statements)
    error = await raised_by(ours, statements, case.parameters)
    assert type(error) is case.becomes
    assert isinstance(error, errors.DatabaseError)
    assert (error.sqlstate or "") in (case.sqlstates.split() or [""])
    assert (error.constraint, error.table, error.column) == (case.constraint, case.table, case.column)
    assert error.statement
    assert error.__cause__ is error.orig is not None
    assert isinstance(error.orig.__cause__, asyncpg.PostgresError)

    without_howdah = await raised_by(plain, statements, case.parameters)
    assert isinstance(without_howdah, exc.DBAPIError)
    assert isinstance(error, type(without_howdah))

    for twin in (copy.copy(error), pickled(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        facts = ("sqlstate", "constraint", "table", "column", "reason", "row_index", "statement", "params")
        assert [getattr(twin, each) for each in facts] == [getattr(error, each) for each in facts]

    assert "secret" not in str(error)
    assert "secret" not in repr(error)


async def test_keeps_values_out_of_the_text_of_an_error(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    insertion = "INSERT INTO things (id, name) VALUES (2, CAST(:name AS text))"
    taken = (*TABLES, "CREATE UNIQUE INDEX ON things (name)", insertion.replace(":name", "'shh'"))
    error = await raised_by(engines[0], (*taken, insertion.replace("(2", "(3")), {"name": "shh"})
    assert isinstance(error, errors.UniqueViolation)
    assert "shh" in (error.reason or "")
    assert "shh" not in str(error)
    assert "things_name_idx" in str(error)


async def test_shows_values_when_asked_to(database_url: str) -> None:
    async with Database(database_url, hide_parameters=False) as database:
        error = await raised_by(database.engine, ["SELECT CAST(:key AS uuid)"], {"key": "shown"})
    assert str(error).count("shown") > 1


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        (select(bindparam("at", datetime(2026, 1, 1), AwareDateTime())), ValueError),  # noqa: DTZ001
        (insert(Order).values(details={"n": float("nan")}), ValueError),
        (insert(Order).values(details={"n": 2**64}), TypeError),
        (insert(Order).values(details={"n": {1, 2}}), TypeError),
    ],
    ids=["naive", "nan", "huge", "set"],
)
async def test_says_what_a_column_type_refused_before_anything_was_sent(
    statement: Any, refused: type[Exception], engines: tuple[AsyncEngine, AsyncEngine]
) -> None:
    error = await raised_by(engines[0], [statement], {})
    assert type(error) is errors.InvalidValue
    assert error.sqlstate is None
    assert isinstance(error.__cause__, refused)
    assert pickled(error).statement == error.statement


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
    assert isinstance(caught.value, errors.Conflict)
    assert isinstance(caught.value, exc.OperationalError)


async def test_reports_a_deadlock_to_one_of_the_two(real_database: Database) -> None:
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
    assert isinstance(caught.value, errors.Conflict)
    assert isinstance(caught.value, exc.OperationalError)


@pytest.mark.parametrize("nowait", ["", "NOWAIT"])
async def test_reports_a_lock_that_is_not_free_in_time(nowait: str, database_url: str) -> None:
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


async def test_reports_a_table_that_was_altered_under_a_prepared_statement(committed_database: Database) -> None:
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


async def test_reports_a_backend_that_was_killed(real_database: Database) -> None:
    lock = text("SELECT pg_advisory_xact_lock(1)")
    async with real_database.session() as holder, real_database.session() as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await holder.execute(lock)
        waiting = asyncio.create_task(session.execute(lock))
        await until_waiting(real_database)
        await kill(real_database, pid)
        with pytest.raises(errors.ConnectionLost) as caught:
            await waiting
    error = caught.value
    assert isinstance(error, errors.Unavailable)
    assert isinstance(error, exc.OperationalError)
    assert error.connection_invalidated
    assert isinstance(pickled(error), errors.ConnectionLost)


async def test_reports_a_connection_that_was_lost_while_idle_in_a_transaction(
    database_url: str, real_database: Database
) -> None:
    async with Database(database_url, idle_in_transaction_timeout=0.05) as database, database.session() as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await until_gone(real_database, pid)
        with pytest.raises(errors.ConnectionLost):
            await session.execute(text("SELECT 1"))
        await session.rollback()
        assert await session.scalar(text("SELECT 1")) == 1


async def test_reports_a_transaction_that_took_too_long(real_database: Database) -> None:
    async with real_database.session() as session:
        if await session.scalar(text("SELECT CAST(current_setting('server_version_num') AS int) < 170000")):
            pytest.skip("transaction_timeout came with PostgreSQL 17")
        await session.execute(text("SET LOCAL transaction_timeout = '20ms'"))
        with pytest.raises(errors.ConnectionLost):
            await session.execute(text("SELECT pg_sleep(9)"))


async def test_gives_up_on_a_statement_that_the_server_never_ends(database_url: str) -> None:
    async with (
        Database(database_url, statement_timeout=None, connect_args={"command_timeout": 0.05}) as database,
        database.session() as session,
    ):
        with pytest.raises(errors.ConnectionLost) as caught:
            await session.execute(text("SELECT pg_sleep(9)"))
        assert isinstance(caught.value.__cause__, TimeoutError)
        await session.rollback()
        assert await session.scalar(text("SELECT 1")) == 1


@pytest.fixture
async def full_url(real_database: Database) -> AsyncIterator[str]:
    """Of a role that may have no connection."""
    async with real_database.begin() as session:
        await session.execute(text("CREATE ROLE howdah_limited LOGIN CONNECTION LIMIT 0"))
    yield real_database.engine.url.set(username="howdah_limited").render_as_string(hide_password=False)
    async with real_database.begin() as session:
        await session.execute(text("DROP ROLE howdah_limited"))


async def is_refused(url: str) -> errors.CannotConnect:
    async with Database(url) as database:
        for attempt in (database.ping, database.session().connection):
            with pytest.raises(errors.CannotConnect) as caught:
                await attempt()
            error = caught.value
            assert isinstance(error, errors.Unavailable)
            assert isinstance(error, exc.OperationalError)
            assert error.__cause__ is error.orig
            assert type(pickled(error)) is errors.CannotConnect
        assert database.pool_status().in_use == 0
    return error


async def test_reports_a_server_that_is_not_there(database_url: str) -> None:
    assert isinstance((await is_refused("postgresql://?host=/nowhere")).orig, OSError)
    assert isinstance((await is_refused("postgresql://127.0.0.1:1/nowhere")).orig, OSError)
    assert isinstance((await is_refused("postgresql://nowhere.invalid/nowhere")).orig, OSError)


async def test_reports_a_database_that_does_not_exist(database_url: str) -> None:
    nowhere = make_url(database_url).set(database="nowhere").render_as_string(hide_password=False)
    assert (await is_refused(nowhere)).sqlstate == "3D000"


async def test_reports_a_login_that_is_refused(database_url: str) -> None:
    nobody = make_url(database_url).set(username="nobody").render_as_string(hide_password=False)
    assert (await is_refused(nobody)).sqlstate in {"28000", "28P01"}


async def test_reports_a_server_that_takes_no_more_clients(full_url: str) -> None:
    assert (await is_refused(full_url)).sqlstate == "53300"


async def test_reports_a_pool_without_a_free_connection(database_url: str) -> None:
    async with Database(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05) as database:
        async with database.session() as holder:
            await holder.execute(text("SELECT 1"))
            with pytest.raises(errors.PoolExhausted, match="all 1 connections") as caught:
                await database.session().execute(text("SELECT 1"))
        assert isinstance(caught.value, exc.TimeoutError)
        assert isinstance(caught.value, errors.Unavailable)
        assert isinstance(caught.value.__cause__, exc.TimeoutError)
        assert str(pickled(caught.value)) == str(caught.value)


async def test_a_cancelled_task_stays_cancelled(real_database: Database) -> None:
    lock = text("SELECT pg_advisory_xact_lock(1)")
    async with real_database.session() as holder, real_database.session() as session:
        await holder.execute(lock)
        waiting = asyncio.create_task(session.execute(lock))
        await until_waiting(real_database)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


@pytest.mark.parametrize(
    "error",
    [
        errors.NotFound(User, [1, 2, 3, 4, 5, 6, 7]),
        errors.UnknownAttribute(User, "mail", ["email", "name"]),
        errors.InvalidCursor("damaged"),
        errors.NestedTransaction("nested"),
        errors.StaleRow("stale"),
        errors.PoolExhausted("exhausted"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_library_survive_pickling(error: Exception) -> None:
    for twin in (copy.copy(error), pickled(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_not_found_names_all_keys_and_shows_a_few() -> None:
    error = errors.NotFound(User, range(7))
    assert error.keys == [0, 1, 2, 3, 4, 5, 6]
    assert str(error) == "no User with key 0, 1, 2, 3, 4 and 2 more"


def test_unknown_attribute_is_an_attribute_error_that_names_what_there_is() -> None:
    assert isinstance(errors.UnknownAttribute(User, "mail", ["email"]), AttributeError)
    assert str(errors.UnknownAttribute(User, "mail", ["email", "name"])).endswith("it has email, name")


def driver_errors() -> list[Any]:
    """Those with a SQLSTATE that stand for an error: not the warnings, nor foreign data wrappers' (class HV)."""
    classes: list[Any] = list(vars(asyncpg.exceptions).values())
    with_code: list[Any] = [c for c in classes if inspect.isclass(c) and issubclass(c, asyncpg.PostgresError)]
    return [each for each in with_code if each.sqlstate is not None and not each.sqlstate.startswith("HV")]


def becomes(sqlstate: str) -> type[errors.DatabaseError]:
    return errors.BY_SQLSTATE.get(sqlstate) or errors.BY_SQLSTATE.get(sqlstate[:2]) or errors.DatabaseError


def test_every_code_of_the_driver_is_mapped_or_left_plain_on_purpose() -> None:
    plain = {each.sqlstate for each in driver_errors() if becomes(each.sqlstate) is errors.DatabaseError}
    assert plain == set(LEFT_PLAIN.split())


def test_the_table_holds_no_code_that_does_not_exist() -> None:
    known = {each.sqlstate for each in driver_errors()}
    assert {code for code in errors.BY_SQLSTATE if len(code) == 5} <= known
    assert {code for code in errors.BY_SQLSTATE if len(code) == 2} <= {code[:2] for code in known}


def test_every_code_becomes_what_sqlalchemy_would_raise_too() -> None:
    dbapi: Any = PGDialect_asyncpg.import_dbapi()  # type: ignore[no-untyped-call]
    for driver_error in driver_errors():
        if driver_error is asyncpg.InvalidCachedStatementError:
            continue  # told by its class, not its code; provoked above
        adapters = dbapi._asyncpg_error_translate
        adapted = next(adapters[each] for each in driver_error.__mro__ if each in adapters)
        known = (getattr(exc, each.__name__, None) for each in adapted.__mro__)
        theirs = next((each for each in known if each and issubclass(each, exc.DBAPIError)), exc.DBAPIError)
        assert issubclass(becomes(driver_error.sqlstate), theirs), driver_error.sqlstate


def test_the_tree_at_the_top_of_the_module_is_the_tree() -> None:
    drawn: dict[str, str | None] = {"HowdahError": None}
    above = ["HowdahError"]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([│ ]*)[├└]── (\w+)", line)
        if found:
            depth = len(found[1]) // 4 + 1
            drawn[found[2]] = above[depth - 1]
            above[depth:] = [found[2]]
    classes = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, errors.HowdahError)]
    real = {each.__name__: each.__bases__[0].__name__ for each in classes}
    assert drawn == {**real, "HowdahError": None}


def test_the_tree_names_the_codes_of_the_table() -> None:
    for line in (errors.__doc__ or "").splitlines():
        found = re.search(r"── (\w+) ", line)
        codes = re.findall(r"\b(?=\w*\d)[0-9A-Z]{5}\b", line)
        if found and codes:
            table = {code for code, cls in errors.BY_SQLSTATE.items() if cls.__name__ == found[1]}
            assert set(codes) <= table, line


def test_every_name_of_the_tree_is_public() -> None:
    classes = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, errors.HowdahError)]
    elsewhere = {"EmbeddedPostgresError"}  # by howdah.embedded
    assert {each.__name__ for each in classes} <= {*howdah.__all__, *elsewhere}
