"""uvicorn's server with a stop that drains the connections and has a time limit."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Final

import uvicorn

from howdah.serving import _problems
from howdah.serving._accepting import Acceptor, Connector
from howdah.serving._connections import Connections
from howdah.serving._listening import count_waiting, reject_new_connections
from howdah.serving._protocol import LimitedHttpProtocol
from howdah.serving._signals import StopSignals
from howdah.serving.draining import STOP_STATE_KEY, StopState
from howdah.serving.limits import ServerLimits

_TICK_SECONDS: Final = 0.1
_MAX_CHECK_SECONDS: Final = 1.0
# At a stop by SIGTERM, a connection is closed when it has been idle for this long. If it gets a request before that,
# the response has `Connection: close`.
_IDLE_SECONDS_AT_STOP: Final = 1.0
# Before the listening socket is closed, the server waits for handshakes that have begun, and accepts their connections.
HANDSHAKE_SECONDS: Final = 0.1
_MAX_ACCEPT_SECONDS: Final = 2.0
_CANCEL_SECONDS: Final = 1.0
# The time for the end of the lifespan after a second signal.
_FORCED_LIFESPAN_SECONDS: Final = 3.0

_log: Final = logging.getLogger("howdah.serving")


class DrainingServer(uvicorn.Server):
    """A server that stops in steps. The first signal starts them:

    1. `is_draining` is true, so that `/readyz` fails, and each response has `Connection: close`.
    2. After SIGTERM, `pause` seconds pass. Requests are answered as before.
    3. The server accepts no more connections. It closes idle ones, and waits for the requests in progress.
    4. Requests that take too long are cancelled. Their clients get a 503, or the connection is aborted.
    5. The lifespan of the application ends.

    A second signal skips to step 4. A third one ends the process. `timeout` seconds after the first signal,
    the process ends even if the event loop is blocked, with the exit code 1.
    """

    def __init__(self, config: uvicorn.Config, *, connections: Connections, pause: float, timeout: float) -> None:
        super().__init__(config)
        self._connections = connections
        connections.all = self.server_state.connections
        self._stop: StopState = connections.stop
        self._pause = pause
        self._timeout = timeout
        self._idle_seconds = _IDLE_SECONDS_AT_STOP
        self._acceptor: Acceptor | None = None
        self._signals = StopSignals(timeout=timeout)
        self._requested_at: float | None = None
        self._is_interactive = False
        self._counter = 0
        self._next_check = 0.0
        limits = connections.limits
        shortest = min(limits.header_timeout, limits.body_timeout, limits.write_timeout, limits.keep_alive_timeout)
        self._check_seconds = min(_MAX_CHECK_SECONDS, shortest / 4)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals while the server runs. Unlike uvicorn, don't raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # After the server has ended, a signal must not interrupt the caller's cleanup. So the handlers stay.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note the signal. `main_loop` and `shutdown` do the rest."""
        self._signals.handle(sig)
        if self._requested_at is None:
            self._is_interactive = self._signals.is_interactive
            self.request_stop()
        self.force_exit = self._signals.is_forced

    def request_stop(self, requested_at: float | None = None) -> None:
        """Stop as after the first SIGTERM, but without the time limit for the process.

        The time limits of the steps count from `requested_at`, by default from now.
        """
        self._requested_at = time.monotonic() if requested_at is None else requested_at
        self._stop.is_draining = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Run the lifespan's startup, and listen."""
        self.lifespan.state[STOP_STATE_KEY] = self._stop
        await super().startup(sockets)
        if Acceptor.is_needed():
            descriptors = [each.fileno() for server in self.servers for each in server.sockets]
            self._acceptor = Acceptor(descriptors, Connector(self.create_protocol).connect)
            self._acceptor.start()

    def create_protocol(self) -> asyncio.Protocol:
        """Create the protocol of a connection, as uvicorn does for its own listener."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def main_loop(self) -> None:
        """Serve until a signal, and then for the pause."""
        while not self.should_exit:
            await self.tick()
        if self._requested_at is None:  # `should_exit` was set by other code
            self.request_stop()
        if self._is_interactive or not self._pause:
            return
        _log.info("stopping: /readyz fails, and requests are served for %g s more", self._pause)
        await self.tick_until(lambda: self.force_exit, self._pause)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the connections, and end the lifespan."""
        requested_at = self._requested_at
        assert requested_at is not None
        await self.stop_listening(sockets or [])
        state, loop = self.server_state, asyncio.get_running_loop()
        _log.info("stopping: %d connections, %d requests", len(state.connections), len(state.tasks))
        self._connections.close_idle(after=0 if self._is_interactive else self._idle_seconds, now=loop.time())
        for connection in list(state.connections):
            connection.shutdown()
        ends_at = requested_at + self._timeout
        await self.tick_until(
            lambda: self.force_exit or not (state.connections or state.tasks),
            ends_at - min(6.0, 0.3 * self._timeout) - time.monotonic(),
        )
        await self._cancel_requests()
        rest = ends_at - min(3.0, 0.15 * self._timeout) - time.monotonic()
        if self.force_exit:
            rest = min(rest, _FORCED_LIFESPAN_SECONDS)
        await self.end_lifespan(max(0.0, rest))

    async def end_lifespan(self, seconds: float) -> None:
        """Shut the application down, within this time."""
        try:
            await asyncio.wait_for(self.lifespan.shutdown(), seconds)
        except TimeoutError:
            _log.error("the application's lifespan did not end within %.1f s: it is cancelled", seconds)

    async def stop_listening(self, sockets: Sequence[socket.socket]) -> None:
        """Close the listening sockets without resetting connections that clients have already opened."""
        listening = [each for server in self.servers for each in server.sockets]
        is_rejecting = reject_new_connections(listening)
        if is_rejecting:
            await self.tick_until(lambda: False, HANDSHAKE_SECONDS)
        if self._acceptor is not None:
            self._acceptor.stop()
        if is_rejecting:
            # The event loop accepts the rest: uvloop one connection in each iteration, so that takes some ticks.
            await self.tick_until(lambda: not count_waiting(listening), _MAX_ACCEPT_SECONDS)
        for server in self.servers:
            server.close()
        for each in sockets:
            each.close()

    async def _cancel_requests(self) -> None:
        """Cancel the requests that are still in progress."""
        tasks = set(self.server_state.tasks)
        if tasks:
            _log.error("%d requests did not end in time, and are cancelled", len(tasks))
            for connection in self._connections.list_http():
                connection.cancel(_problems.STOPPING)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=min(_CANCEL_SECONDS, 0.1 * self._timeout))
        for each in list(self.server_state.connections):
            if each.transport is not None and not each.transport.get_write_buffer_size():
                each.transport.close()

    async def tick_until(self, is_done: Callable[[], bool], seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while not is_done() and time.monotonic() < ends_at:
            await self.tick()

    async def tick(self) -> None:
        """Update the date header, and check the times of the connections."""
        if await self.on_tick(self._counter):
            self.should_exit = True
        self._counter = (self._counter + 1) % 864_000
        now = asyncio.get_running_loop().time()
        if now >= self._next_check:
            # After the event loop was blocked, data of clients may be waiting. Read it before any time is checked.
            if now - self._next_check < _MAX_CHECK_SECONDS:
                self._connections.check_times(now)
            self._next_check = now + (_TICK_SECONDS if self._stop.is_draining else self._check_seconds)
        await asyncio.sleep(_TICK_SECONDS)


def build_server(app: Any, *, limits: ServerLimits, pause: float, timeout: float) -> DrainingServer:
    """Build the server for the application. Its `run` starts it."""
    config, connections = build_config(app, limits)
    return DrainingServer(config, connections=connections, pause=pause, timeout=timeout)


def create_application(create_app: Callable[[], Any]) -> Any:
    """The application that the function creates. Raises `TypeError` if it returns something else."""
    app = create_app()
    if not callable(app):
        raise TypeError(f"the function that creates the application must return an ASGI application, not {app!r}")
    return app


def build_config(app: Any, limits: ServerLimits) -> tuple[uvicorn.Config, Connections]:
    """The configuration of uvicorn, and the connections of the server."""
    connections = Connections(limits, StopState())
    config = uvicorn.Config(
        app,
        # Without it, uvicorn calls an object as ASGI 2 if its `__call__` is no coroutine function.
        interface="asgi3",
        http=partial(LimitedHttpProtocol, group=connections),  # type: ignore[arg-type]
        ws_max_size=limits.max_websocket_message_bytes,
        log_config=None,
        access_log=False,
        # Otherwise uvicorn would use the headers of every client on 127.0.0.1, or of those in an environment variable.
        # `configure_app(trusted_proxies=...)` is used instead.
        proxy_headers=False,
    )
    return config, connections
