"""A service with several worker processes: `python -m howdah_tests.support.worker_service --workers 2`.

`/pid` answers with the process id and the port, `/wait` answers after 0.3 s, and `/block` blocks the event loop. With
`--metrics` the application has `/metrics` and the probes.
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

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from howdah.logs import configure_logging
from howdah.serving import bind_socket, serve


class PidApp:
    """The routes without FastAPI, whose import takes a second."""

    def __init__(self, folder: Path, *, second_fails: bool) -> None:
        self._folder, self._second_fails = folder, second_fails

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
            return
        match scope["path"]:
            case "/wait":
                await asyncio.sleep(0.3)
            case "/block":
                time.sleep(60)  # noqa: ASYNC251
        body = json.dumps({"pid": os.getpid(), "port": scope["server"][1]}).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            Path(self._folder, "first").touch(exist_ok=not self._second_fails)
        except FileExistsError:
            await send({"type": "lifespan.startup.failed", "message": "the second worker fails"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


def create_service(options: argparse.Namespace) -> Any:
    configure_logging("json")
    if Path(options.folder, "broken").exists():
        raise RuntimeError("the new code is broken")
    app = PidApp(Path(options.folder), second_fails=options.second_fails)
    if not options.metrics:
        return app
    from fastapi import FastAPI

    from howdah import Database
    from howdah.fastapi import configure_app

    configured = FastAPI()
    configure_app(configured, database=lambda: Database("postgresql://nobody@127.0.0.1:1/none"), request_log=False)

    @configured.get("/wait")
    async def wait() -> None:
        await asyncio.sleep(0.3)

    @configured.get("/pid")
    async def get_pid(request: Request) -> dict[str, int | None]:
        return {"pid": os.getpid(), "port": request.url.port}

    return configured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.1)
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--hang-timeout", type=float, default=30.0)
    parser.add_argument("--metrics", action="store_true")
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
