"""Accept all waiting connections at once."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable
from typing import Final

ConnectionHandler = Callable[[socket.socket], object]

# The limit for one iteration of the event loop. A flood of connections must not delay the requests.
_MAX_AT_ONCE: Final = 128
_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FULL_SECONDS: Final = 0.5


class Connector:
    """Gives each accepted connection a protocol."""

    def __init__(self, create_protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._create_protocol = create_protocol
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def pending(self) -> int:
        """The number of connections that have no protocol yet."""
        return len(self._tasks)

    def connect(self, accepted: socket.socket) -> None:
        """Serve the connection, beginning in the next iteration of the event loop."""
        accepted.setblocking(False)
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(self._create_protocol, accepted)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Acceptor:
    """Accepts from listening sockets, and calls `handle` with each connection.

    It works alone, or in addition to the server of the event loop. uvloop accepts one connection in each iteration
    (libuv 1.45 and later). If an iteration takes 10 ms, because the process is busy, the last of 300 new connections
    waits 3 s, and a probe on a new connection fails. asyncio's own event loop accepts all waiting connections in one
    iteration.
    """

    def __init__(self, descriptors: Iterable[int], handle: ConnectionHandler) -> None:
        self._loop = asyncio.get_running_loop()
        # The event loop allows only one watcher for a descriptor, so this class watches a duplicate of each.
        self._sockets = [socket.socket(fileno=os.dup(each)) for each in descriptors]
        self._handle = handle
        self._is_paused = False

    @staticmethod
    def is_needed() -> bool:
        return type(asyncio.get_running_loop()).__module__.partition(".")[0] == "uvloop"

    def start(self) -> None:
        for each in self._sockets:
            each.setblocking(False)
            self._loop.add_reader(each, self._accept, each)

    def pause(self) -> None:
        """Accept nothing until `resume`. Connections wait in the queue of the listening socket."""
        if not self._is_paused:
            self._is_paused = True
            for each in self._sockets:
                self._loop.remove_reader(each)

    def resume(self) -> None:
        """Accept again after `pause`."""
        if self._is_paused:
            self._is_paused = False
            for each in self._sockets:
                self._loop.add_reader(each, self._accept, each)

    def accept_waiting(self) -> None:
        """Accept all waiting connections, unless `pause` is called."""
        for each in self._sockets:
            while self._accept(each):
                pass

    def stop(self) -> None:
        """Accept the waiting connections, and then stop."""
        self.accept_waiting()
        for each in self._sockets:
            self._loop.remove_reader(each)
            each.close()
        self._sockets.clear()

    def _accept(self, listening: socket.socket) -> bool:
        """Accept waiting connections. Return whether there may be more."""
        for _ in range(_MAX_AT_ONCE):
            if self._is_paused:
                return False
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno in _FULL:  # otherwise the loop would call this again at once
                    self._loop.remove_reader(listening)
                    self._loop.call_later(_FULL_SECONDS, self._resume, listening)
                    return False
                raise
            self._handle(accepted)
        return True

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets and not self._is_paused:
            self._loop.add_reader(listening, self._accept, listening)
