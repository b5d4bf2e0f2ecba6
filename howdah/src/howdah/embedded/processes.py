"""Running processes, and which of them are PostgreSQL servers."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

with contextlib.suppress(ImportError):  # without the extra; programs.wheel_folder() then raises an error that names it
    import psutil

from howdah.embedded.settings import cluster_name


def running_data_dirs() -> list[Path]:
    """The data directories of the embedded servers that run now. Without root's rights: only those of this user."""
    found = set()
    for process in running_processes():
        with contextlib.suppress(psutil.Error):
            uid = process.uids().effective
            command = command_line(process, uid) if os.geteuid() in {0, uid} else []
            folder = served_directory(command)
            if folder and f"cluster_name={cluster_name(Path(folder))}" in command:
                found.add(Path(folder))
    return sorted(found)


def running_processes() -> Iterator[psutil.Process]:
    for pid in psutil.pids():  # process_iter() may return an earlier process with the same id
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def send_signal(process: psutil.Process, signal_number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal_number)


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process, uid: int) -> list[str]:
    """The arguments of the process, or its title. Empty if it has ended or belongs to another user."""
    try:
        return list(process.cmdline()) if is_alive(process) and process.uids().effective == uid else []
    except psutil.Error:
        return []


def served_directory(command: list[str]) -> str | None:
    """The data directory in the arguments of a postmaster, or "" if it isn't there. None for another program."""
    if not command or Path(command[0]).name not in {"postgres", "postmaster"} or command[0].startswith("postgres: "):
        return None
    return command[command.index("-D") + 1] if "-D" in command[:-1] else ""
