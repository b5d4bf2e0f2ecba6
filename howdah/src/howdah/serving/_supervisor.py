"""The parent of the worker processes: it accepts connections, replaces workers, and stops all of them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from uvicorn.config import STARTUP_FAILURE

from howdah.serving._accepting import Acceptor
from howdah.serving._group_metrics import GroupMetrics
from howdah.serving._listening import reject_new_connections
from howdah.serving._server import HANDSHAKE_SECONDS
from howdah.serving._signals import StopSignals
from howdah.serving._worker import StopOrder
from howdah.serving._worker_process import WorkerProcess
from howdah.serving.limits import ServerLimits

_TICK_SECONDS: Final = 0.1
_BACKLOG: Final = 2048  # as uvicorn
# The time limit for the start of a worker, until it serves connections.
_START_SECONDS: Final = 120.0
# If a worker has run for this long, its end doesn't count as a failure of its start.
_STABLE_SECONDS: Final = 60.0
_MAX_PAUSE_SECONDS: Final = 30.0
_MAX_PAUSE_EXPONENT: Final = 5  # 2 ** 5 is more than the longest pause
# The time limit for passing the last connections when the service stops, if the workers take none at the moment.
_LAST_CONNECTIONS_SECONDS: Final = 1.0
# The time between the signal that shows the stacks of a worker and the one that ends it.
_STACKS_SECONDS: Final = 0.5

_log: Final = logging.getLogger("howdah.serving")


class Supervisor:
    """Runs worker processes, and passes each new connection to the worker with the fewest.

    - A worker that ends is replaced at once. If its successors end within a minute, too, the next ones start after 1,
      2, 4 … 30 s.
    - A worker whose event loop is blocked for `hang_timeout` seconds is killed.
    - SIGHUP replaces the workers one by one. Each old one stops when its successor serves connections.
    - SIGTERM and SIGINT stop all of them, as `DrainingServer` stops.
    """

    def __init__(
        self,
        create_app: Callable[[], Any],
        *,
        workers: int,
        sockets: Sequence[socket.socket],
        limits: ServerLimits,
        pause: float,
        timeout: float,
        hang_timeout: float,
    ) -> None:
        self._create_app = create_app
        self._count = workers
        self._sockets = sockets
        self._limits = limits
        self._pause = pause
        self._timeout = timeout
        self._hang_timeout = hang_timeout
        # The workers have less time than this process, so that it can report and kill those that don't stop in time.
        # `StopSignals` ends this process up to 0.5 s, or 10 %, before the timeout.
        self._margin = min(1.0, 0.2 * timeout)
        self._signals = StopSignals(timeout=timeout, end=self._kill_all)
        self._is_reload_requested = False
        self._has_terminal = _has_terminal()
        self._ignores_hangups = False
        self._workers: list[WorkerProcess] = []
        self._last_number = 0
        self._acceptor: Acceptor | None = None
        self._undelivered: deque[socket.socket] = deque()
        self._failures = 0  # workers in a row that ended soon after their start
        self._next_start = 0.0
        self._reload: asyncio.Task[None] | None = None
        self._metrics = GroupMetrics(self._list_running)
        self.exit_code = 0

    def run(self) -> None:
        """Serve until a signal. Then `exit_code` is 1 if a worker had to be killed."""
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._signals.handle)  # it stays, so that a signal doesn't interrupt the caller
        self._ignores_hangups = signal.signal(signal.SIGHUP, self._handle_hangup) is signal.SIG_IGN
        asyncio.run(self._run())

    def _handle_hangup(self, *_: object) -> None:
        """Reload, or stop if the signal says that the terminal of this process was closed."""
        if self._has_terminal and not self._ignores_hangups and not _has_terminal():
            self._signals.handle(signal.SIGTERM)
        else:
            self._is_reload_requested = True

    async def _run(self) -> None:
        try:
            await self._start_all()
            if not self._is_stopping:
                self._listen()
            while not self._is_stopping:
                await self._tick()
            await self._stop_all()
        finally:
            self._kill_all()
            for worker in self._workers:
                worker.close()
            for accepted in self._undelivered:
                accepted.close()

    @property
    def _is_stopping(self) -> bool:
        return self._signals.requested_at is not None

    def _list_running(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers if worker.is_ready]

    # Start

    async def _start_all(self) -> None:
        """Start the workers. If one of them can't start, end with its exit code."""
        _log.info("this process (%d) starts %d workers: send signals to it", os.getpid(), self._count)
        for _ in range(self._count):
            self._start_worker()
        ends_at = time.monotonic() + _START_SECONDS
        while not (self._is_stopping or all(worker.is_ready for worker in self._workers)):
            for worker in self._workers:
                if (code := worker.exit_code) is not None:
                    _log.error("%s ended with %s before it served connections", worker, _describe(code))
                    raise SystemExit(code if code > 0 else STARTUP_FAILURE)
                if not worker.is_ready and time.monotonic() > ends_at:
                    _log.error("%s didn't start within %g s", worker, _START_SECONDS)
                    raise SystemExit(STARTUP_FAILURE)
            await asyncio.sleep(_TICK_SECONDS / 4)

    def _start_worker(self) -> WorkerProcess:
        self._last_number += 1
        worker = WorkerProcess(
            self._last_number,
            create_app=self._create_app,
            limits=self._limits,
            stop_timeout=self._timeout - self._margin,
            collect=self._metrics.collect,
        )
        self._workers.append(worker)
        return worker

    # Connections

    def _listen(self) -> None:
        for each in self._sockets:
            each.listen(_BACKLOG)
        self._acceptor = Acceptor([each.fileno() for each in self._sockets], self._deliver)
        self._acceptor.start()

    def _deliver(self, accepted: socket.socket) -> None:
        """Pass the connection to a worker. If none takes it, accept no more until one does."""
        if self._pass(accepted):
            accepted.close()
            return
        self._undelivered.append(accepted)
        if self._acceptor is not None:
            self._acceptor.pause()

    def _deliver_waiting(self) -> None:
        while self._undelivered:
            if not self._pass(self._undelivered[0]):
                return
            self._undelivered.popleft().close()
        if self._acceptor is not None and self._has_open_worker():
            self._acceptor.resume()

    def _has_open_worker(self) -> bool:
        return any(worker.is_open for worker in self._workers)

    def _pass(self, accepted: socket.socket) -> bool:
        candidates = sorted((worker for worker in self._workers if worker.is_open), key=lambda worker: worker.load)
        return any(worker.pass_connection(accepted) for worker in candidates)

    async def _stop_listening(self) -> None:
        """Accept the connections that clients have already opened, and no more."""
        if self._acceptor is None:
            return
        if reject_new_connections(self._sockets):
            await asyncio.sleep(HANDSHAKE_SECONDS)
        self._deliver_waiting()
        self._acceptor.accept_waiting()
        ends_at = time.monotonic() + _LAST_CONNECTIONS_SECONDS
        while self._undelivered and self._has_open_worker() and time.monotonic() < ends_at:
            await asyncio.sleep(_TICK_SECONDS / 4)
            self._deliver_waiting()
            self._acceptor.accept_waiting()
        self._acceptor.stop()
        if self._undelivered:
            _log.error("%d connections are closed, because no worker took them", len(self._undelivered))
        for each in self._sockets:
            each.close()

    # Supervision

    async def _tick(self) -> None:
        """Replace workers that have ended, begin a requested reload, and deliver the waiting connections."""
        self._check_workers()
        now = time.monotonic()
        if self._is_short_of_workers() and now >= self._next_start and not self._is_stopping:
            try:
                self._start_worker()
            except OSError as error:  # too many processes or open files, which may be temporary
                self._delay_next_start(now, is_stable=False, reason=f"a worker can't be started: {error}")
        if self._is_reload_requested and (self._reload is None or self._reload.done()):
            self._is_reload_requested = False
            self._reload = asyncio.get_running_loop().create_task(self._replace_workers())
        self._deliver_waiting()
        await asyncio.sleep(_TICK_SECONDS)

    def _is_short_of_workers(self) -> bool:
        return sum(worker.stops_at is None for worker in self._workers) < self._count

    def _check_workers(self) -> None:
        """Remove the workers that have ended, and kill those that hang, or don't start or stop in time."""
        now = time.monotonic()
        for worker in [*self._workers]:
            code = worker.exit_code
            if code is not None:
                self._handle_end(worker, code, now)
            elif worker.stops_at is not None:
                if now >= worker.stops_at:
                    self._kill(worker, "it didn't stop in time")
            elif not worker.is_ready:
                if now - worker.started_at > _START_SECONDS:
                    self._kill(worker, f"it didn't start within {_START_SECONDS:g} s")
            elif (blocked := worker.seconds_without_heartbeat()) > self._hang_timeout:
                if blocked > self._hang_timeout + _STACKS_SECONDS:
                    self._kill(worker, f"its event loop was blocked for {self._hang_timeout:g} s")
                elif not worker.has_shown_stacks:
                    worker.show_stacks()
            else:
                worker.has_shown_stacks = False

    def _kill(self, worker: WorkerProcess, reason: str) -> None:
        _log.error("%s is killed: %s", worker, reason)
        worker.kill()

    def _handle_end(self, worker: WorkerProcess, code: int, now: float) -> None:
        """Keep the counts of a worker that has ended, and decide when another one starts."""
        self._workers.remove(worker)
        is_expected = worker.stops_at is not None
        self._metrics.keep(worker, is_expected=is_expected)
        worker.close()
        if is_expected or self._is_stopping:
            _log.log(logging.ERROR if code else logging.INFO, "%s has stopped with %s", worker, _describe(code))
            if code and self._is_stopping:
                self.exit_code = 1
            return
        reason = f"{worker} ended with {_describe(code)}"
        if not self._is_short_of_workers():  # it should have replaced another one, which goes on
            _log.error("%s", reason)
            return
        self._delay_next_start(now, is_stable=now - worker.started_at > _STABLE_SECONDS, reason=reason)

    def _delay_next_start(self, now: float, *, is_stable: bool, reason: str) -> None:
        self._failures = 1 if is_stable else self._failures + 1
        exponent = min(self._failures - 2, _MAX_PAUSE_EXPONENT)
        pause = 0.0 if self._failures == 1 else min(2.0**exponent, _MAX_PAUSE_SECONDS)
        self._next_start = now + pause
        _log.error("%s: another one starts in %g s", reason, pause)

    async def _replace_workers(self) -> None:
        """Replace each worker by a new process, one after the other, without losing a connection."""
        old = [worker for worker in self._workers if worker.stops_at is None]
        _log.info("reloading: %d workers are replaced", len(old))
        for worker in old:
            try:
                successor = self._start_worker()
            except OSError as error:
                _log.error("reloading has failed, because a worker can't be started: %s", error)
                return
            while not successor.is_ready:
                if successor not in self._workers:
                    _log.error("reloading has failed, because the new worker didn't start: the old ones go on")
                    return
                await asyncio.sleep(_TICK_SECONDS / 4)
            if worker in self._workers:
                now = time.monotonic()
                worker.stop(StopOrder(requested_at=now, is_replaced=True), stops_at=now + self._timeout)
            while worker in self._workers:  # noqa: ASYNC110  # so that there is only one more process
                await asyncio.sleep(_TICK_SECONDS / 4)
        _log.info("reloading: all workers were replaced")

    # Stop

    async def _stop_all(self) -> None:
        """Drain all workers, and wait until they have ended."""
        requested_at = self._signals.requested_at
        assert requested_at is not None
        is_interactive = self._signals.is_interactive
        if self._reload is not None:
            self._reload.cancel()
        for worker in self._workers:
            worker.drain()
        if self._acceptor is not None and self._pause and not is_interactive:
            _log.info("stopping: /readyz fails, and requests are served for %g s more", self._pause)
            ends_at = time.monotonic() + self._pause
            while time.monotonic() < ends_at and not self._signals.is_forced:
                self._check_workers()
                self._deliver_waiting()
                await asyncio.sleep(_TICK_SECONDS)
        await self._stop_listening()
        order = StopOrder(requested_at=requested_at, is_interactive=is_interactive)
        stops_at = requested_at + self._timeout - 0.75 * self._margin
        for worker in self._workers:
            if worker.stops_at is None:
                worker.stop(order, stops_at=stops_at)
        is_forced = False
        while self._workers:
            if self._signals.is_forced and not is_forced:
                is_forced = True
                for worker in self._workers:
                    worker.force()
                    if not worker.is_ready:
                        self._kill(worker, "it was still starting")
            self._check_workers()
            await asyncio.sleep(_TICK_SECONDS / 4)

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.kill()


def _describe(code: int) -> str:
    if code >= 0:
        return f"the exit code {code}"
    with suppress(ValueError):
        return f"the signal {signal.Signals(-code).name}"
    return f"the signal {-code}"


def _has_terminal() -> bool:
    """Whether this process has a terminal. After a hangup, it has none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
