"""Faults during migrations: a killed process, a pooler, a short timeout of the role, a failed index."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from howdah.alembic import MigrationBlocked, locks
from howdah.alembic.locks import LOCK_KEY
from howdah_tests.support.migration_projects import Project, clear, empty_database, run
from howdah_tests.support.pgbouncer import PROGRAM, run_pgbouncer
from howdah_tests.support.waiting import wait_until

CREATE = 'op.execute("CREATE TABLE issues (id int)")'
SLEEP = 'op.execute("SELECT pg_sleep(60)")'
# `query` alone would also find a session that has prepared the statement but doesn't run it yet.
IS_SLEEPING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
HELD_LOCKS = (
    f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = {LOCK_KEY & 0xFFFFFFFF}::oid AND granted"
)


@pytest.fixture(scope="module")
def database_of_module(postgres_url: str) -> Iterator[str]:
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture
def project(tmp_path: Path, database_of_module: str) -> Project:
    clear(database_of_module)
    project = Project(tmp_path, database_of_module, "wait=0.2")
    project.write_migration("0001", CREATE)
    project.migrations.upgrade()
    return project


def kill_in_the_migration(project: Project, before: str = "", query: str = IS_SLEEPING) -> None:
    """Kill a process while PostgreSQL executes a long statement of its migration, which the query finds."""
    code = f"{before}\nfrom howdah.alembic import Migrations\nMigrations.of_project({str(project.folder)!r}).upgrade()"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        wait_until(lambda: run(project.url, query))
        process.kill()


def test_after_a_killed_migration_the_next_one_runs_soon(project: Project) -> None:
    project.write_migration("0002", SLEEP)
    kill_in_the_migration(project)
    wait_until(lambda: not run(project.url, IS_SLEEPING), 10)
    project.write_migration("0002", "pass")
    assert project.migrations.upgrade() == ["upgraded to 0002"]


def test_control_by_default_the_statement_of_a_killed_process_goes_on_and_keeps_the_lock(project: Project) -> None:
    project.write_migration("0002", SLEEP)
    kill_in_the_migration(project, "from howdah.alembic import locks; locks._CHECK_CLIENT = 'SELECT 1'")
    project.set_options("wait=1.5")
    with pytest.raises(MigrationBlocked, match="of application 'howdah migrate' from this machine, connected since"):
        project.migrations.upgrade()
    run(project.url, IS_SLEEPING.replace("SELECT pid", "SELECT pg_terminate_backend(pid, 5000)"))


def test_a_waiting_process_logs_which_process_migrates(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "_LONGEST_POLL_SECONDS", locks._FIRST_POLL_SECONDS)

    async def hold() -> None:
        url = make_url(project.url).set(drivername="postgresql").render_as_string(hide_password=False)
        holder = await asyncpg.connect(url, server_settings={"application_name": "deploy 7"})
        try:
            await holder.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
            with caplog.at_level(logging.WARNING, "howdah.alembic"), pytest.raises(MigrationBlocked):
                await asyncio.to_thread(project.migrations.upgrade)
        finally:
            await holder.close()

    asyncio.run(hold())
    (message,) = caplog.messages
    assert "is run by process" in message
    assert "of application 'deploy 7'" in message
    assert message.endswith("waiting for its end, at most 0.2 s")


def test_timeouts_of_the_role_do_not_apply_to_migrations(project: Project) -> None:
    ((name,),) = run(project.url, "SELECT current_database()")
    project.write_migration("0002", 'op.execute("SELECT pg_sleep(0.6)")')
    run(project.url, f'ALTER DATABASE "{name}" SET statement_timeout = 500')
    try:
        assert project.migrations.upgrade() == ["upgraded to 0002"]
    finally:
        run(project.url, "SET statement_timeout = 0", f'ALTER DATABASE "{name}" RESET ALL')


needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer (apt-get install pgbouncer)")


@needs_pgbouncer
def test_a_pooler_is_refused_and_keeps_no_lock(project: Project) -> None:
    project.write_migration("0002", "pass")
    with run_pgbouncer(project.url) as pooled:
        with pytest.raises(MigrationBlocked, match="is the URL of a pooler"):
            project.migrations.upgrade(pooled)
        assert run(project.url, HELD_LOCKS) == []
        assert project.migrations.upgrade() == ["upgraded to 0002"]


@needs_pgbouncer
def test_control_a_pooler_in_transaction_mode_keeps_the_lock_of_a_session_that_has_ended(project: Project) -> None:
    async def lock(url: str) -> None:
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        session = await asyncpg.connect(plain, statement_cache_size=0)
        await session.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
        await session.close()

    with run_pgbouncer(project.url) as pooled:
        asyncio.run(lock(pooled))
        assert len(run(project.url, HELD_LOCKS)) == 1
        with pytest.raises(MigrationBlocked, match="another migration of this database"):
            project.migrations.upgrade()


def test_an_invalid_index_of_a_killed_process_is_built_again(project: Project) -> None:
    is_waiting = (
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock' "
        "AND datname = current_database()"
    )
    project.write_migration("0002", 'create_index_concurrently("ix", "issues", ["id"])')

    async def hold_snapshot() -> None:
        url = make_url(project.url).set(drivername="postgresql").render_as_string(hide_password=False)
        reader = await asyncpg.connect(url)
        async with reader.transaction(isolation="repeatable_read"):
            await reader.execute("SELECT * FROM issues")
            await asyncio.to_thread(kill_in_the_migration, project, query=is_waiting)
            await asyncio.to_thread(wait_until, lambda: not run(project.url, is_waiting))
        await reader.close()

    asyncio.run(hold_snapshot())
    invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    assert run(project.url, invalid) == [("ix",)]
    assert project.migrations.upgrade() == ["upgraded to 0002"]
    assert run(project.url, invalid) == []
    assert run(project.url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix'::regclass") == [(True,)]


def test_a_downgrade_has_the_same_lock_timeout_as_an_upgrade(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.write_migration("0002", "pass", 'op.execute("ALTER TABLE issues ADD COLUMN title text")')
    project.migrations.upgrade()
    project.set_options("lock_timeout=0.05, lock_attempts=2")

    async def hold_lock() -> None:
        url = make_url(project.url).set(drivername="postgresql").render_as_string(hide_password=False)
        reader = await asyncpg.connect(url)
        async with reader.transaction():
            await reader.execute("SELECT * FROM issues")
            with pytest.raises(MigrationBlocked, match="migration 0002 was rolled back after 2 attempts"):
                await asyncio.to_thread(project.migrations.downgrade, "0001")
        await reader.close()

    with caplog.at_level(logging.WARNING, "howdah.alembic"):
        asyncio.run(hold_lock())
    assert "the migration waited 0.05 s for a lock (attempt 1 of 2). It was rolled back" in caplog.messages[0]
    assert project.migrations.downgrade("0001") == ["downgraded to 0001"]


ISSUE = """
class Issue(Base):
    __tablename__ = "issues"
    __mapper_args__ = {"primary_key": ["id"]}
    id: Mapped[int | None]
    required: Mapped[str]
    python_default: Mapped[str] = mapped_column(default="here")
    server_default: Mapped[str] = mapped_column(server_default="here")
    nullable: Mapped[str | None]
    generated: Mapped[int] = mapped_column(Computed("1"))
    identity: Mapped[int] = mapped_column(Identity())

class Other(Base):
    __tablename__ = "others"
    id: Mapped[int] = mapped_column(primary_key=True)
    required: Mapped[str]
"""


def test_a_new_not_null_column_without_a_default_gives_a_warning(project: Project) -> None:
    project.write_models(ISSUE)
    written = project.migrations.new("more")
    assert written.problems == []
    assert sorted(each.partition(":")[0] for each in written.warnings) == [
        "the column python_default of issues is NOT NULL and has no server default",
        "the column required of issues is NOT NULL and has no server default",
    ]
