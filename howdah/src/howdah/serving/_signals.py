"""The signals that stop a server, and the time limit of the stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from howdah._log_writer import flush_lines

# Two signals within this time count as one: a terminal and a process such as `uv run` may both send it.
_SAME_SIGNAL_SECONDS: Final = 0.5
_LOGGING_SECONDS: Final = 0.5

_log: Final = logging.getLogger("howdah.serving")


class StopSignals:
    """Handles SIGTERM and SIGINT: the first one requests a stop, the second one forces it, a third ends the process.

    `timeout` seconds after the first one the process ends, even if its main thread is blocked.
    """

    def __init__(self, *, timeout: float, end: Callable[[], object] = lambda: None) -> None:
        """`end` is called before the process is ended by a third signal or by the time limit."""
        self._timeout = timeout
        self._end = end
        self._last_at = 0.0
        self.requested_at: float | None = None
        """The time of the first signal, on the clock `time.monotonic`."""
        self.is_interactive = False
        """Whether the first signal was SIGINT. Then the stop has no pause."""
        self.is_forced = False

    def handle(self, number: int, _frame: FrameType | None = None) -> None:
        """The signal handler. It notes the signal, and the main loop of the server does the rest."""
        now = time.monotonic()
        is_repeated = now - self._last_at < _SAME_SIGNAL_SECONDS
        self._last_at = now
        if self.requested_at is None:
            self.is_interactive = number == signal.SIGINT
            self.requested_at = now
            arguments = (now + self._timeout, self._timeout, self._end)
            threading.Thread(target=end_process, args=arguments, daemon=True).start()
        elif is_repeated:
            return
        elif self.is_forced:
            self._end()
            os._exit(1)
        else:
            self.is_forced = True


def end_process(ends_at: float, seconds: float, end: Callable[[], object] = lambda: None) -> None:
    """Wait until this time, and end the process with the exit code 1. It runs in a daemon thread.

    `seconds` is the time limit of the stop, for the log. `end` is called before the process ends.
    """
    # The log may be blocked, for example by a pipe that nobody reads.
    logging_seconds = min(_LOGGING_SECONDS, 0.1 * seconds)
    time.sleep(max(0.0, ends_at - logging_seconds - time.monotonic()))
    message = "the process did not stop within %g s: it ends now, without closing its connections"

    def report() -> None:
        _log.critical(message, seconds)
        flush_lines(logging_seconds)

    logging_thread = threading.Thread(target=report, daemon=True)
    logging_thread.start()
    logging_thread.join(logging_seconds)
    end()
    os._exit(1)
