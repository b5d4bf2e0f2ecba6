"""A worker process: it serves the connections that the parent process passes to it."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from howdah._log_writer import share_lines
from howdah.serving._accepting import Connector
from howdah.serving._connections import Connections
from howdah.serving._messages import MessageKind, encode_message, read_messages
from howdah.serving._metrics import Family, Metrics, encode_metrics
from howdah.serving._open_files import fit_file_limit
from howdah.serving._scope_keys import METRICS_KEY, WORKERS_KEY
from howdah.serving._server import DrainingServer, build_config, create_application
from howdah.serving._signals import end_process
from howdah.serving.limits import ServerLimits

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STACK_SIGNAL: Final = signal.SIGUSR2
"""A worker writes the stacks of its threads to standard error when it gets this signal, even if it hangs."""

# The limit of new connections for one iteration of the event loop.
_MAX_AT_ONCE: Final = 128
# A worker sends its metrics to its parent every 1 to 10 s, and for each scrape. If it is killed, the counts since then
# are lost. While it reads the metrics, for up to 10 ms, it serves no request. So the interval is long enough that the
# reads take at most 0.2 % of the time.
_MIN_METRICS_SECONDS: Final = 1.0
_MAX_METRICS_SECONDS: Final = 10.0
_METRICS_SHARE: Final = 0.002
_COLLECT_SECONDS: Final = 3.0
# How long a worker that stops waits for the connections that the parent has accepted.
_LAST_CONNECTIONS_SECONDS: Final = 2.0
_SEND_SECONDS: Final = 1.0
# The members of the memory that a worker shares with its parent.
CLOSED: Final = 0
"""The number of connections that were passed to the worker and are closed."""
HEARTBEAT: Final = 1
"""The time of the last tick, on the clock `time.monotonic`, which all processes share."""

_log: Final = logging.getLogger("howdah.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrder:
    """How a worker stops. `requested_at` is a time of `time.monotonic`."""

    requested_at: float
    is_interactive: bool = False
    is_replaced: bool = False

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What the parent passes to a new worker."""

    number: int
    create_app: Callable[[], Any]
    limits: ServerLimits
    stop_timeout: float
    control: socket.socket
    connections: socket.socket
    shared: Any
    """An array of doubles with the members `CLOSED` and `HEARTBEAT`."""


