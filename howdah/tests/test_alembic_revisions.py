"""Two releases of a project: the older one serves while the newer one has migrated the database."""

from __future__ import annotations

import asyncio
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.util.exc import CommandError
from sqlalchemy import text

from howdah import Database
from howdah.alembic import RevisionState
from howdah_tests.support.migration_projects import Project, clear, empty_database, run

CREATE = 'op.execute("CREATE TABLE issues (id int)")'
ADD = 'op.execute("ALTER TABLE issues ADD COLUMN IF NOT EXISTS title text")'
REMOVE = 'op.execute("ALTER TABLE issues DROP COLUMN title")'


@pytest.fixture(scope="module")
def database_of_module(postgres_url: str) -> Iterator[str]:
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture
def old(tmp_path: Path, database_of_module: str) -> Project:
    """A release with two migrations, and an empty database."""
    clear(database_of_module)
    project = Project(tmp_path / "old", database_of_module)
    project.write_migration("0001", CREATE, 'op.execute("DROP TABLE issues")')
    project.write_migration("0002", "pass")
    return project


@pytest.fixture
def new(old: Project, tmp_path: Path) -> Project:
    """The next release, which has one more migration."""
    project = Project(tmp_path / "new", old.url)
    shutil.copytree(old.folder, project.folder, dirs_exist_ok=True)
    project.write_migration("0003", ADD, REMOVE)
    return project


def compare(project: Project) -> tuple[RevisionState, str | None]:
    """The state of the database for this release, and why the release isn't ready."""

    async def read() -> tuple[RevisionState, str | None]:
        async with Database(project.url, pool_size=1) as database:
            state = await project.migrations.compare_revision(database)
            return state, await project.migrations.find_revision_problem(database)

    return asyncio.run(read())


def read_applied(url: str) -> list[str]:
    ((applied,),) = run(url, "SELECT applied_revisions FROM alembic_version")
    return list(applied)


def test_the_old_release_is_ready_and_starts_on_the_newer_schema(
    old: Project, new: Project, caplog: pytest.LogCaptureFixture
) -> None:
    old.migrations.upgrade()
    assert compare(old) == ("current", None)
    assert compare(new) == ("behind", "the schema is at 0002, not at 0003: run howdah migrate up")
    assert new.migrations.upgrade() == ["upgraded to 0003"]
    assert read_applied(old.url) == ["0001", "0002", "0003"]
    assert compare(old) == ("newer", None)
    with caplog.at_level(logging.WARNING, "howdah.alembic"):
        assert old.migrations.upgrade() == []
        assert old.migrations.upgrade(revision="0002") == []
    assert caplog.messages == 2 * [
        "the database is at revision 0003, which is newer than 0002, the newest revision of this release: "
        "nothing was migrated"
    ]
    command.upgrade(old.migrations._config(), "head")  # Alembic's own command
    with pytest.raises(CommandError, match="at revision 0003, which this version doesn't have"):
        old.migrations.downgrade("0001")
    assert compare(new) == ("current", None)
    assert run(old.url, "SELECT title FROM issues") == []


def test_after_a_downgrade_by_the_newer_release_the_old_one_is_current(old: Project, new: Project) -> None:
    new.migrations.upgrade()
    new.migrations.downgrade("-1")
    assert compare(old) == ("current", None)
    assert read_applied(old.url) == ["0001", "0002"]
    new.migrations.downgrade("0001")
    assert compare(old)[0] == "behind"
    new.migrations.downgrade("base")
    assert compare(old) == ("behind", "the schema is at None, not at 0002: run howdah migrate up")
    assert new.migrations.upgrade() == ["upgraded to 0001", "upgraded to 0002", "upgraded to 0003"]
    assert compare(old) == ("newer", None)


@pytest.mark.parametrize(
    "applied",
    [None, ["other"], ["0001", "other"], ["0001", "0002"]],
    ids=["not stored", "of another project", "of another branch", "stored before another program migrated"],
)
def test_a_foreign_database_is_refused(old: Project, applied: list[str] | None) -> None:
    old.migrations.upgrade()
    stored = "NULL" if applied is None else f"ARRAY{applied}::text[]"
    run(old.url, f"UPDATE alembic_version SET version_num = 'other', applied_revisions = {stored}")
    state, problem = compare(old)
    assert state == "unknown"
    assert problem is not None
    assert problem.startswith("the schema is at other, which this release doesn't have, and doesn't build on 0002")
    with pytest.raises(CommandError, match=r"at revision other, .* doesn't build on its newest one"):
        old.migrations.upgrade()
    with pytest.raises(CommandError):
        command.upgrade(old.migrations._config(), "head")


def test_an_upgrade_adds_the_list_to_a_database_of_an_earlier_version_of_the_library(
    old: Project, new: Project
) -> None:
    old.migrations.upgrade()
    run(old.url, "ALTER TABLE alembic_version DROP COLUMN applied_revisions")
    assert compare(old) == ("current", None)
    assert old.migrations.upgrade() == []
    assert read_applied(old.url) == ["0001", "0002"]
    new.migrations.upgrade()
    assert compare(old) == ("newer", None)


def test_an_upgrade_without_steps_works_even_if_nothing_can_be_stored(old: Project) -> None:
    old.migrations.upgrade()
    run(old.url, "ALTER TABLE alembic_version DROP COLUMN applied_revisions")
    (name,) = run(old.url, "SELECT current_database()")
    run(old.url, f'ALTER DATABASE "{name[0]}" SET default_transaction_read_only = on')
    try:
        assert old.migrations.upgrade() == []
    finally:
        run(old.url, "SET default_transaction_read_only = off", f'ALTER DATABASE "{name[0]}" RESET ALL')
    assert compare(old) == ("current", None)


async def test_a_migration_whose_list_cannot_be_stored_for_now_is_started_again(old: Project, new: Project) -> None:
    """A reader of Alembic's table, such as a probe, blocks ALTER TABLE."""
    old.set_options("lock_timeout=0.1, lock_attempts=100")
    await asyncio.to_thread(old.migrations.upgrade)
    run_in_thread = asyncio.to_thread(run, old.url, "ALTER TABLE alembic_version DROP COLUMN applied_revisions")
    await run_in_thread
    async with Database(old.url) as database:
        async with database.session() as session:
            await session.execute(text("SELECT * FROM alembic_version"))
            migrating = asyncio.create_task(asyncio.to_thread(old.migrations.upgrade))
            async with database.session() as other:
                waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND database <> 0")
                async with asyncio.timeout(10):
                    while not await other.scalar(waiting):
                        await other.commit()
        assert await asyncio.wait_for(migrating, 20) == []
        assert await old.migrations.compare_revision(database) == "current"
    assert await asyncio.to_thread(read_applied, old.url) == ["0001", "0002"]


def test_the_sql_of_write_sql_stores_the_list(old: Project, new: Project) -> None:
    old.migrations.upgrade()
    run(old.url, "ALTER TABLE alembic_version DROP COLUMN applied_revisions")
    output = io.StringIO()
    new.migrations.write_sql("0002:head", output)
    run(old.url, *(each for each in output.getvalue().split(";") if each.strip()))
    assert compare(old) == ("newer", None)
    assert compare(new) == ("current", None)
