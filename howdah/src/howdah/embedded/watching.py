"""Restart a server that has died, in a thread of the process that uses it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeAlias

from howdah.errors import EmbeddedPostgresError

Outcome: TypeAlias = Literal["started", "running", "busy", "shut down"]
"""The result of a restart. `running`: another process was faster. `busy`: another process starts or stops it."""

# The wait before a crash is noticed.
_POLL_SECONDS: Final = 0.2
_MAX_RESTARTS: Final = 5
# The pause before the second attempt. Each pause is twice as long as the one before.
_FIRST_PAUSE_SECONDS: Final = 0.5
# A server that has run for this time counts as healthy, and gets all attempts again.
_HEALTHY_SECONDS: Final = 60.0

_logger = logging.getLogger("howdah.embedded")


class Watch:
    """A thread that calls `restart` when `is_running` is false.

    After five attempts it gives up, unless the server has run for a minute in between. It also ends when somebody has
    shut the server down, because that was intended.
    """

    def __init__(self, data_dir: Path, *, is_running: Callable[[], bool], restart: Callable[[], Outcome]) -> None:
        self._data_dir, self._is_running, self._restart = data_dir, is_running, restart
        self._stopping = threading.Event()
        # A daemon: a process that doesn't stop the server explicitly isn't kept alive.
        self._thread = threading.Thread(target=self._run, name="howdah embedded watch", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it still watches."""
        return self._thread.is_alive() and not self._stopping.is_set()

    def stop(self) -> None:
        """Stop watching. A restart that is in progress goes on, under the lock of the data directory."""
        self._stopping.set()

    def _run(self) -> None:
        """The thread: look at the server every 0.2 s, and restart it if it has died."""
        attempts, running_since = 0, time.monotonic()
        while not self._stopping.wait(_POLL_SECONDS):
            if self._is_running():
                if time.monotonic() - running_since > _HEALTHY_SECONDS:
                    attempts = 0
                continue
            if attempts == _MAX_RESTARTS:
                _logger.error("PostgreSQL at %s has died %d times, and isn't started again", self._data_dir, attempts)
                return
            if attempts and self._stopping.wait(_FIRST_PAUSE_SECONDS * 2 ** (attempts - 1)):
                return
            try:
                outcome = self._restart()
            except EmbeddedPostgresError:
                attempts += 1
                _logger.exception("PostgreSQL at %s has died, and attempt %d failed", self._data_dir, attempts)
                continue
            if outcome == "shut down":
                _logger.warning("PostgreSQL at %s was shut down, so it isn't started again", self._data_dir)
                return
            if outcome == "started":
                attempts += 1
                _logger.warning("PostgreSQL at %s had died, and was started again", self._data_dir)
            running_since = time.monotonic()
