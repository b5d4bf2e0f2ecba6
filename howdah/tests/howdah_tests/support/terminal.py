"""A terminal in an empty home directory, for tests that do what a reader of the documentation does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Final

import psutil

from howdah_tests.support.embedded_servers import open_folder

PROJECT: Final = Path(__file__).parents[4]
_END: Final = "the command has ended:"
_SERVER_SECONDS: Final = 60.0
# Variables of `uv run` and of CI. With them uv would install into the environment that runs the tests.
_OTHER_PROJECT: Final = ("UV_PYTHON", "UV_PROJECT", "UV_SYSTEM", "UV_NO_", "UV_FROZEN", "UV_LOCKED", "CONDA_")


def find_uv() -> Path:
    """The path of uv. It runs `make test`, which sets the variable `UV`."""
    for candidate in (os.environ.get("UV"), "uv", PROJECT / ".uv/bin/uv"):
        found = shutil.which(candidate) if candidate else None
        if found is not None:
            return Path(found).absolute()
    raise AssertionError("these tests need uv: install it, or run make test")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class Terminal:
    """A shell in the home directory of a new user, who has cloned this repository into `howdah`.

    Uvicorn listens on `port`, and the embedded server for development has its data in `data_dir`.
    """

    def __init__(self, home: Path, data_dir: Path) -> None:
        self.home = home
        self.data_dir = data_dir
        self.port = free_port()
        self._server: int | None = None
        user_home = Path.home()
        dropped = ("VIRTUAL_ENV", "PYTHON", "HOWDAH_", "PYTEST_", "COVERAGE_", "MAKE", "MFLAGS", *_OTHER_PROJECT)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        environment |= {
            # the packages that were downloaded for other projects, and where the index is
            "UV_CACHE_DIR": subprocess.check_output([find_uv(), "cache", "dir"], text=True).strip(),
            "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME") or str(user_home / ".config"),
            # the server of all tests
            "XDG_DATA_HOME": os.environ.get("XDG_DATA_HOME") or str(user_home / ".local/share"),
            "HOME": str(home),
            "HOWDAH_DATA_DIR": str(self.data_dir),
            "UVICORN_PORT": str(self.port),
            "PORT": str(self.port),
            "PATH": os.pathsep.join([f"{sys.base_prefix}/bin", str(find_uv().parent), *_path_of_the_user()]),
        }
        (home / "howdah").symlink_to(PROJECT)
        self._shell = subprocess.Popen(
            ["/usr/bin/env", "bash", "--noprofile", "--norc"],
            cwd=home,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    def run(self, command: str, *, timeout: float = 100.0) -> str:
        """Run a command, and return what it prints. Fail if it fails."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{{ {command}\n}} </dev/null; printf '\\n{_END} %s\\n' $?\n")
        self._shell.stdin.flush()
        limit = Timer(timeout, self._kill)
        limit.start()
        lines: list[str] = []
        end = "the shell was killed: the command took too long"
        for line in self._shell.stdout:
            if line.startswith(_END):
                end = line
                break
            lines.append(line)
        limit.cancel()
        output = "".join(lines).rstrip("\n")
        assert end == f"{_END} 0\n", f"$ {command}\n{output}\n{end}"
        return output

    def serve(self, command: str) -> None:
        """Run a command that serves on `port`, as in another terminal, and wait until it listens."""
        # with job control the command has its own process group, as in a terminal
        started = self.run(f"set -m; {{ {command}\n}} >{self.home}/server.log 2>&1 & set +m; echo $!")
        self._server = int(started)
        deadline = time.monotonic() + _SERVER_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                file = self.home / "server.log"  # the shell may not have created it yet
                log = file.read_text() if file.exists() else ""
                assert psutil.pid_exists(self._server), f"$ {command}\n{log}"
                assert time.monotonic() < deadline, f"$ {command}\n{log}"
                time.sleep(0.05)
            else:
                return

    def interrupt(self) -> None:
        """Press Ctrl-C in the terminal of the server, and wait until it has ended."""
        assert self._server is not None
        os.killpg(self._server, signal.SIGINT)
        self.run(f"wait {self._server} || true")
        self._server = None

    def close(self) -> None:
        """End the shell and what it has started, except servers of PostgreSQL."""
        self._kill()
        self._shell.communicate()

    def _kill(self) -> None:
        for group in (self._server, self._shell.pid):
            if group is not None:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)


def _path_of_the_user() -> list[str]:
    """The directories of programs, without the environment that runs the tests."""
    return [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != f"{sys.prefix}/bin"]


@contextmanager
def open_terminal() -> Iterator[Terminal]:
    """A terminal in a new home directory. Its processes and files are removed at the end."""
    # The home is on the disk like uv's cache, because uv can't link packages to another file system.
    with open_folder(on_disk=True) as home, open_folder() as data_parent:
        terminal = Terminal(home, data_parent / "data")
        try:
            yield terminal
        finally:
            terminal.close()