def run_worker(setup: WorkerSetup) -> None:
    """Create the application, and serve until the parent sends a `StopOrder`. The process runs this function only."""
    for each in STOP_SIGNALS:
        # The parent decides. Handlers, unlike SIG_IGN, aren't inherited by programs that the application starts.
        signal.signal(each, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the parent has blocked them until here
    for own in (setup.control, setup.connections):
        own.set_inheritable(False)
    if sys.stderr is not None:
        faulthandler.register(STACK_SIGNAL, all_threads=True)
    share_lines()
    threading.Thread(target=_end_after_parent, args=(setup.stop_timeout,), daemon=True).start()
    try:
        app = create_application(setup.create_app)
    except Exception:
        _log.exception("worker %d: the application can't be created", setup.number)
        sys.exit(STARTUP_FAILURE)
    config, connections = build_config(app, fit_file_limit(setup.limits))
    WorkerServer(config, connections=connections, setup=setup).run([])


def _end_after_parent(seconds: float) -> None:
    """After the parent has ended, wait for the time limit of a stop. Then end this process, even if it hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    end_process(time.monotonic() + seconds, seconds)


class WorkerServer(DrainingServer):
    """A server without a listening socket. Its parent passes connections, and sends a `StopOrder`.

    If the parent ends without one, the server stops as after SIGTERM, without the pause.
    """

    def __init__(self, config: uvicorn.Config, *, connections: Connections, setup: WorkerSetup) -> None:
        super().__init__(config, connections=connections, pause=0.0, timeout=setup.stop_timeout)
        self._setup = setup
        self._shared = setup.shared
        self._begun = 0  # connections that got a protocol, or were lost before they got one
        self._has_all_connections = False
        self._next_metrics = 0.0
        self._has_wrong_metrics = False
        self.server_state.connections = connections.all = _CountedConnections(self._count_closed)
        self._group = WorkerGroup(self._send, self._read_own_metrics)
        self._connector: Connector | None = None
        self._control: asyncio.StreamWriter | None = None
        self._messages: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle no signals: the parent does."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Run the lifespan's startup, and tell the parent that connections can be served."""
        reader, self._control = await asyncio.open_connection(sock=self._setup.control)
        self._messages = asyncio.get_running_loop().create_task(self._obey(reader))
        self.lifespan.state[WORKERS_KEY] = self._group
        await super().startup(sockets)
        self._connector = Connector(self.create_protocol)
        self._setup.connections.setblocking(False)
        asyncio.get_running_loop().add_reader(self._setup.connections, self._take_connections)
        self._send(encode_message(MessageKind.READY))

    def _take_connections(self) -> None:
        """Serve the connections that the parent has passed."""
        assert self._connector is not None
        for _ in range(_MAX_AT_ONCE):
            try:
                data, descriptors, _, _ = socket.recv_fds(self._setup.connections, 1, 1)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                data, descriptors = b"", []
            if not data:
                asyncio.get_running_loop().remove_reader(self._setup.connections)
                self._has_all_connections = True
                return
            for each in descriptors:
                os.set_inheritable(each, False)  # as for an accepted connection: no program keeps it open
                self._connector.connect(socket.socket(fileno=each))
            if not descriptors:  # the process has no free descriptor, so the kernel has closed the connection
                _log.error("a connection was lost, because this process can open no more files (ulimit -n)")
                self._begun += 1
                self._count_closed(len(self.server_state.connections))

    def create_protocol(self) -> asyncio.Protocol:
        """Create the protocol of a connection, and count the connection."""
        self._begun += 1
        return super().create_protocol()

    def _count_closed(self, connections: int) -> None:
        self._shared[CLOSED] = self._begun - connections

    async def _obey(self, reader: asyncio.StreamReader) -> None:
        """Follow the parent's messages until it closes the socket."""
        async for kind, number, payload in read_messages(reader):
            match kind:
                case MessageKind.DRAIN:
                    self._stop.is_draining = True
                case MessageKind.STOP:
                    order = StopOrder(**json.loads(payload))
                    self._stop.is_replaced = order.is_replaced
                    self._is_interactive = order.is_interactive
                    self._begin_stop(order.requested_at)
                case MessageKind.FORCE:
                    self.force_exit = True
                case MessageKind.SEND_METRICS:
                    self._send_metrics(number)
                case MessageKind.SUMS:
                    self._group.receive(number, payload)
                case _:
                    _log.error("unexpected message of the parent process: %s", kind.name)
        if self._requested_at is None:
            _log.error("the parent process has ended: worker %d stops", self._setup.number)
            self._begin_stop(time.monotonic())

    def _begin_stop(self, requested_at: float) -> None:
        if self._requested_at is None:
            self.request_stop(requested_at)
            arguments = (requested_at + self._setup.stop_timeout, self._setup.stop_timeout)
            threading.Thread(target=end_process, args=arguments, daemon=True).start()

    async def stop_listening(self, sockets: Sequence[socket.socket]) -> None:
        """Wait for the connections that the parent has accepted."""
        await self.tick_until(lambda: self._has_all_connections, _LAST_CONNECTIONS_SECONDS)
        asyncio.get_running_loop().remove_reader(self._setup.connections)
        await self.tick_until(lambda: self._connector is None or not self._connector.pending, _LAST_CONNECTIONS_SECONDS)

    async def tick(self) -> None:
        """Show the parent that the event loop runs, and send it the metrics every few seconds."""
        now = self._shared[HEARTBEAT] = time.monotonic()
        if now >= self._next_metrics and self._control is not None:
            if not self._control.transport.get_write_buffer_size():  # otherwise the parent hasn't read the last ones
                self._send_metrics(0)
            pause = (time.monotonic() - now) / _METRICS_SHARE
            self._next_metrics = now + min(max(pause, _MIN_METRICS_SECONDS), _MAX_METRICS_SECONDS)
        await super().tick()

    async def end_lifespan(self, seconds: float) -> None:
        """Send the last metrics, which need the running application, and then shut it down."""
        self._send_metrics(0)
        await super().end_lifespan(seconds)
        assert self._control is not None
        try:
            await asyncio.wait_for(self._control.drain(), _SEND_SECONDS)
        except (TimeoutError, ConnectionError):
            _log.warning("worker %d couldn't send its last metrics to the parent process", self._setup.number)

    def _read_own_metrics(self) -> Metrics:
        source = self.lifespan.state.get(METRICS_KEY)
        metrics: Metrics = [] if source is None else source.read()
        return metrics

    def _send_metrics(self, number: int) -> None:
        """Send the metrics. If they can't be read, send `NO_METRICS`, and the parent keeps those that it has."""
        try:
            metrics = encode_metrics(self._read_own_metrics())
        except Exception:
            if not self._has_wrong_metrics:  # only once
                _log.exception("worker %d: the metrics can't be read", self._setup.number)
            self._has_wrong_metrics = True
            self._send(encode_message(MessageKind.NO_METRICS, number))
            return
        self._send(encode_message(MessageKind.METRICS, number, metrics))

    def _send(self, data: bytes) -> None:
        assert self._control is not None
        self._control.write(data)


class WorkerGroup:
    """All workers of the service. The application of a worker finds it in the lifespan's state."""

    def __init__(self, send: Callable[[bytes], None], read: Callable[[], Metrics]) -> None:
        self._send = send
        self._last_number = 0
        self._waiting: dict[int, asyncio.Future[list[Metrics]]] = {}

    async def collect(self) -> list[Metrics]:
        """The metrics of each worker and of those that have ended. Raises `TimeoutError` after 3 s."""
        self._last_number += 1
        number = self._last_number
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send(encode_message(MessageKind.COLLECT, number))
        try:
            return await asyncio.wait_for(waiting, _COLLECT_SECONDS)
        finally:
            del self._waiting[number]

    def receive(self, number: int, payload: bytes) -> None:
        """Give the answer of the parent to the call that waits for it."""
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result([[Family(*family) for family in part] for part in json.loads(payload)])


class _CountedConnections(set[Any]):
    """uvicorn's set of connections, which reports its size."""

    def __init__(self, report: Callable[[int], None]) -> None:
        super().__init__()
        self._report = report

    def add(self, connection: Any) -> None:
        super().add(connection)
        self._report(len(self))

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._report(len(self))

    def remove(self, connection: Any) -> None:
        """As uvicorn's protocols for WebSockets do."""
        super().remove(connection)
        self._report(len(self))
