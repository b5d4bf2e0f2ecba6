"""Bind a socket, and serve."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from howdah.serving.limits import ServerLimits

# File descriptors for everything that isn't a connection of a client: the database's, files, and the log.
_OTHER_FILES: Final = 200

_log: Final = logging.getLogger("howdah.serving")


class CannotListen(OSError):
    """The address can't be bound, for example because the port is in use."""


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket for `serve`. Raises `CannotListen`.

    Bind it before long work such as migrations, so that a port in use is reported first. `serve` accepts connections.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # asyncio sets this only for sockets that it creates. Without it, a response on a reused connection may be 40 ms
    # late.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise CannotListen(error.errno, f"can't listen on {host}, port {port}: {error.strerror}") from error
    return bound


def serve(
    app: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    sockets: Sequence[socket.socket] | None = None,
    limits: ServerLimits | None = None,
    stop_pause: float = 5.0,
    stop_timeout: float = 25.0,
) -> None:
    """Serve the ASGI application until SIGTERM or SIGINT (Ctrl+C), and return.

    `sockets` must be bound, and not shared with other processes. Without them, `serve` binds `host` and `port`.

    On SIGTERM, `/readyz` fails first, while requests are served for `stop_pause` seconds more, so that a proxy can
    learn of it. SIGINT skips this pause. Then the server accepts no more connections, closes idle ones, and finishes
    the requests in progress. It cancels requests that take too long with a 503, and ends the application's lifespan.

    `stop_timeout` is in seconds from the signal. **The process ends at that time with the exit code 1**, even if it
    is still in this function or in the code after it. So after a signal, the caller should only close its own
    resources. A second signal cancels the requests at once, and a third one ends the process.

    Raises `CannotListen`, and `SystemExit` if the application doesn't start. Call it in the main thread.
    """
    from howdah.serving._server import build_server

    if stop_pause < 0 or stop_timeout <= stop_pause:
        raise ValueError(
            f"stop_timeout ({stop_timeout:g} s) includes stop_pause ({stop_pause:g} s), so it must be longer"
        )
    limits = _fit_file_limit(limits if limits is not None else ServerLimits())
    server = build_server(app, limits=limits, pause=stop_pause, timeout=stop_timeout)
    server.run([bind_socket(host, port)] if sockets is None else list(sockets))


def _fit_file_limit(limits: ServerLimits) -> ServerLimits:
    """Raise the process's limit of open files as needed. If the system forbids it, lower `max_connections`."""
    if sys.platform == "win32":
        return limits
    import resource

    needed = limits.max_connections + limits.reserved_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == needed:
        return limits
    fitting = max(1, allowed - limits.reserved_connections - _OTHER_FILES)
    _log.warning(
        "max_connections is %d instead of %d, because the process may open only %d files: raise its limit (ulimit -n)",
        *(fitting, limits.max_connections, allowed),
    )
    return replace(limits, max_connections=fitting)
