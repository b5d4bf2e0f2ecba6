"""What runs, and whether it is a PostgreSQL server."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

with contextlib.suppress(ImportError):  # of the extra; programs.wheel_folder() says so when it is missing
    import psutil


def processes() -> Iterator[psutil.Process]:
    for pid in psutil.pids():  # psutil's own iterator may name an earlier process of the same number
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def send(process: psutil.Process, signal_number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal_number)


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process, uid: int) -> list[str]:
    """What the process was called with, or its title; empty when it is dead or another user's."""
    try:
        return list(process.cmdline()) if alive(process) and process.uids().effective == uid else []
    except psutil.Error:
        return []


def served_directory(command: list[str]) -> str | None:
    """The data directory that a postmaster was called with, "" if it was left to find it; None for other programs."""
    if not command or Path(command[0]).name not in {"postgres", "postmaster"} or command[0].startswith("postgres: "):
        return None
    return command[command.index("-D") + 1] if "-D" in command[:-1] else ""
