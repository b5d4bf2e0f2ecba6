"""The pytest plugin, in separate runs of pytest."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, bulk, savepoint
from howdah.testing import _shared_server, assert_statements
from howdah.testing._shared_server import find_memory_folder, open_shared_server
from howdah_tests.support.embedded_servers import query
from howdah_tests.support.sample_models import User

pytest_plugins = ["pytester"]

CONFTEST = """
import os
from pathlib import Path

import pytest
from sqlalchemy import text

pytest_plugins = ["howdah.testing"]


async def name_of(database):
    async with database.session() as session:
        name = await session.scalar(text("SELECT current_database()"))
    with Path(os.environ["NAMES"]).open("a") as names:
        names.write(name + os.linesep)
    return name


@pytest.fixture
def seen():
    return name_of
"""

MODELS = """
from howdah import Base
from sqlalchemy.orm import Mapped, mapped_column

class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def names(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which the inner tests write the names of their databases."""
    path = pytester.path / "names"
    path.touch()
    monkeypatch.setenv("NAMES", str(path))
    return path


@pytest.fixture
def run(pytester: pytest.Pytester, postgres_url: str, names: Path) -> Run:
    pytester.makeini(
        """
        [pytest]
        asyncio_mode = auto
        asyncio_default_fixture_loop_scope = function
        filterwarnings = error
        pythonpath = .
        """
    )
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(models=MODELS)

    def run(tests: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_inner=tests)
        plain = ("-p", "no:cacheprovider", "-p", "no:cov", "--postgres-url", postgres_url)
        return pytester.runpytest_subprocess(*plain, *options, timeout=60)

    return run


def on_server(postgres_url: str, statement: str) -> list[str]:
    async def execute() -> list[str]:
        async with Database(postgres_url) as database:
            engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
            async with engine.connect() as connection:
                result = await connection.execute(text(statement))
                return list(result.scalars()) if result.returns_rows else []

    return asyncio.run(execute())


def databases(postgres_url: str) -> set[str]:
    return set(on_server(postgres_url, "SELECT datname FROM pg_database"))


@pytest.fixture
def foreign_database(postgres_url: str) -> Iterator[str]:
    """A database with a similar name, which the plugin hasn't created."""
    name = f"howdah_test_data_{os.getpid()}"
    on_server(postgres_url, f"CREATE DATABASE {name}")
    yield name
    on_server(postgres_url, f"DROP DATABASE {name}")


ISOLATED = """
import asyncio
import pytest
from sqlalchemy import func, select, text
from models import Thing

async def count(database):
    async with database.session() as session:
        return await session.scalar(select(func.count()).select_from(Thing))

@pytest.mark.parametrize("n", range(4))
async def test_rolls_back_committed_rows(n, database, session, seen):
    await seen(database)
    assert await count(database) == 0
    session.add(Thing(id=1))
    await session.commit()
    async with database.begin() as other:
        other.add(Thing(id=2))
    assert await count(database) == 2

@pytest.mark.parametrize("n", range(2))
async def test_commits_for_real_in_a_separate_database(n, committed_database, committed_url, database, seen):
    assert await seen(committed_database) != await seen(database)
    async def add(key):
        async with committed_database.begin() as session:
            session.add(Thing(id=key))
    await asyncio.gather(add(1), add(2))
    assert await count(committed_database) == 2
    assert await count(database) == 0
    from howdah import Database
    async with Database(committed_url) as again:
        assert await count(again) == 2

def test_sets_up_a_test_without_a_loop_too(committed_url, database_url):
    assert committed_url != database_url
"""


def test_isolates_tests_under_xdist_and_leaves_no_database_behind(run: Run, names: Path, postgres_url: str) -> None:
    pytest.importorskip("xdist")
    run(ISOLATED, "-n", "2").assert_outcomes(passed=7)
    used = names.read_text().split()
    assert len(set(used)) >= 3
    assert not set(used) & databases(postgres_url)


KILLED = f"""
import os
from models import Thing

async def test_dies(database, committed_database, seen):
    await seen(database)
    await seen(committed_database)
    os.kill(os.getpid(), {signal.SIGKILL.value})
"""

OWN_MIGRATION = """
import pytest
from howdah.testing import _run, assert_statements
from sqlalchemy import text

@pytest.fixture(scope="session")
def migrate():
    def run(url):
        _run(url, "CREATE TABLE migrated ()")
    return run

async def test_has_only_the_migrated_tables(session, committed_database):
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    assert list(await session.scalars(text(tables))) == ["migrated"]
    async with committed_database.session() as other:
        assert list(await other.scalars(text(tables))) == ["migrated"]

async def test_sends_too_much(session):
    with assert_statements(session, 1):
        await session.execute(text("SELECT 1"))
        await session.execute(text("SELECT 2"))
"""


def test_drops_only_the_databases_of_a_killed_run(
    run: Run, names: Path, postgres_url: str, database_url: str, foreign_database: str
) -> None:
    assert run(KILLED).ret == -signal.SIGKILL
    leftover = set(names.read_text().split())
    assert len(leftover) == 2
    assert leftover <= databases(postgres_url)

    result = run(OWN_MIGRATION)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Failed: 2 statements instead of 1:", "E*1. SELECT 1", "E*2. SELECT 2"])
    now = databases(postgres_url)
    assert not leftover & now
    assert {database_url.split("?", maxsplit=1)[0].rpartition("/")[2], foreign_database} <= now


class TestAssertStatements:
    @pytest.mark.parametrize("expected", [0, 2])
    async def test_fails_with_a_list_of_the_sent_statements(self, expected: int, session: AsyncSession) -> None:
        with pytest.raises(pytest.fail.Exception) as caught:  # noqa: SIM117
            with assert_statements(session, expected):
                await session.execute(text("SELECT 42"))
        assert str(caught.value) == f"1 statements instead of {expected}:\n1. SELECT 42"

    async def test_counts_statements_of_a_session_a_database_or_an_engine(self, database: Database) -> None:
        async with database.session() as session:
            for target in (session, database, database.engine):
                with assert_statements(target, 1) as sent:
                    await session.execute(text("SELECT 42"))
                assert sent == ["SELECT 42"]
                await session.execute(text("SELECT 43"))
                assert sent == ["SELECT 42"]

    async def test_counts_statements_of_a_read_only_session(self, database_url: str) -> None:
        async with Database(database_url) as database, database.session(read_only=True) as session:
            for target in (session, database):
                with assert_statements(target, 1):
                    await session.execute(text("SELECT 42"))

    async def test_counts_no_transaction_control_and_an_executemany_once(self, database: Database) -> None:
        users = [{"email": name, "name": name} for name in "abc"]
        with assert_statements(database, 2):
            async with database.begin() as session, savepoint(session):
                await session.execute(insert(User), users)
                assert await session.scalar(select(func.count()).select_from(User)) == 3

    async def test_counts_a_copy_once(self, database: Database) -> None:
        with assert_statements(database, 1) as sent:
            async with database.begin() as session:
                await bulk.insert_many(session, User, [{"email": f"{n}@x", "name": "N"} for n in range(1100)])
        assert sent[0].startswith("COPY users (id, email, ")
        assert " FROM STDIN" in sent[0]

    async def test_does_not_hide_the_error_of_the_block(self, session: AsyncSession) -> None:
        with pytest.raises(ZeroDivisionError), assert_statements(session, 1):
            _ = 1 / 0


def test_the_shared_server_runs_without_fsync_and_has_new_data_after_a_crash(home: Path) -> None:
    """Control: after a stop without a crash the data is still there."""
    with open_shared_server(18, home) as server:
        assert query(server, "show fsync") == "off"
        query(server, "create table kept as select 42 as n")
    with open_shared_server(18, home) as server:
        assert query(server, "select n from kept") == "42"
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
    with open_shared_server(18, home) as server:
        assert query(server, "select to_regclass('kept') is null") == "t"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/shm")
def test_data_in_memory_is_in_a_folder_of_this_user_and_needs_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = find_memory_folder(tmp_path)
    assert folder is not None
    assert (folder.parent, folder.owner()) == (tmp_path, tmp_path.owner())
    assert find_memory_folder(tmp_path / "missing") is None
    folder.chmod(0o777)  # everyone may write to it
    assert find_memory_folder(tmp_path) is None
    folder.rmdir()
    folder.symlink_to(tmp_path)  # it leads to a folder of someone else
    assert find_memory_folder(tmp_path) is None
    folder.unlink()
    monkeypatch.setattr(_shared_server, "_MIN_FREE_BYTES", 1 << 60)
    assert find_memory_folder(tmp_path) is None
    assert not folder.exists()
