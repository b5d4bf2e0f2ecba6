"""Several processes share an embedded server, and wait for its start."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from howdah.embedded import EmbeddedPostgres, EmbeddedPostgresError, running_data_dirs
from howdah.embedded.postmaster import Postmaster
from howdah_tests.support.embedded_servers import TIMEOUT_SECONDS, OtherProcess, is_dead, query


def test_processes_share_one_server_and_the_last_one_stops_it(used_data: Path) -> None:
    with OtherProcess(used_data) as one, OtherProcess(used_data) as two, EmbeddedPostgres(used_data) as server:
        pid = server.pid
        assert one.receive() == two.receive() == pid
        one.finish()
        server.stop()
        assert server.pid == pid
        two.finish()
        assert server.pid is None
        assert is_dead(pid)


def test_several_processes_can_start_a_new_server_at_once(home: Path) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(OtherProcess(home / "data")) for _ in range(5)]
        pids = {process.receive() for process in processes}
        assert len(pids) == 1
        for process in processes:
            process.finish()
    assert all(map(is_dead, pids))


def test_processes_that_start_and_stop_always_find_a_server(used_data: Path) -> None:
    script = f"""
import subprocess
for _ in range(8):
    with EmbeddedPostgres(data_dir) as server:
        subprocess.run([server.bin_dir / "psql", "-h", data_dir, "-U", "postgres", "-c", "select 1"], check=True,
                       stdout=subprocess.DEVNULL, timeout={TIMEOUT_SECONDS})
pipe.send("done")
pipe.recv()
"""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(OtherProcess(used_data, script)) for _ in range(3)]
        for process in processes:
            assert process.receive() == "done"
            process.finish()
    assert EmbeddedPostgres(used_data).pid is None


def test_each_of_two_objects_of_one_process_keeps_the_server_running(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as one, EmbeddedPostgres(used_data) as two:
        one.start()
        one.stop()
        assert query(two, "select 1") == "1"
        two.stop()
        assert two.pid is None


def test_a_forked_child_does_not_stop_the_server_and_its_parent_stops_it_at_exit(used_data: Path) -> None:
    script = """
import os, sys
from howdah.embedded import EmbeddedPostgres
server = EmbeddedPostgres(sys.argv[1]).start()
print(server.pid)
here, there = os.pipe()
child = os.fork()
if child == 0:
    server.stop()
    os.write(there, b".")
    sys.exit()
os.read(here, 1)
os.waitpid(child, 0)
assert server.pid is not None, "the child stopped its parent's server"
child = os.fork()
if child == 0:
    os.close(there)
    os.read(here, 1)  # until its parent has ended
    os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, used_data], check=True, stdout=subprocess.PIPE, timeout=TIMEOUT_SECONDS
    )
    assert is_dead(int(done.stdout.split()[0]))


def test_a_server_whose_last_user_was_killed_is_used_again(used_data: Path) -> None:
    with OtherProcess(used_data) as process:
        pid = process.receive()
        process.kill()
        with EmbeddedPostgres(used_data) as server:
            assert server.pid == pid
        assert is_dead(pid)


def test_the_server_survives_an_interrupt_from_the_terminal(used_data: Path) -> None:
    with OtherProcess(used_data) as process:
        pid = process.receive()
        assert process.process.pid is not None
        os.killpg(process.process.pid, signal.SIGINT)
        assert process.receive() == "interrupted"
        with EmbeddedPostgres(used_data) as server:
            assert server.pid == pid
        process.finish()
        assert is_dead(pid)


def test_an_interrupted_start_leaves_no_server(used_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Postmaster, *args: object) -> None:
        await_ready(self, *args)
        raise KeyboardInterrupt

    await_ready: Callable[..., Path] = Postmaster._await_ready
    monkeypatch.setattr(Postmaster, "_await_ready", interrupted)
    server = EmbeddedPostgres(used_data)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert server.pid is None


def test_a_start_waits_no_longer_than_its_timeout(used_data: Path) -> None:
    server = EmbeddedPostgres(used_data, start_timeout=0.2)
    with open(server._sibling("lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedPostgresError, match="is held by another process"):
            server.start()


def test_a_server_that_does_not_answer_is_an_error_until_it_answers(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(EmbeddedPostgresError, match=r"accepts no connections[^$]*ready to accept connections"):
                EmbeddedPostgres(used_data, start_timeout=0.2).start()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        with EmbeddedPostgres(used_data) as found:
            assert found.pid == server.pid


def test_a_detached_server_runs_until_it_is_shut_down(used_data: Path) -> None:
    server = EmbeddedPostgres(used_data).start()
    pid = server.pid
    server.detach()
    with OtherProcess(used_data) as other:  # this user is the last one, and doesn't stop the server
        assert other.receive() == pid
        other.finish()
    assert server.pid == pid
    assert used_data in running_data_dirs()
    assert server.shut_down()
    assert server.pid is None
    assert is_dead(pid)
    assert used_data not in running_data_dirs()
    assert server.shut_down()


def test_the_last_user_of_a_detached_server_stops_it_after_a_shut_down(used_data: Path) -> None:
    EmbeddedPostgres(used_data).start().detach()
    with EmbeddedPostgres(used_data) as user:
        pid = user.pid
        assert not EmbeddedPostgres(used_data).shut_down()
        assert user.pid == pid
    assert is_dead(pid)


def test_a_server_that_was_started_after_a_crash_is_not_detached(used_data: Path) -> None:
    server = EmbeddedPostgres(used_data).start()
    server.detach()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    with EmbeddedPostgres(used_data) as restarted:
        assert restarted.pid is not None
    assert restarted.pid is None


def test_a_server_is_detached_and_shut_down_only_in_the_right_state(used_data: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"before start\(\)"):
        EmbeddedPostgres(used_data).detach()
    with EmbeddedPostgres(used_data) as server, pytest.raises(EmbeddedPostgresError, match=r"call stop\(\) first"):
        server.shut_down()
