"""Bind a socket, and serve."""

from __future__ import annotations

import pickle
import socket
import sys
from collections.abc import Sequence
from typing import Any

from howdah.serving._open_files import fit_file_limit
from howdah.serving.limits import ServerLimits


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
    workers: int | None = None,
    limits: ServerLimits | None = None,
    stop_pause: float = 5.0,
    stop_timeout: float = 25.0,
    hang_timeout: float = 30.0,
) -> None:
    """Serve the ASGI application until SIGTERM or SIGINT (Ctrl+C), and return.

    `sockets` must be bound, and not shared with other processes. Without them, `serve` binds `host` and `port`.

    **With `workers`, `app` is a function that creates the application**: a function of a module, or a
    `functools.partial` of one. With `workers=1` it is called in this process. With more, each worker is a new process
    that calls it. So it also has to configure the log of its process, and the caller has to configure that of this
    one. The limits are those of each worker. This process accepts the connections, and passes each one to the worker
    with the fewest. It replaces a worker that ends, or whose event loop is blocked for `hang_timeout` seconds. SIGHUP
    replaces the workers one by one, with the current code of the application, and no request fails. The metrics of
    `configure_app` are the sums of all workers. The module that is run as `__main__` must call `serve` under
    `if __name__ == "__main__"`, because workers import it.

    On SIGTERM, `/readyz` fails first, while requests are served for `stop_pause` seconds more, so that a proxy can
    learn of it. SIGINT skips this pause. Then the server accepts no more connections, closes idle ones, and finishes
    the requests in progress. It cancels requests that take too long with a 503, and ends the application's lifespan.

    `stop_timeout` is in seconds from the signal. **The process ends at that time with the exit code 1**, even if it
    is still in this function or in the code after it. So after a signal, the caller should only close its own
    resources. A second signal cancels the requests at once, and a third one ends the process.

    Raises `CannotListen`, and `SystemExit` if the application doesn't start, or if a worker has to be killed at the
    stop. Call it in the main thread.
    """
    if stop_pause < 0 or stop_timeout <= stop_pause:
        raise ValueError(
            f"stop_timeout ({stop_timeout:g} s) includes stop_pause ({stop_pause:g} s), so it must be longer"
        )
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    if workers is not None and workers > 1 and sys.platform == "win32":
        raise ValueError(f"Windows can't pass connections to other processes, so workers must be 1, not {workers}")
    if hang_timeout <= 0:
        raise ValueError(f"hang_timeout must be more than 0 seconds, not {hang_timeout}")
    if workers is not None and workers > 1:
        _check_importable(app)
    if workers == 1:
        from howdah.serving._server import create_application

        app = create_application(app)
    bound = [bind_socket(host, port)] if sockets is None else list(sockets)
    limits = limits if limits is not None else ServerLimits()
    if workers is None or workers == 1:
        _serve_here(app, bound, limits, pause=stop_pause, timeout=stop_timeout)
        return
    from howdah._log_writer import share_lines
    from howdah.serving._supervisor import Supervisor

    share_lines()
    supervisor = Supervisor(
        app,
        workers=workers,
        sockets=bound,
        limits=limits,
        pause=stop_pause,
        timeout=stop_timeout,
        hang_timeout=hang_timeout,
    )
    supervisor.run()
    if supervisor.exit_code:
        raise SystemExit(supervisor.exit_code)


def _serve_here(app: Any, bound: list[socket.socket], limits: ServerLimits, *, pause: float, timeout: float) -> None:
    """Serve in this process."""
    from howdah.serving._server import build_server

    build_server(app, limits=fit_file_limit(limits), pause=pause, timeout=timeout).run(bound)


def _check_importable(create_app: Any) -> None:
    """Raise `TypeError` unless another process can import the function."""
    try:
        pickle.dumps(create_app)
    except Exception as error:
        raise TypeError(
            "with workers, serve needs a function of a module that creates the application, or a functools.partial of "
            f"one, because other processes import it, not {create_app!r}"
        ) from error
