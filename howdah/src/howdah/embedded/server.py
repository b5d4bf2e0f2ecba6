"""`EmbeddedPostgres`: a server that several processes share."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
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
    check_data_dir,
    check_version,
    data_version,
    default_data_dir,
    sibling,
)
from howdah.embedded.locks import hold_lock, open_lock, wait_until
from howdah.embedded.postmaster import Postmaster
from howdah.embedded.programs import (
    ENVIRONMENT,
    STOP_SECONDS,
    WHEEL_FOLDERS,
    ServerUser,
    prepare_parent,
    runnable_programs,
    server_user,
    wheel_folder,
)
from howdah.embedded.watching import Outcome, Watch
from howdah.errors import EmbeddedPostgresError

if sys.platform != "win32":
    import fcntl
with contextlib.suppress(ImportError):  # without the extra; wheel_folder() then raises an error that names it
    import psutil

# The longest wait of the watch for the lock. It is short, so that `stop()` can get the lock.
_RESTART_LOCK_SECONDS = 1.0

_logger = logging.getLogger("howdah.embedded")


class EmbeddedPostgres:
    """A PostgreSQL server from a wheel, shared by all processes that use the same data directory.

    The first `start()` starts the server, and the last `stop()` stops it. The calls of all processes and objects are
    counted together. A process that exits without `stop()` is counted as stopped. If a process is killed, the server
    may be left without users. The next `start()` finds and uses it. After `detach()` the server also runs without
    users, until `shut_down()`. A forked child isn't a user until it calls `start()`. The users must see each other's
    processes, so hosts or containers can't share a data directory.

    Only the owner of the data directory and root can enter the directory of the socket. Their processes can connect as
    the superuser `postgres`, without a password. PostgreSQL can't run as root. If this process is root's, the server
    runs as the system user `howdah`, which is created if it doesn't exist.
    """

    data_dir: Path
    """The absolute path, without symbolic links. Two lock files are next to it: `.<name>.lock` and `.<name>.users`."""
    version: int
    """PostgreSQL's major version."""
    bin_dir: Path
    """The directory of psql, pgbench, pg_dump and the other programs of this version."""
    log_file: Path
    """The server's log. `start()` renames a log of more than 10 MB to `server.log.1`, and replaces an older one."""

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        version: int | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
        restart: bool = False,
    ) -> None:
        """Nothing is written or started before `start()`.

        `version=None` means the version of the data directory, and 18 for a new one. `settings` take precedence over
        `DEFAULT_SETTINGS`. They are passed to the server when it starts, so a server that already runs keeps its own.
        `start_timeout` limits the total wait of a start in seconds: for a start or stop by another process, for initdb,
        and for crash recovery.

        With `restart`, a thread of this process starts the server again if it dies while this object uses it: within a
        second, on the same socket, at most five times in a row, and only once if several processes watch the server. A
        server that somebody has shut down (`pg_ctl stop`) isn't started again.
        """
        if sys.platform == "win32":
            raise EmbeddedPostgresError("the embedded PostgreSQL runs on Linux and macOS only: use another server")
        self._wheel = wheel_folder()
        self.data_dir = Path(data_dir or default_data_dir(version or DEFAULT_VERSION)).expanduser().resolve()
        with _raise_as(f"{self.data_dir} can't be used"):
            self.version = version or data_version(self.data_dir) or DEFAULT_VERSION
            check_version(self.data_dir, self.version, self._wheel)
        self.bin_dir = self._wheel / WHEEL_FOLDERS[self.version] / "bin"
        self._postmaster = Postmaster(
            self.data_dir, self.version, wheel=self._wheel, settings=settings or {}, start_timeout=start_timeout
        )
        self.log_file = self._postmaster.log_file
        self._start_timeout = start_timeout
        self._mutex = threading.Lock()
        self._is_restarted = restart
        self._watch: Watch | None = None
        self._lease: int | None = None
        self._socket_dir: Path | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server, or find the running one, and return when it accepts connections.

        It blocks: in a coroutine, call it with `asyncio.to_thread`. An object counts as one user however often it is
        started. A second call restarts a server that has ended.

        A running server whose programs were deleted, for example with a virtual environment, can't load libraries any
        more. It is restarted when its other users have ended their use. If they don't until `start_timeout`, this
        raises `EmbeddedPostgresError`.
        """
        deadline = time.monotonic() + self._start_timeout
        with self._mutex, _raise_as(f"PostgreSQL at {self.data_dir} can't be started"):
            user = server_user()
            prepare_parent(self.data_dir, user)
            check_data_dir(self.data_dir, user)
            programs = runnable_programs(user, self._wheel, self.bin_dir, deadline)
            if not wait_until(lambda: self._join(user, programs, deadline), deadline):
                raise EmbeddedPostgresError(
                    f"the programs of PostgreSQL at {self.data_dir} (process {self.pid}) were deleted, and other "
                    "processes still use it, so it can't be restarted: end them, or use another data directory"
                )
            if self._is_restarted and (self._watch is None or not self._watch.is_alive):
                self._watch = Watch(self.data_dir, is_running=self._is_running, restart=self._restart)
        return self

    def _is_running(self) -> bool:
        try:
            return self.pid is not None
        except OSError:  # the data directory was deleted
            return False

    def _restart(self) -> Outcome:
        """Start the server again, unless it runs, or was shut down. The watch calls this."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(hold_lock(self._sibling("lock"), time.monotonic() + _RESTART_LOCK_SECONDS))
            except EmbeddedPostgresError:
                return "busy"
            if self._lease is None:
                return "busy"  # `stop()` was called
            with _raise_as(f"PostgreSQL at {self.data_dir} can't be started again"):
                user, deadline = server_user(), time.monotonic() + self._start_timeout
                programs = runnable_programs(user, self._wheel, self.bin_dir, deadline)
                return self._postmaster.restart_if_dead(user, programs, deadline)

    def _join(self, user: ServerUser, programs: Path, deadline: float) -> bool:
        """Become a user of the server, which is started unless it runs.

        False if the server has to be restarted and has other users. They need the lock to end their use.
        """
        with hold_lock(self._sibling("lock"), deadline):
            self._take_lease()
            try:
                if self._postmaster.has_lost_programs() and not self._is_only_user():
                    self._drop_lease()
                    return False
                self._socket_dir = self._postmaster.ensure_running(user, programs, deadline)
            except (EmbeddedPostgresError, OSError):
                self._drop_lease()  # a slow recovery continues, and the next start waits for its end
                raise
            except BaseException:
                self._leave()
                raise
        return True

    def stop(self) -> None:
        """End this object's use. If it was the last user, shut the server down and wait until the process has ended.

        A second call does nothing.
        """
        with self._mutex, _raise_as(f"PostgreSQL at {self.data_dir} can't be stopped"):
            if self._lease is None:
                return
            if self._watch is not None:
                self._watch.stop()
            try:
                with hold_lock(self._sibling("lock"), time.monotonic() + STOP_SECONDS):
                    self._leave()
            finally:
                self._drop_lease()

    def detach(self) -> None:
        """End this object's use, but leave the server running until `shut_down()` or a restart of the machine.

        After that the last `stop()` of another user doesn't shut this server down. Raises `EmbeddedPostgresError` if
        the server wasn't started.
        """
        with self._mutex, _raise_as(f"PostgreSQL at {self.data_dir} can't be left running"):
            if self._lease is None:
                raise EmbeddedPostgresError("the server can't be left running before start(): call it first")
            with hold_lock(self._sibling("lock"), time.monotonic() + STOP_SECONDS):
                self._postmaster.mark_detached()
                self._drop_lease()

    def shut_down(self) -> bool:
        """Shut a detached server down. If it has users, the last `stop()` of the users shuts it down instead.

        It also shuts down a server that a killed process has left. Returns True if no server is running afterwards.
        This object must not be started.
        """
        if self.pid is None:
            return True
        with self._mutex, _raise_as(f"PostgreSQL at {self.data_dir} can't be stopped"):
            if self._lease is not None:
                raise EmbeddedPostgresError("this object uses the server: call stop() first")
            with hold_lock(self._sibling("lock"), time.monotonic() + STOP_SECONDS):
                self._postmaster.clear_detached()
                self._take_lease()
                try:
                    return self._leave()
                finally:
                    self._drop_lease()

    def url(self, database: str = "postgres", *, user: str = "postgres") -> str:
        """The URL of a database of the started server, for `Database` and SQLAlchemy's `create_async_engine`.

        `user` is the login. Every role with LOGIN can connect without a password, because only the owner of the data
        directory can reach the socket.
        """
        if self._socket_dir is None:
            raise EmbeddedPostgresError("the server has no URL until start(): call it first")
        # SQLAlchemy quotes the name of the database for its own parser. It would quote the slashes of the path too, and
        # Alembic's configparser rejects a %.
        address = URL.create("postgresql+asyncpg", username=user, database=database).render_as_string()
        return f"{address}?host={quote(str(self._socket_dir))}"

    def ensure_database(self, name: str) -> None:
        """Create the database if it doesn't exist. Several processes may call it at the same time."""
        if self._socket_dir is None:
            raise EmbeddedPostgresError("the server has no databases until start(): call it first")
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
            created = run("createdb", "--", name)
            if created.returncode != 0 and not exists():  # another process may have created it
                raise EmbeddedPostgresError(f"the database {name} can't be created: {created.stderr.strip()}")

    @property
    def pid(self) -> int | None:
        """The process id of the server that runs on this data directory, or None. Any process may have started it."""
        process = self._postmaster.process()
        return None if process is None else int(process.pid)

    # Two file locks count the users. The one called lock is exclusive, and is held during a start or stop. The one
    # called lease is shared, and is held by each user. The kernel releases both if a process ends. The files are next
    # to the data directory, because initdb requires an empty one.

    def _sibling(self, kind: str) -> Path:
        return sibling(self.data_dir, kind)

    def _take_lease(self) -> None:
        if self._lease is None:
            self._lease = open_lock(self._sibling("users"))
            _started.add(self)
            # This doesn't wait: an exclusive lease is only taken by a process that holds the lock.
            fcntl.flock(self._lease, fcntl.LOCK_SH)

    def _is_only_user(self) -> bool:
        """Whether no other object of any process is a user. If there is one, this object may have lost its lease."""
        assert self._lease is not None
        try:
            fcntl.flock(self._lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._lease, fcntl.LOCK_SH)
        return True

    def _leave(self) -> bool:
        """Drop the lease, and shut the server down if it has no other user and isn't detached.

        Returns whether it was shut down.
        """
        assert self._lease is not None
        try:
            fcntl.flock(self._lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.info("PostgreSQL at %s keeps running for its other users", self.data_dir)
            return False
        else:
            if self._postmaster.is_detached():
                _logger.info("PostgreSQL at %s keeps running, because it is detached", self.data_dir)
                return False
            self._postmaster.shut_down(time.monotonic() + STOP_SECONDS)
            return True
        finally:
            self._drop_lease()

    def _drop_lease(self) -> None:
        if self._lease is not None:
            fcntl.flock(self._lease, fcntl.LOCK_UN)
        self._close_lease()

    def _close_lease(self) -> None:
        _started.discard(self)
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        lease, self._lease, self._socket_dir = self._lease, None, None
        if lease is not None:
            os.close(lease)

    def _after_fork(self) -> None:
        """Close the lease in a forked child, but don't unlock it: the parent still holds the same lock."""
        self._close_lease()
        self._mutex = threading.Lock()


# The objects of this process that are users of a server.
_started: set[EmbeddedPostgres] = set()


@atexit.register
def _stop_all() -> None:
    for server in list(_started):
        try:
            server.stop()
        except EmbeddedPostgresError:
            _logger.exception("PostgreSQL at %s couldn't be stopped at exit", server.data_dir)


def _close_all_leases() -> None:
    for server in list(_started):
        server._after_fork()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_all_leases)


@contextlib.contextmanager
def _raise_as(problem: str) -> Iterator[None]:
    """Raise errors of the operating system as `EmbeddedPostgresError`, with the problem before their text."""
    try:
        yield
    except (OSError, psutil.Error) as error:
        raise EmbeddedPostgresError(f"{problem}: {error}") from error
