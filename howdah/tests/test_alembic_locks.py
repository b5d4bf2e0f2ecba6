"""One migration at a time, and short waits for the locks of tables."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from howdah import Database, LockTimeout
from howdah.alembic import MigrationBlocked, environment
from howdah.alembic.locks import LOCK_KEY
from howdah_tests.support.migration_projects import Project, clear, empty_database, run
from howdah_tests.support.waiting import until_waiting

CREATE = 'op.execute("CREATE TABLE issues (id int)")'
ALTER = 'op.execute("ALTER TABLE issues ADD COLUMN title text")'

WAIT = '''op.execute("""
    DO $$ BEGIN
        {first};
        FOR attempt IN 1..2000 LOOP
            EXIT WHEN ({condition});
            PERFORM pg_sleep(0.01);
            PERFORM pg_stat_clear_snapshot();
        END LOOP;
    END $$""")'''
# Returns when the second process is connected. Then it waits for the lock.
BOTH_CONNECTED = WAIT.format(
    first="NULL",
    condition="SELECT count(*) = 2 FROM pg_stat_activity "
    "WHERE application_name = 'howdah migrate' AND datname = current_database()",
)
# Returns when both processes are in the migration.
BOTH_IN_THE_MIGRATION = WAIT.format(
    first="PERFORM nextval('arrivals')", condition="SELECT last_value >= 2 FROM arrivals"
)


@pytest.fixture(scope="module")
def database_of_module(postgres_url: str) -> Iterator[str]:
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture
def project(tmp_path: Path, database_of_module: str) -> Project:
    clear(database_of_module)
    return Project(tmp_path, database_of_module, "lock_timeout=0.1, lock_attempts=2")


def start_other_process(project: Project, before: str = "") -> subprocess.Popen[str]:
    """Another process that upgrades."""
    code = f"{before}\nfrom howdah.alembic import Migrations\nMigrations.of_project({str(project.folder)!r}).upgrade()"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_two_processes_do_not_migrate_at_once_even_if_an_index_is_built_concurrently(project: Project) -> None:
    """CREATE INDEX CONCURRENTLY would wait for a statement that waits for the lock."""
    project.write_migration("0001", f"{BOTH_CONNECTED}; {CREATE}")
    project.write_migration("0002", 'create_index_concurrently("ix_issues_id", "issues", ["id"])')
    with start_other_process(project) as other:
        applied = project.migrations.upgrade()
        _, errors = other.communicate(timeout=60)
    assert (other.returncode, errors) == (0, "")
    assert len(applied) in (0, 2)  # all by one process
    assert run(project.url, "SELECT version_num FROM alembic_version") == [("0002",)]


def test_control_without_the_lock_one_of_two_processes_fails(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write_migration("0001", 'op.execute("CREATE SEQUENCE arrivals")')
    project.migrations.upgrade()
    project.write_migration("0002", f"{BOTH_IN_THE_MIGRATION}; {CREATE}")
    without = (
        "import howdah.alembic.environment as environment, contextlib\n"
        "environment.migration_lock = lambda *_: contextlib.nullcontext()"
    )
    monkeypatch.setattr(environment, "migration_lock", lambda *_: nullcontext())
    outcomes: list[bool] = []
    with start_other_process(project, without) as other:
        try:
            project.migrations.upgrade()
            outcomes.append(True)
        except (IntegrityError, ProgrammingError):
            outcomes.append(False)
        outcomes.append(other.wait(timeout=60) == 0)
        other.communicate()
    assert sorted(outcomes) == [False, True]


async def test_the_wait_for_another_migration_is_bounded_and_the_error_says_who_migrates(project: Project) -> None:
    project.set_options("wait=0.1")
    project.write_migration("0001", CREATE)
    async with Database(project.url, application_name="deploy 7") as database, database.session() as session:
        await session.execute(text(f"SELECT pg_advisory_lock({LOCK_KEY})"))
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        expected = f"didn't end within 0.1 s. It is run by process {pid} of application 'deploy 7'"
        with pytest.raises(MigrationBlocked, match=expected):
            await asyncio.to_thread(project.migrations.upgrade)
        assert await session.scalar(text("SELECT count(*) FROM pg_class WHERE relname = 'issues'")) == 0


async def test_a_migration_can_be_started_while_an_event_loop_runs(project: Project) -> None:
    project.write_migration("0001", CREATE)
    assert project.migrations.upgrade() == ["upgraded to 0001"]
    async with Database(project.url) as database:
        assert await project.migrations.current(database) == "0001"
        assert await project.migrations.find_revision_problem(database) is None


@asynccontextmanager
async def long_query(database: Database) -> AsyncIterator[None]:
    """A transaction that has read the table, and is still open."""
    async with database.session() as session:
        await session.execute(text("SELECT * FROM issues"))
        yield


async def test_a_migration_waits_briefly_and_is_started_again(project: Project) -> None:
    project.write_migration("0001", CREATE)
    project.migrations.upgrade()
    project.set_options("lock_timeout=0.1, lock_attempts=100")
    project.write_migration("0002", 'op.execute("CREATE TABLE more (id int)")')
    project.write_migration("0003", ALTER)
    async with Database(project.url, lock_timeout=3) as database:
        async with long_query(database):
            migrating = asyncio.create_task(asyncio.to_thread(project.migrations.upgrade, None, "+2"))
            for _ in range(2):  # two attempts
                await until_waiting(database)
                started = time.monotonic()
                async with database.session() as reader:  # queues behind the migration
                    await reader.execute(text("SELECT * FROM issues"))
                assert time.monotonic() - started < 2
        assert await asyncio.wait_for(migrating, 20) == ["upgraded to 0002", "upgraded to 0003"]


async def test_control_a_migration_that_waits_longer_blocks_every_reader(project: Project) -> None:
    project.write_migration("0001", CREATE)
    await asyncio.to_thread(project.migrations.upgrade)
    async with (
        Database(project.url, lock_timeout=0.2) as database,
        Database(project.url, lock_timeout=None) as patient,
        patient.session() as migration,
        long_query(database),
        database.session() as reader,
    ):
        altering = asyncio.create_task(migration.execute(text("ALTER TABLE issues ADD COLUMN title text")))
        await until_waiting(database)
        with pytest.raises(LockTimeout):
            await reader.execute(text("SELECT * FROM issues"))
        altering.cancel()
        await asyncio.wait([altering])


async def test_after_the_last_attempt_the_error_names_the_statement_and_the_oldest_transaction(
    project: Project,
) -> None:
    project.write_migration("0001", CREATE)
    project.write_migration("0002", ALTER)
    await asyncio.to_thread(project.migrations.upgrade, None, "0001")
    async with Database(project.url, application_name="report") as database, long_query(database):
        with pytest.raises(MigrationBlocked) as raised:
            await asyncio.to_thread(project.migrations.upgrade)
    message = str(raised.value)
    assert (
        "migration 0002 was rolled back after 2 attempts. Each waited 0.1 s for a lock: ALTER TABLE issues" in message
    )
    assert "of application 'report', idle in transaction for" in message
    async with Database(project.url) as database:
        assert await project.migrations.current(database) == "0001"


async def test_a_migration_that_was_committed_in_part_is_not_started_again(project: Project) -> None:
    project.write_migration("0001", CREATE)
    steps = 'op.execute("CREATE TABLE part (id int)"); create_index_concurrently("ix", "part", ["id"]); '
    project.write_migration("0002", steps + ALTER)
    await asyncio.to_thread(project.migrations.upgrade, None, "0001")
    async with Database(project.url) as database, database.session() as session:
        await session.execute(text("LOCK TABLE issues IN ACCESS SHARE MODE"))  # has no snapshot: the index can be built
        with pytest.raises(MigrationBlocked, match=r"committed in part, because .*, and ended after 1 attempts"):
            await asyncio.to_thread(project.migrations.upgrade)
