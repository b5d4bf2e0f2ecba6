"""With `restart=True`, a server that has died is started again, and one that was shut down isn't."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import text

from howdah import Database, Unavailable
from howdah.embedded import EmbeddedPostgres, EmbeddedPostgresError, watching
from howdah.embedded.postmaster import Postmaster
from howdah_tests.support.embedded_servers import OtherProcess, is_dead, query
from howdah_tests.support.waiting import until, wait_until

WATCHING = """
server = EmbeddedPostgres(data_dir, restart=True)
pipe.send(server.start().pid)
pipe.recv()
server.stop()
"""


def kill(server: EmbeddedPostgres) -> int:
    """Kill the server's process, as the kernel does if there is no memory left."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_dead(pid))
    return pid


def wait_for_another(server: EmbeddedPostgres, pid: int) -> None:
    wait_until(lambda: server.pid not in {None, pid})


def count_starts(server: EmbeddedPostgres) -> int:
    return server.log_file.read_text().count("starting PostgreSQL")


async def test_a_killed_server_is_started_again_and_loses_nothing(used_data: Path) -> None:
    server = EmbeddedPostgres(used_data, restart=True)
    with server:
        async with Database(server.url(), connect_timeout=2) as database:
            async with database.begin() as session:
                await session.execute(text("CREATE TABLE acknowledged AS SELECT 1 AS n"))
            first = kill(server)

            async def works() -> bool:
                try:
                    async with database.begin() as session:
                        await session.execute(text("INSERT INTO acknowledged VALUES (1)"))
                except Unavailable:
                    return False
                return server.pid not in {None, first}

            await until(works, 20)
            async with database.session() as session:
                assert await session.scalar(text("SELECT sum(n) FROM acknowledged")) >= 2
            async with database.begin() as session:
                await session.execute(text("DROP TABLE acknowledged"))
    assert server.pid is None  # `stop()` isn't undone


def test_control_without_the_option_a_killed_server_stays_dead(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        kill(server)
        with pytest.raises(AssertionError):
            wait_until(lambda: server.pid is not None, 3 * watching._POLL_SECONDS)


def test_only_one_of_several_watching_processes_starts_it_again(used_data: Path) -> None:
    with (
        EmbeddedPostgres(used_data, restart=True) as server,
        OtherProcess(used_data, WATCHING) as second,
        OtherProcess(used_data, WATCHING) as third,
    ):
        first = server.pid
        assert second.receive() == third.receive() == first
        starts = count_starts(server)
        assert kill(server) == first
        wait_for_another(server, first)
        again = server.pid
        second.finish()
        third.finish()
        server.start()
        assert server.pid == again
        assert count_starts(server) == starts + 1
        assert query(server, "select n from kept") == "42"


def test_a_server_that_was_shut_down_is_not_started_again(used_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with EmbeddedPostgres(used_data, restart=True) as server, caplog.at_level(logging.WARNING, "howdah.embedded"):
        owner = used_data.stat().st_uid
        command: list[str | Path] = [server.bin_dir / "pg_ctl", "stop", "-D", used_data, "-m", "fast"]
        subprocess.run(command, user=owner, check=True, capture_output=True, cwd="/", timeout=30)
        wait_until(lambda: "was shut down, so it isn't started again" in caplog.text)
        assert server.pid is None
        assert server.start().pid is not None  # an explicit start does, and the server is watched again
        wait_for_another(server, kill(server))


def test_a_detached_server_stays_detached(used_data: Path) -> None:
    EmbeddedPostgres(used_data).start().detach()
    with EmbeddedPostgres(used_data, restart=True) as server:
        wait_for_another(server, kill(server))
        server.start()
    assert server.pid is not None
    assert server.shut_down()
    assert server.pid is None


def test_the_attempts_are_limited_and_logged(
    used_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "_FIRST_PAUSE_SECONDS", 0.01)
    with EmbeddedPostgres(used_data, restart=True) as server, caplog.at_level(logging.ERROR, "howdah.embedded"):

        def fail(*_: object) -> None:
            raise EmbeddedPostgresError("no memory")

        monkeypatch.setattr(Postmaster, "_spawn", fail)
        kill(server)
        wait_until(lambda: "has died 5 times, and isn't started again" in caplog.text)
        assert caplog.text.count("no memory") >= 5
