"""A service with several worker processes: `python -m howdah_tests.support.worker_service --workers 2`.

`/pid` answers with the process id and the port, `/wait` answers after 0.3 s, and `/block` blocks the event loop.
`/metrics` answers with the metrics of all workers as JSON, and `/readyz` with 503 in a worker that drains.
`/inherited` answers with the sockets that a program would inherit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from howdah.logs import configure_logging
from howdah.serving import bind_socket, is_draining, serve
from howdah.serving._metrics import Family, Metrics, sum_metrics
from howdah.serving._scope_keys import METRICS_KEY, WORKERS_KEY


class PidApp:
    """The routes without FastAPI, so that a worker starts in half the time."""

    def __init__(self, folder: Path, *, second_fails: bool) -> None:
        self._folder, self._second_fails = folder, second_fails
        self._answers = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(scope, receive, send)
            return
        content: dict[str, Any]
        status, content = 200, {"pid": os.getpid(), "port": scope["server"][1]}
        match scope["path"]:
            case "/pid":
                self._answers += 1
            case "/wait":
                await asyncio.sleep(0.3)
            case "/block":
                time.sleep(60)  # noqa: ASYNC251
            case "/readyz":
                status = 503 if is_draining(scope) else 200
            case "/inherited":
                content = {"descriptors": list_inheritable_sockets()}
            case "/metrics":
                metrics = sum_metrics(await scope["state"][WORKERS_KEY].collect())
                content = {name: value for family in metrics for name, _, value in family.samples}
        body = json.dumps(content).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        scope["state"][METRICS_KEY] = self
        try:
            Path(self._folder, "first").touch(exist_ok=not self._second_fails)
        except FileExistsError:
            await send({"type": "lifespan.startup.failed", "message": "the second worker fails"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    def read(self) -> Metrics:
        """The metrics of this process."""
        return [
            Family("answers", "counter", "Answers to /pid", [("answers_total", {}, self._answers)]),
            Family("processes", "gauge", "1 for each worker", [("processes", {}, 1)]),
        ]


def list_inheritable_sockets() -> list[int]:
    with os.scandir("/proc/self/fd") as entries:
        descriptors = [
            int(each.name) for each in entries if os.path.realpath(each.path).partition(":")[0].endswith("socket")
        ]
    return [each for each in descriptors if each > 2 and os.get_inheritable(each)]


def create_service(options: argparse.Namespace) -> Any:
    configure_logging("json")
    if Path(options.folder, "broken").exists():
        raise RuntimeError("the new code is broken")
    return PidApp(Path(options.folder), second_fails=options.second_fails)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.1)
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--hang-timeout", type=float, default=30.0)
    parser.add_argument("--second-fails", action="store_true")
    options = parser.parse_args()
    configure_logging("json")
    sockets = [bind_socket("127.0.0.1", 0), bind_socket("127.0.0.1", 0)]
    print(*(each.getsockname()[1] for each in sockets), flush=True)
    serve(
        partial(create_service, options),
        sockets=sockets,
        workers=options.workers,
        stop_pause=options.pause,
        stop_timeout=options.timeout,
        hang_timeout=options.hang_timeout,
    )
    print("closed", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    main()
