"""Embedded servers in temporary folders, and other processes that use them.

The folders are not in pytest's tmp_path: if root runs the tests, the server's user can't enter that folder. They are in
memory if possible, because a new server has a thousand files: see `find_memory_folder`.
"""

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import unquote

import psutil

from howdah.embedded import EmbeddedPostgres
from howdah.testing._shared_server import find_memory_folder

TIMEOUT_SECONDS = 30.0
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["howdah.embedded", "pytest"])


@contextlib.contextmanager
def open_folder(*, on_disk: bool = False) -> Iterator[Path]:
    """A new folder. At the end, the servers in it are killed and its files are deleted."""
    memory = None if on_disk else find_memory_folder()
    if memory is not None and os.statvfs(memory).f_flag & os.ST_NOEXEC:
        memory = None  # some tests run programs in the folder
    folder = Path(tempfile.mkdtemp(prefix="howdah-test-", dir=memory or "/tmp"))  # noqa: S108
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() == "postgres" and any(str(folder) in part for part in process.cmdline()):
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def socket_dir_of(server: EmbeddedPostgres) -> Path:
    return Path(unquote(server.url().partition("?host=")[2]))


def query(server: EmbeddedPostgres, sql: str) -> str:
    options = ["-U", "postgres", "-XAt", "-v", "ON_ERROR_STOP=1", "-c", sql]
    command = [str(server.bin_dir / "psql"), "-h", str(socket_dir_of(server)), *options]
    return subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, timeout=TIMEOUT_SECONDS
    ).stdout.strip()


def is_dead(pid: object) -> bool:
    assert isinstance(pid, int)
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class OtherProcess:
    """Another process, in its own session. Its script can use `EmbeddedPostgres`, `data_dir` and `pipe`.

    It is forked from a server process that has already done the imports, so atexit handlers don't run.
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
    # A test run that a shell has started in the background ignores SIGINT, and so do its processes.
    PREFACE = """
import os, signal, sys
from howdah.embedded import EmbeddedPostgres, EmbeddedPostgresError
signal.signal(signal.SIGINT, signal.default_int_handler)
os.setsid()
"""

    def __init__(self, data_dir: Path, script: str = START) -> None:
        self._pipe, theirs = FORKSERVER.Pipe()
        names = {"data_dir": str(data_dir), "pipe": theirs}
        self.process = FORKSERVER.Process(target=exec, args=(self.PREFACE + script, names))
        self.process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.close()
        self._pipe.close()

    def receive(self) -> object:
        assert self._pipe.poll(TIMEOUT_SECONDS), "the process sent nothing"
        return self._pipe.recv()

    def finish(self) -> None:
        self._pipe.send("finish")
        self.process.join(TIMEOUT_SECONDS)
        assert self.process.exitcode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.join(TIMEOUT_SECONDS)
