"""The embedded server: started, found again, shared and stopped."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

from sqlalchemy.engine import URL

from howdah.embedded.data_directory import (
    DEFAULT_VERSION,
    beside,
    check_data_dir,
    check_version,
    data_version,
    default_data_dir,
    initialise,
)
from howdah.embedded.locks import locked, open_lock, wait
from howdah.embedded.processes import alive, command_line, processes, send, served_directory
from howdah.embedded.programs import (
    ENVIRONMENT,
    STOP_SECONDS,
    WHEEL_FOLDERS,
    ServerUser,
    prepare_parent,
    programs_for,
    server_user,
    user_name,
    wheel_folder,
)
from howdah.errors import EmbeddedPostgresError

if sys.platform != "win32":
    import fcntl
with contextlib.suppress(ImportError):  # of the extra; wheel_folder() says so when it is missing
    import psutil

# Given on the command line at each start, so that they follow the library's version and not the day of initdb.
DEFAULT_SETTINGS: Mapping[str, str] = {
    "checkpoint_timeout": "15min",
    "jit": "off",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "max_connections": "200",
    "max_wal_size": "4GB",
    "random_page_cost": "1.1",
    "shared_buffers": "256MB",
    "timezone": "UTC",
    "wal_compression": "on",
}

_SOCKET = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 103  # macOS: sun_path holds 104 with the closing NUL; Linux 108
_PLAIN_PATH = re.compile(r"[\w/. +@-]+", re.ASCII)  # read alike by PostgreSQL's list of socket folders and by drivers
_LOG_BYTES = 10_000_000
_LOG_TAIL_BYTES = 3_000
_ORPHAN_SECONDS = 5.0
# The server becomes nobody's child: as ours it would stay a zombie when another process stops it.
_START_DETACHED = 'log=$1; shift; "$@" >>"$log" 2>&1 & echo $!'

_logger = logging.getLogger("howdah.embedded")


class EmbeddedPostgres:
    """A PostgreSQL server from a wheel, shared by every process that names the same data directory.

    The first to `start()` starts the server and the last to `stop()` stops it, across processes and objects. A process
    that ends without `stop()` gives up its share at exit. One that is killed loses its share to the kernel; a server
    left without users so is found and used by the next start. A forked child has no share until it calls `start()`.
    All users must see each other's processes: hosts or containers can't share a data directory.

    Whoever can enter the socket's folder (its owner, and root) connects as the superuser `postgres`, without a
    password. PostgreSQL refuses to run as root; for root it runs as the system user `howdah`, created when missing.
    """

    data_dir: Path
    """Absolute, symbolic links resolved. Beside it lie two empty lock files, `.<name>.lock` and `.<name>.users`."""
    version: int
    """PostgreSQL's major version."""
    bin_dir: Path
    """The folder of psql, pgbench, pg_dump and the other programs of this version."""
    log_file: Path
    """The server's log. A start puts one over 10 MB aside as `server.log.1`, in place of the one before."""

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        version: int | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        """Names the server; nothing is written or started yet.

        `version=None` means the data directory's own, and 18 for a new one. `settings` are added to DEFAULT_SETTINGS
        and win over them. They are given to the server when it starts: one that is found running keeps those it has.
        `start_timeout`, in seconds, bounds all that a start waits for: another process's start or stop, initdb, crash
        recovery.
        """
        if sys.platform == "win32":
            raise EmbeddedPostgresError("the embedded PostgreSQL runs on Linux and macOS: use a server of your own")
        self._wheel = wheel_folder()
        self.data_dir = Path(data_dir or default_data_dir(version or DEFAULT_VERSION)).expanduser().resolve()
        with _explained(f"{self.data_dir} can't be used"):
            self.version = version or data_version(self.data_dir) or DEFAULT_VERSION
            check_version(self.data_dir, self.version, self._wheel)
        self.bin_dir = self._wheel / WHEEL_FOLDERS[self.version] / "bin"
        self.log_file = self.data_dir / "server.log"
        fingerprint = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        # Not in tempfile's folder: on macOS that is long, and closed to the user that serves root.
        self._short_dir = Path(f"/tmp/howdah-{fingerprint}")  # noqa: S108 (owner and mode are checked before use)
        self._own_settings = {
            "cluster_name": f"howdah-{fingerprint}",  # in the titles of its processes; orphans are known by it
            "data_directory": str(self.data_dir),
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self.data_dir if _holds_a_socket(self.data_dir) else self._short_dir),
            "unix_socket_permissions": "0700",
        }
        for name in settings or {}:
            if name.lower().replace("-", "_") in self._own_settings:
                raise EmbeddedPostgresError(f"{name} can't be set: the embedded server listens on its own socket only")
        self._settings = {**DEFAULT_SETTINGS, **(settings or {}), **self._own_settings}
        self._start_timeout = start_timeout
        self._mutex = threading.Lock()
        self._lease: int | None = None
        self._socket_dir: Path | None = None
        self._log_start = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Returns once the server accepts connections, be it new, recovered or found running.

        Blocks: a coroutine calls it through `asyncio.to_thread`. An object has one share however often it is started;
        starting it again sees to it that the server still runs.
        """
        deadline = time.monotonic() + self._start_timeout
        with self._mutex, _explained(f"PostgreSQL at {self.data_dir} can't be started"):
            user = server_user()
            prepare_parent(self.data_dir, user)
            check_data_dir(self.data_dir, user)
            programs = programs_for(user, self._wheel, self.bin_dir, deadline)
            with locked(self._beside("lock"), deadline):
                self._take_lease()
                try:
                    self._ensure_running(user, programs, deadline)
                except (EmbeddedPostgresError, OSError):
                    self._drop_lease()  # a slow recovery goes on, and the next start waits for the rest of it
                    raise
                except BaseException:
                    self._leave()
                    raise
        return self

    def stop(self) -> None:
        """Gives up this object's share; the last one out shuts the server down and waits for its end. Idempotent."""
        with self._mutex, _explained(f"PostgreSQL at {self.data_dir} can't be stopped"):
            if self._lease is None:
                return
            try:
                with locked(self._beside("lock"), time.monotonic() + STOP_SECONDS):
                    self._leave()
            finally:
                self._drop_lease()

    def url(self, database: str = "postgres") -> str:
        """The address of a database on the started server, as SQLAlchemy's `create_async_engine` takes it."""
        if self._socket_dir is None:
            raise EmbeddedPostgresError("the server has no address until start()")
        # SQLAlchemy quotes the database as its own parser wants it. The path stays readable, and free of the % that
        # alembic's configparser trips over.
        address = URL.create("postgresql+asyncpg", username="postgres", database=database).render_as_string()
        return f"{address}?host={quote(str(self._socket_dir))}"

    def ensure_database(self, name: str) -> None:
        """Make the database unless it exists; several processes may ask at once."""
        if self._socket_dir is None:
            raise EmbeddedPostgresError("the server has no databases until start()")
        address = ("-h", str(self._socket_dir), "-p", "5432", "-U", "postgres", "-w")

        def run(program: str, *options: str, query: str = "") -> subprocess.CompletedProcess[str]:
            command = [str(self.bin_dir / program), *address, *options]
            return subprocess.run(
                command, input=query, capture_output=True, check=False, text=True, cwd="/", env=ENVIRONMENT
            )

        def exists() -> bool:
            query = "SELECT 1 FROM pg_database WHERE datname = :'name'"
            return run("psql", "-X", "-A", "-t", "-v", f"name={name}", "postgres", query=query).stdout.strip() == "1"

        if not exists():
            made = run("createdb", "--", name)
            if made.returncode != 0 and not exists():
                raise EmbeddedPostgresError(f"the database {name} can't be made: {made.stderr.strip()}")

    @property
    def pid(self) -> int | None:
        """The process id of the server that runs on this data directory, whoever started it."""
        postmaster = self._postmaster()
        return None if postmaster is None else int(postmaster.pid)

    # Shares. Every decision to start or stop is made under the lock, and each user of the server holds the lease
    # shared. The kernel frees both with the process. They lie beside the data directory, which initdb wants empty.

    def _beside(self, kind: str) -> Path:
        return beside(self.data_dir, kind)

    def _take_lease(self) -> None:
        if self._lease is None:
            self._lease = open_lock(self._beside("users"))
            _started.add(self)
            fcntl.flock(self._lease, fcntl.LOCK_SH)  # at once: it is held exclusively only under the lock

    def _leave(self) -> None:
        assert self._lease is not None
        try:
            fcntl.flock(self._lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.info("left PostgreSQL at %s to its other users", self.data_dir)
        else:
            self._shut_down(time.monotonic() + STOP_SECONDS)
        finally:
            self._drop_lease()

    def _drop_lease(self) -> None:
        if self._lease is not None:
            fcntl.flock(self._lease, fcntl.LOCK_UN)
        self._close_lease()

    def _close_lease(self) -> None:
        _started.discard(self)
        lease, self._lease, self._socket_dir = self._lease, None, None
        if lease is not None:
            os.close(lease)

    def _after_fork(self) -> None:
        """In the child, where the lock is still the parent's: the lease is closed and not unlocked."""
        self._close_lease()
        self._mutex = threading.Lock()

    # The server.

    def _ensure_running(self, user: ServerUser, programs: Path, deadline: float) -> None:
        check_data_dir(self.data_dir, user)  # again: under the lock it is final
        check_version(self.data_dir, self.version, self._wheel)
        if data_version(self.data_dir) is None:
            self._end_remains(user, deadline)
            initialise(self.data_dir, self.version, user, programs, deadline)
        postmaster = self._postmaster()
        if postmaster is not None and self._pid_file()[7] == "stopping":
            wait(lambda: not alive(postmaster), deadline)
            postmaster = self._postmaster()
        if postmaster is None:
            postmaster = self._spawn(user, programs, deadline)
        else:
            _logger.info("found PostgreSQL at %s, process %d", self.data_dir, postmaster.pid)
        self._await_ready(postmaster, user, programs, deadline)

    def _spawn(self, user: ServerUser, programs: Path, deadline: float) -> psutil.Process:
        if os.path.lexists(self.data_dir / "postmaster.pid"):
            self._end_remains(user, deadline)
        socket_dir = Path(self._own_settings["unix_socket_directories"])
        if socket_dir == self._short_dir:
            self._prepare_short_dir(user)
        for path in (self.data_dir / "postmaster.pid", socket_dir / _SOCKET, socket_dir / f"{_SOCKET}.lock"):
            path.unlink(missing_ok=True)
        self._log_start = self.log_file.lstat().st_size if self.log_file.exists() else 0
        if self._log_start > _LOG_BYTES:
            self.log_file.replace(self.log_file.with_name("server.log.1"))
            self._log_start = 0
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        shell = ("/bin/sh", "-c", _START_DETACHED, "sh", self.log_file)
        started = user.run(*shell, programs / "postgres", "-D", self.data_dir, *options, deadline=deadline)
        try:
            postmaster = psutil.Process(int(started.stdout))
        except (ValueError, psutil.NoSuchProcess) as error:
            raise self._failure("PostgreSQL didn't start", started.stderr) from error
        _logger.info("started PostgreSQL %d at %s, process %d", self.version, self.data_dir, postmaster.pid)
        return postmaster

    def _await_ready(self, postmaster: psutil.Process, user: ServerUser, programs: Path, deadline: float) -> None:
        def is_ready() -> bool:
            if not alive(postmaster):
                raise self._failure("PostgreSQL ended while it was starting")
            pid, _, _, _, socket_dir, _, _, status = self._pid_file()
            if pid != str(postmaster.pid) or status not in {"ready", "standby"}:
                return False
            # The file isn't proof: after the crash of a backend the server recovers under the status that it had.
            probe = (programs / "pg_isready", "--timeout=1", "-h", socket_dir, "-U", "postgres")
            self._socket_dir = Path(socket_dir)
            return user.run(*probe, deadline=deadline + 2).returncode == 0

        if not wait(is_ready, deadline):
            raise self._failure(
                f"PostgreSQL (process {postmaster.pid}) accepts no connections within {self._start_timeout:g} s; "
                "if it still recovers, start it again to wait longer"
            )

    def _shut_down(self, deadline: float) -> None:
        postmaster = self._postmaster()
        if postmaster is None:
            return
        send(postmaster, signal.SIGINT)  # PostgreSQL's fast shutdown
        if not wait(lambda: not alive(postmaster), deadline):
            raise self._failure(f"PostgreSQL (process {postmaster.pid}) doesn't end within {STOP_SECONDS:g} s")
        with contextlib.suppress(OSError):
            self._short_dir.rmdir()
        _logger.info("stopped PostgreSQL at %s", self.data_dir)

    def _pid_file(self) -> list[str]:
        """The lines of postmaster.pid, empty where they are missing.

        They are: process id, data directory, start time, port, socket folder, TCP address, shared memory, status.
        """
        try:
            text = (self.data_dir / "postmaster.pid").read_text(errors="replace")
        except FileNotFoundError:
            text = ""
        return [line.strip() for line in [*text.split("\n"), *[""] * 8][:8]]

    def _postmaster(self) -> psutil.Process | None:
        """The server that postmaster.pid names, unless it is dead or its number is another program's by now."""
        try:
            process = psutil.Process(int(self._pid_file()[0]))
        except (ValueError, psutil.Error):
            return None
        served = served_directory(command_line(process, self.data_dir.stat().st_uid))
        elsewhere = served is None or (os.path.isabs(served) and Path(served).resolve() != self.data_dir)
        return None if elsewhere else process

    def _end_remains(self, user: ServerUser, deadline: float) -> None:
        """Ends what lives of a server that has no valid postmaster.pid: it was killed, or its files were."""
        title = f"postgres: {self._own_settings['cluster_name']}: "
        remains = []
        for process in processes():
            command = command_line(process, user.uid)
            initialises = any(part.startswith(str(self._beside("initdb-"))) for part in command)
            if initialises or served_directory(command) == str(self.data_dir):
                send(process, signal.SIGQUIT)  # PostgreSQL's immediate shutdown: its files may be gone
                remains.append(process)
            elif " ".join(command).startswith(title):
                remains.append(process)

        def are_gone() -> bool:
            return not any(map(alive, remains))

        # Backends see that their postmaster is gone, but not in the middle of a long computation.
        if not wait(are_gone, min(deadline, time.monotonic() + _ORPHAN_SECONDS)):
            for process in remains:
                send(process, signal.SIGKILL)
        if not wait(are_gone, deadline):
            raise self._failure(f"processes of a killed server don't end: {[process.pid for process in remains]}")

    def _prepare_short_dir(self, user: ServerUser) -> None:
        folder = self._short_dir
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if user.is_stand_in and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            os.chown(folder, user.uid, user.gid)
            found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != user.uid or found.st_mode & 0o077:
            raise EmbeddedPostgresError(
                f"the path {self.data_dir} can't hold a socket, and {folder}, which would, isn't a folder that only "
                f"{user_name(user.uid)} enters: remove that, or name a data directory with a short and plain path"
            )

    def _failure(self, message: str, output: str = "") -> EmbeddedPostgresError:
        try:
            # The folder is another user's when we are root: a link in it isn't followed, a pipe not waited for.
            with open(os.open(self.log_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as log:
                log.seek(max(self._log_start, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
                output += log.read().decode(errors="replace")
        except OSError as error:
            output += str(error)
        return EmbeddedPostgresError(f"{message}. The end of {self.log_file}:\n{output.strip()}")


_started: set[EmbeddedPostgres] = set()


@atexit.register
def _stop_all() -> None:
    for server in list(_started):
        try:
            server.stop()
        except EmbeddedPostgresError:
            _logger.exception("PostgreSQL at %s wasn't stopped at exit", server.data_dir)


def _forget_all() -> None:
    for server in list(_started):
        server._after_fork()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_all)


def _holds_a_socket(folder: Path) -> bool:
    return len(os.fsencode(folder / _SOCKET)) <= _SOCKET_PATH_BYTES and bool(_PLAIN_PATH.fullmatch(str(folder)))


@contextlib.contextmanager
def _explained(problem: str) -> Iterator[None]:
    try:
        yield
    except (OSError, psutil.Error) as error:
        raise EmbeddedPostgresError(f"{problem}: {error}") from error
