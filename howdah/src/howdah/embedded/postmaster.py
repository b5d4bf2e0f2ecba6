"""The server process: how it is started, found, awaited and shut down."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from howdah.embedded.data_directory import check_data_dir, check_version, data_version, initialise, sibling
from howdah.embedded.locks import wait_until
from howdah.embedded.processes import command_line, is_alive, running_processes, send_signal, served_directory
from howdah.embedded.programs import STOP_SECONDS, ServerUser, user_name
from howdah.embedded.settings import SOCKET, cluster_name, server_settings, short_dir, socket_dir
from howdah.errors import EmbeddedPostgresError

with contextlib.suppress(ImportError):  # without the extra; wheel_folder() then raises an error that names it
    import psutil

# If the log is larger than this, a start renames it to server.log.1 and begins a new one.
_LOG_BYTES: Final = 10_000_000
# The length of the log's end that an error shows.
_LOG_TAIL_BYTES: Final = 3_000
# Orphaned backends get this much time to exit before they are killed.
_ORPHAN_SECONDS: Final = 5.0
# In the output of pg_controldata.
_SHUT_DOWN: Final = re.compile(r"^Database cluster state: +shut down$", re.MULTILINE)
# The server becomes a child of init. As a child of this process it would become a zombie if another process stops it.
_START_DETACHED: Final = 'log=$1; shift; "$@" >>"$log" 2>&1 & echo $!'

_logger = logging.getLogger("howdah.embedded")


class Postmaster:
    """The server process of one data directory.

    All methods but `process` must be called while the lock of the data directory is held.
    """

    def __init__(
        self, data_dir: Path, version: int, *, wheel: Path, settings: Mapping[str, str], start_timeout: float
    ) -> None:
        self.data_dir, self.version, self._wheel = data_dir, version, wheel
        self.log_file = data_dir / "server.log"
        self._settings = server_settings(data_dir, settings)
        self._short_dir = short_dir(data_dir)
        self._start_timeout = start_timeout
        self._log_start = 0
        self._detached_file = data_dir / "howdah.detached"

    def ensure_running(self, user: ServerUser, programs: Path, deadline: float) -> Path:
        """Start the server unless it runs. Return the directory of its socket when it accepts connections."""
        check_data_dir(self.data_dir, user)  # again, because now the lock is held
        check_version(self.data_dir, self.version, self._wheel)
        if data_version(self.data_dir) is None:
            self._end_orphans(user, deadline)
            initialise(self.data_dir, self.version, user, programs, deadline)
        postmaster = self.process()
        if postmaster is not None and self._pid_file()[7] == "stopping":
            wait_until(lambda: not is_alive(postmaster), deadline)
            postmaster = self.process()
        must_detach = False
        if self.has_lost_programs():
            must_detach = self.is_detached()
            _logger.warning("PostgreSQL at %s is restarted, because its programs were deleted", self.data_dir)
            self.shut_down(deadline)
            postmaster = None
        if postmaster is None:
            postmaster = self._spawn(user, programs, deadline)
        else:
            _logger.info("found PostgreSQL at %s, process %d", self.data_dir, postmaster.pid)
        sockets = self._await_ready(postmaster, user, programs, deadline)
        if must_detach:
            self.mark_detached()
        return sockets

    def restart_if_dead(
        self, user: ServerUser, programs: Path, deadline: float
    ) -> Literal["started", "running", "shut down"]:
        """Start a server that has died, without waiting until it accepts connections.

        A server that was shut down isn't started. It has left no postmaster.pid, and the state "shut down" in its
        control file.
        """
        check_data_dir(self.data_dir, user)
        check_version(self.data_dir, self.version, self._wheel)
        if self.process() is not None:
            return "running"
        if data_version(self.data_dir) is None:
            raise EmbeddedPostgresError(f"{self.data_dir} was deleted")
        if not os.path.lexists(self.data_dir / "postmaster.pid"):
            control = user.run(programs / "pg_controldata", "-D", self.data_dir, deadline=deadline)
            if _SHUT_DOWN.search(control.stdout):
                return "shut down"
        pid, _, start_time, *_ = self._pid_file()
        must_detach = self._read_detached() == f"{pid} {start_time}"
        self._spawn(user, programs, deadline)
        if must_detach:
            wait_until(lambda: self._identity() != "", deadline)
            self.mark_detached()
        return "started"

    def has_lost_programs(self) -> bool:
        """Whether the running server's programs were deleted, for example with the virtual environment of another user.

        Such a server still answers, but it can't load libraries any more: "could not access file plpgsql".
        """
        process = self.process()
        command = [] if process is None else command_line(process, self.data_dir.stat().st_uid)
        return bool(command) and os.path.isabs(command[0]) and not os.path.exists(command[0])

    def shut_down(self, deadline: float) -> None:
        """Shut the server down, and wait until its process has ended."""
        postmaster = self.process()
        if postmaster is None:
            return
        send_signal(postmaster, signal.SIGINT)  # PostgreSQL's fast shutdown
        if not wait_until(lambda: not is_alive(postmaster), deadline):
            raise self._failure(f"PostgreSQL (process {postmaster.pid}) hasn't ended after {STOP_SECONDS:g} s")
        with contextlib.suppress(OSError):
            self._short_dir.rmdir()
        _logger.info("stopped PostgreSQL at %s", self.data_dir)

    # The file names one process, so that a server which is started after a crash or a reboot isn't detached.

    def mark_detached(self) -> None:
        """Let the running server run without users."""
        self._detached_file.unlink(missing_ok=True)  # never follow a link: the directory may belong to another user
        with open(os.open(self._detached_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self._identity())

    def clear_detached(self) -> None:
        self._detached_file.unlink(missing_ok=True)

    def is_detached(self) -> bool:
        """Whether the running server was detached."""
        return self._read_detached() == self._identity() != ""

    def _read_detached(self) -> str | None:
        """The identity of the server that was detached last. A damaged file counts as absent."""
        try:
            with open(os.open(self._detached_file, os.O_RDONLY | os.O_NOFOLLOW), errors="replace") as file:
                return file.read(100)
        except OSError:
            return None

    def _identity(self) -> str:
        """The running server's process id and start time, because process ids are used again."""
        pid, _, start_time, *_ = self._pid_file()
        return "" if self.process() is None else f"{pid} {start_time}"

    def process(self) -> psutil.Process | None:
        """The process that postmaster.pid names, if it is a server of this data directory."""
        try:
            process = psutil.Process(int(self._pid_file()[0]))
        except (ValueError, psutil.Error):
            return None
        served = served_directory(command_line(process, self.data_dir.stat().st_uid))
        is_other = served is None or (os.path.isabs(served) and Path(served).resolve() != self.data_dir)
        return None if is_other else process

    def _spawn(self, user: ServerUser, programs: Path, deadline: float) -> psutil.Process:
        """Start the server process, after removing what a killed server has left."""
        if os.path.lexists(self.data_dir / "postmaster.pid"):
            self._end_orphans(user, deadline)
        sockets = socket_dir(self.data_dir)
        if sockets == self._short_dir:
            self._prepare_short_dir(user)
        for path in (self.data_dir / "postmaster.pid", sockets / SOCKET, sockets / f"{SOCKET}.lock"):
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

    def _await_ready(self, postmaster: psutil.Process, user: ServerUser, programs: Path, deadline: float) -> Path:
        """Wait until the server accepts connections, and return the directory of its socket."""

        def is_ready() -> bool:
            if not is_alive(postmaster):
                raise self._failure("PostgreSQL exited while it was starting")
            pid, _, _, _, found_dir, _, _, status = self._pid_file()
            if pid != str(postmaster.pid) or status not in {"ready", "standby"}:
                return False
            # The status in the file isn't enough: it doesn't change during the recovery after the crash of a backend.
            probe = (programs / "pg_isready", "--timeout=1", "-h", found_dir, "-U", "postgres")
            return user.run(*probe, deadline=deadline + 2).returncode == 0

        if not wait_until(is_ready, deadline):
            raise self._failure(
                f"PostgreSQL (process {postmaster.pid}) accepts no connections within {self._start_timeout:g} s; "
                "if it is still in recovery, call start() again, or raise start_timeout"
            )
        return Path(self._pid_file()[4])

    def _pid_file(self) -> list[str]:
        """The eight lines of postmaster.pid. A missing line is empty.

        They are: process id, data directory, start time, port, socket directory, TCP address, shared memory, status.
        """
        try:
            text = (self.data_dir / "postmaster.pid").read_text(errors="replace")
        except FileNotFoundError:
            text = ""
        return [line.strip() for line in [*text.split("\n"), *[""] * 8][:8]]

    def _end_orphans(self, user: ServerUser, deadline: float) -> None:
        """End the processes of a server that was killed or whose files were deleted. No postmaster.pid names them."""
        title = f"postgres: {cluster_name(self.data_dir)}: "
        orphans = []
        for process in running_processes():
            command = command_line(process, user.uid)
            is_initdb = any(part.startswith(str(sibling(self.data_dir, "initdb-"))) for part in command)
            if is_initdb or served_directory(command) == str(self.data_dir):
                send_signal(process, signal.SIGQUIT)  # PostgreSQL's immediate shutdown: its files may be gone
                orphans.append(process)
            elif " ".join(command).startswith(title):
                orphans.append(process)

        def are_gone() -> bool:
            return not any(map(is_alive, orphans))

        # Backends exit when their postmaster is gone, but not during a long computation.
        if not wait_until(are_gone, min(deadline, time.monotonic() + _ORPHAN_SECONDS)):
            for process in orphans:
                send_signal(process, signal.SIGKILL)
        if not wait_until(are_gone, deadline):
            raise self._failure(f"these processes of a killed server don't end: {[process.pid for process in orphans]}")

    def _prepare_short_dir(self, user: ServerUser) -> None:
        """Create the directory of the socket in /tmp, where other users may have created one of the same name."""
        folder = self._short_dir
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if user.is_other_user and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            os.chown(folder, user.uid, user.gid)
            found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != user.uid or found.st_mode & 0o077:
            raise EmbeddedPostgresError(
                f"the path {self.data_dir} can't hold a socket. {folder} is used instead, but isn't a directory that "
                f"only {user_name(user.uid)} can enter: remove it, or use a data directory with a short and plain path"
            )

    def _failure(self, message: str, output: str = "") -> EmbeddedPostgresError:
        """An error with the message, and with the end of the server's log."""
        try:
            # If this process is root's, the directory belongs to another user, who may have put a link or a pipe there.
            with open(os.open(self.log_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as log:
                log.seek(max(self._log_start, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
                output += log.read().decode(errors="replace")
        except OSError as error:
            output += str(error)
        return EmbeddedPostgresError(f"{message}. The end of {self.log_file}:\n{output.strip()}")
