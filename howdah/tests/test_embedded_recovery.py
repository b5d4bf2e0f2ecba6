"""An embedded server starts again after its processes or files were killed, deleted or damaged."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from howdah.embedded import EmbeddedPostgres, EmbeddedPostgresError, programs
from howdah.embedded import postmaster as postmaster_module
from howdah.embedded import server as server_module
from howdah.embedded.postmaster import Postmaster
from howdah_tests.support.embedded_servers import TIMEOUT_SECONDS, OtherProcess, is_dead, query

GARBAGE = "\0not a pid\n"


@pytest.fixture
def unrelated(used_data: Path) -> Iterator[int]:
    """A running process of the server's user."""
    with subprocess.Popen(["/bin/sleep", "100"], user=used_data.stat().st_uid) as process:
        yield process.pid
        process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition is still false after the timeout"
        time.sleep(0.01)


def test_recovers_after_the_server_was_killed(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        query(server, "create table survivors as select 7 as n")
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        server.start()
        assert server.pid != first
        assert query(server, "select n from survivors") == "7"


def test_ends_a_backend_that_survives_its_server(used_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postmaster_module, "_ORPHAN_SECONDS", 0.2)
    with EmbeddedPostgres(used_data) as server:
        command = [str(server.bin_dir / "psql"), "-h", str(used_data), "-U", "postgres", "-c"]
        with subprocess.Popen([*command, "do $$ begin loop end loop; end $$"], stderr=subprocess.DEVNULL):
            busy = "select pid from pg_stat_activity where query like 'do $$ %' and state = 'active'"
            wait_until(lambda: query(server, busy) != "")
            orphan, postmaster = int(query(server, busy)), server.pid
            assert postmaster is not None
            os.kill(postmaster, signal.SIGKILL)
            wait_until(lambda: is_dead(postmaster))
            assert not is_dead(orphan)
            server.start()
            assert is_dead(orphan)
            assert query(server, "select n from kept") == "42"


@pytest.mark.parametrize(
    "lines",
    ["{pid}", "{pid}\n{data}\n1\n5432\n{data}\n\n 1 2\nready\n", "", GARBAGE, "9" * 5000],
    ids=["truncated", "whole", "empty", "garbage", "huge"],
)
def test_starts_despite_a_stale_pid_file(used_data: Path, unrelated: int, lines: str) -> None:
    stale = lines.format(pid=unrelated, data=used_data)
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (used_data / name).write_text(stale)
    server = EmbeddedPostgres(used_data)
    assert server.pid is None
    with server:
        assert query(server, "select n from kept") == "42"
    assert not is_dead(unrelated)


def test_ignores_a_pid_file_of_the_server_of_another_directory(used_data: Path, home: Path) -> None:
    with EmbeddedPostgres(home / "data") as other:
        shutil.copy(home / "data" / "postmaster.pid", used_data)
        with EmbeddedPostgres(used_data) as server:
            assert server.pid != other.pid
        assert query(other, "select 1") == "1"


def test_never_runs_two_servers_on_one_directory(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        first = server.pid
        (used_data / "postmaster.pid").write_text(GARBAGE)
        server.start()
        assert is_dead(first)
        assert query(server, "select n from kept") == "42"


def test_a_directory_that_was_deleted_while_its_server_ran_is_created_again(home: Path) -> None:
    with OtherProcess(home / "data") as process, EmbeddedPostgres(home / "data") as server:
        first = process.receive()
        shutil.rmtree(home / "data")
        server.start()
        assert is_dead(first)
        assert query(server, "select 1") == "1"
        process.finish()
        assert query(server, "select 1") == "1"


def test_a_start_that_is_killed_in_initdb_leaves_no_data_directory(home: Path) -> None:
    with OtherProcess(home / "data") as process:
        wait_until(lambda: any(home.glob(".data.initdb-*/base")))
        process.kill()
    assert not (home / "data").exists()
    assert any(home.glob(".data.initdb-*"))
    with EmbeddedPostgres(home / "data") as server:
        assert query(server, "select 1") == "1"
    assert not any(home.glob(".data.initdb-*"))


def test_a_failed_initdb_is_explained_and_cleaned_up(home: Path) -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    EmbeddedPostgres(data_dir).start()
except EmbeddedPostgresError as error:
    pipe.send(str(error))
pipe.recv()
"""
    with OtherProcess(home / "data", script) as process:
        problem = str(process.receive())
        assert "initdb failed" in problem
        assert "File too large" in problem
        process.finish()
    assert not [path for path in home.iterdir() if path.is_dir()]


@pytest.fixture
def deleted_programs(used_data: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that starts a detached server of a copy of the programs, and deletes the copy."""
    wheel = programs.wheel_folder()
    copy = home / "venv" / wheel.name
    bin_dir = EmbeddedPostgres(used_data).bin_dir

    def start_and_delete() -> None:
        shutil.copytree(bin_dir.parent, copy / bin_dir.parent.name, ignore=shutil.ignore_patterns("include", "*.a"))
        libraries = wheel.with_name(f"{wheel.name}.libs")
        if libraries.exists():
            (home / "venv" / libraries.name).symlink_to(libraries)
        with monkeypatch.context() as patched:
            patched.setattr(server_module, "wheel_folder", lambda: copy)
            EmbeddedPostgres(used_data).start().detach()
        shutil.rmtree(home / "venv")

    return start_and_delete


def test_a_server_whose_programs_were_deleted_is_restarted_and_stays_detached(
    used_data: Path, deleted_programs: Callable[[], None]
) -> None:
    deleted_programs()
    stale = EmbeddedPostgres(used_data).pid
    with EmbeddedPostgres(used_data) as server:
        assert is_dead(stale)
        assert query(server, "do $$ begin end $$") == "DO"
        assert query(server, "select n from kept") == "42"
        restarted = server.pid
        assert server.start().pid == restarted
    assert server.pid == restarted
    assert server.shut_down()


def test_a_server_whose_programs_were_deleted_is_not_restarted_while_others_use_it(
    used_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OtherProcess(used_data) as other:
        stale = other.receive()
        monkeypatch.setattr(Postmaster, "has_lost_programs", lambda self: EmbeddedPostgres(self.data_dir).pid == stale)
        with pytest.raises(EmbeddedPostgresError, match="were deleted, and other processes still use it"):
            EmbeddedPostgres(used_data, start_timeout=0.5).start()
        assert not is_dead(stale)
        other.finish()  # the server isn't locked, so its users can end their use
    with EmbeddedPostgres(used_data) as server:
        assert server.pid != stale
