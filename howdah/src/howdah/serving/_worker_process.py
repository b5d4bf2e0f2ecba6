"""A worker process, as its parent sees it."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from howdah.serving._messages import MessageKind, encode_message, read_messages
from howdah.serving._metrics import Metrics, decode_metrics
from howdah.serving._worker import CLOSED, HEARTBEAT, STACK_SIGNAL, STOP_SIGNALS, StopOrder, WorkerSetup, run_worker
from howdah.serving.limits import ServerLimits

# The time between two checks of a heartbeat counts up to this limit. Otherwise, after the parent and its workers were
# suspended, all workers would seem to hang.
_MAX_STEP_SECONDS: Final = 1.0
# A worker whose event loop is blocked for this long gets a new connection only if no other worker takes it.
_STALLED_SECONDS: Final = 1.0
# The time limit for reading the last messages of a worker that has ended.
_LAST_MESSAGES_SECONDS: Final = 1.0
# The time limit of `join` for a process that has ended, or was killed.
_JOIN_SECONDS: Final = 5.0

_log: Final = logging.getLogger("howdah.serving")
_context: Final = multiprocessing.get_context("spawn")


class WorkerProcess:
    """Starts a worker, passes connections to it, and watches it."""

    def __init__(
        self,
        number: int,
        *,
        create_app: Callable[[], Any],
        limits: ServerLimits,
        stop_timeout: float,
        collect: Callable[[WorkerProcess, int], object],
    ) -> None:
        """Start the process. `collect` is called when it asks for the metrics of all workers. Raises `OSError`."""
        self.number = number
        self.started_at = time.monotonic()
        self.is_ready = False
        self.stops_at: float | None = None
        """The time at which it is killed, or None until it is told to stop. When it stops, it isn't replaced."""
        self.has_shown_stacks = False
        self.metrics: bytes | None = None
        """Its last metrics."""
        self._asked_number = 0  # of the last `SEND_METRICS`
        self._answer: asyncio.Future[bool] | None = None
        self._shared = _context.RawArray("d", 2)
        self._is_broken = False
        self._passed = 0
        self._last_heartbeat = 0.0
        self._checked_at = self.started_at
        self._blocked_seconds = 0.0
        self._ended_at: float | None = None
        self._control: asyncio.StreamWriter | None = None
        self._unsent: list[bytes] = []  # until the control socket has its stream
        control, its_control = socket.socketpair()
        self._connections, its_connections = socket.socketpair()
        self._connections.setblocking(False)
        with its_control, its_connections:
            setup = WorkerSetup(
                number=number,
                create_app=create_app,
                limits=limits,
                stop_timeout=stop_timeout,
                control=its_control,
                connections=its_connections,
                shared=self._shared,
            )
            self._process = _context.Process(target=run_worker, args=(setup,), name=f"worker-{number}")
            try:
                _start(self._process)
            except BaseException:
                control.close()
                self._connections.close()
                raise
        self._reading = asyncio.get_running_loop().create_task(self._read(control, collect))

    async def _read(self, control: socket.socket, collect: Callable[[WorkerProcess, int], object]) -> None:
        """Handle its messages until it has ended."""
        reader, self._control = await asyncio.open_connection(sock=control)
        self._control.writelines(self._unsent)
        async for kind, number, payload in read_messages(reader):
            match kind:
                case MessageKind.READY:
                    self.is_ready = True
                    self._last_heartbeat, self._checked_at, self._blocked_seconds = 0.0, time.monotonic(), 0.0
                    _log.info("%s serves connections", self)
                case MessageKind.METRICS:
                    self.metrics = payload
                    self._end_wait_for_metrics(number, is_current=True)
                case MessageKind.NO_METRICS:
                    self._end_wait_for_metrics(number, is_current=False)
                case MessageKind.COLLECT:
                    collect(self, number)
                case _:
                    _log.error("unexpected message of %s: %s", self, kind.name)

    def __str__(self) -> str:
        return f"worker {self.number} (process {self._process.pid})"

    # Connections

    @property
    def is_open(self) -> bool:
        """Whether it takes connections."""
        return self.is_ready and self.stops_at is None and not self._is_broken

    @property
    def load(self) -> tuple[bool, int]:
        """The order in which workers get connections: one whose event loop is blocked comes last."""
        return self._blocked_seconds > _STALLED_SECONDS, self._passed - int(self._shared[CLOSED])

    def pass_connection(self, accepted: socket.socket) -> bool:
        """Pass the connection to the worker. Returns false if it takes none at the moment, or has ended."""
        try:
            socket.send_fds(self._connections, [b"\0"], [accepted.fileno()])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            # The worker has ended (`ConnectionError`), or too many connections are on their way to it (ETOOMANYREFS,
            # ENOBUFS).
            self._is_broken = isinstance(error, ConnectionError)
            return False
        self._passed += 1
        return True

    # Life

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None until the process has ended and its last messages were read; -9 after SIGKILL."""
        code: int | None = self._process.exitcode
        if code is None:
            return None
        now = time.monotonic()
        self._ended_at = self._ended_at or now
        is_read = self._reading.done() or now - self._ended_at > _LAST_MESSAGES_SECONDS
        return code if is_read else None

    def seconds_without_heartbeat(self) -> float:
        """For how long its event loop has been blocked."""
        now, heartbeat = time.monotonic(), self._shared[HEARTBEAT]
        if heartbeat != self._last_heartbeat:
            self._blocked_seconds = 0.0
        else:
            self._blocked_seconds += min(now - self._checked_at, _MAX_STEP_SECONDS)
        self._last_heartbeat, self._checked_at = heartbeat, now
        return self._blocked_seconds

    def drain(self) -> None:
        """Let its `/readyz` fail, and let it close each connection after the next response."""
        self._send(encode_message(MessageKind.DRAIN))

    def stop(self, order: StopOrder, *, stops_at: float) -> None:
        """Pass no more connections, and let it finish its requests."""
        self.stops_at = stops_at
        self._send(encode_message(MessageKind.STOP, payload=order.encode()))
        self._connections.close()  # after the last connection, the worker reads the end of the stream

    def force(self) -> None:
        """Let it cancel its requests."""
        self._send(encode_message(MessageKind.FORCE))

    def ask_for_metrics(self) -> asyncio.Future[bool]:
        """Ask for its current metrics. The future has the result True as soon as `metrics` has them.

        The result is False if the worker can't read them. `close` sets it to True, because no answer comes any more.
        """
        self._asked_number += 1
        self._answer = asyncio.get_running_loop().create_future()
        self._send(encode_message(MessageKind.SEND_METRICS, self._asked_number))
        return self._answer

    def _end_wait_for_metrics(self, number: int, *, is_current: bool) -> None:
        if number == self._asked_number and self._answer is not None and not self._answer.done():
            self._answer.set_result(is_current)

    def answer(self, number: int, parts: list[bytes]) -> None:
        """Answer its `COLLECT`."""
        self._send(encode_message(MessageKind.SUMS, number, b"[" + b",".join(parts) + b"]"))

    def show_stacks(self) -> None:
        """Let it write the stacks of its threads to standard error, which works even if it hangs."""
        self.has_shown_stacks = True
        pid = self._process.pid
        if pid is not None and self._process.exitcode is None:
            os.kill(pid, STACK_SIGNAL)

    def kill(self) -> None:
        self._process.kill()

    def read_last_metrics(self) -> Metrics:
        return [] if self.metrics is None else decode_metrics(self.metrics)

    def close(self) -> None:
        """Wait for the end of the process, and release what it used here."""
        self._process.join(_JOIN_SECONDS)
        self._connections.close()
        self._reading.cancel()
        self._end_wait_for_metrics(self._asked_number, is_current=True)
        if self._control is not None:
            self._control.close()

    def _send(self, data: bytes) -> None:
        if self._control is None:
            self._unsent.append(data)
        elif not self._control.is_closing():
            self._control.write(data)


def _start(process: Any) -> None:
    """Start the process with blocked signals, until `run_worker` handles them. Ctrl+C is sent to it, too."""
    multiprocessing.resource_tracker.ensure_running()  # first, because it unblocks these signals
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
