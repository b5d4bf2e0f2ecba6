"""The client's address and the scheme come from trusted proxies only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from howdah import Database
from howdah.fastapi import configure_app
from howdah.serving import ServerLimits
from howdah.serving._server import build_server


def build_app(*proxies: str) -> FastAPI:
    app = FastAPI()
    configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"), trusted_proxies=[*proxies])

    @app.get("/client")
    async def get_client(request: Request) -> dict[str, Any]:
        return {"client": request.client and request.client.host, "scheme": request.url.scheme}

    return app


async def ask(
    app: FastAPI, *headers: tuple[str, str], peer: tuple[str, int] | None = ("10.0.0.9", 1)
) -> tuple[str, str]:
    transport = httpx.ASGITransport(app, client=peer)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        found = (await client.get("/client", headers=[*headers])).json()
    return found["client"], found["scheme"]


FORGED = ("X-Forwarded-For", "6.6.6.6")


@pytest.mark.parametrize(
    ("proxies", "forwarded", "client"),
    [
        ([], "6.6.6.6", "10.0.0.9"),
        (["192.0.2.0/24"], "6.6.6.6", "10.0.0.9"),  # the peer isn't a trusted proxy
        (["10.0.0.0/8"], "198.51.100.7", "198.51.100.7"),
        (["10.0.0.0/8"], "6.6.6.6, 198.51.100.7", "198.51.100.7"),  # the client sent the first one
        (["10.0.0.0/8"], "10.0.0.1, 198.51.100.7", "198.51.100.7"),  # and pretended to be a proxy
        (["10.0.0.0/8"], "6.6.6.6, 198.51.100.7, 10.0.0.3", "198.51.100.7"),  # two proxies
        (["10.0.0.0/8"], "6.6.6.6, 198.51.100.7:4711, [::ffff:10.0.0.3]:80", "198.51.100.7"),
        (["10.0.0.0/8"], "6.6.6.6, [2001:db8::1]:80", "2001:db8::1"),
        (["10.0.0.0/8"], "6.6.6.6, unknown", "10.0.0.9"),
        (["10.0.0.0/8"], "6.6.6.6, unknown, 10.0.0.3", "10.0.0.3"),
        (["10.0.0.0/8"], "", "10.0.0.9"),
        (["10.0.0.0/8"], "10.0.0.4, 10.0.0.3", "10.0.0.4"),
        (["10.0.0.0/8"], "6.6.6.6, " + "10.0.0.3, " * 50 + "10.0.0.3", "10.0.0.3"),
    ],
)
async def test_the_client_is_the_rightmost_address_that_is_not_trusted(
    proxies: list[str], forwarded: str, client: str
) -> None:
    assert await ask(build_app(*proxies), ("X-Forwarded-For", forwarded)) == (client, "http")


async def test_a_second_header_is_the_continuation_of_the_first() -> None:
    app = build_app("10.0.0.0/8")
    assert (await ask(app, FORGED, ("X-Forwarded-For", "198.51.100.7")))[0] == "198.51.100.7"
    assert (await ask(app, ("X-Forwarded-For", "198.51.100.7"), ("Forwarded", "for=6.6.6.6")))[0] == "198.51.100.7"
    assert (await ask(app, ("Forwarded", "for=6.6.6.6;proto=https"))) == ("10.0.0.9", "http")


async def test_the_scheme_comes_from_a_trusted_proxy() -> None:
    https = ("X-Forwarded-Proto", "https")
    assert (await ask(build_app("10.0.0.9"), https))[1] == "https"
    assert (await ask(build_app("10.0.0.8"), https))[1] == "http"
    assert (await ask(build_app("10.0.0.9"), ("X-Forwarded-Proto", "https, http")))[1] == "http"
    assert (await ask(build_app("10.0.0.9"), ("X-Forwarded-Proto", "javascript")))[1] == "http"


async def test_a_peer_without_an_address_is_trusted_only_as_a_unix_socket() -> None:
    assert (await ask(build_app("unix"), FORGED, peer=None))[0] == "6.6.6.6"
    assert (await ask(build_app("0.0.0.0/0", "::/0"), FORGED, peer=None))[0] is None
    assert (await ask(build_app("unix"), FORGED))[0] == "10.0.0.9"


@pytest.mark.parametrize("network", ["10.0.0.1/8", "*", "localhost", "", "10.0.0.0/33"])
async def test_a_network_that_is_none_is_rejected_at_the_start(network: str) -> None:
    with pytest.raises(ValueError, match="trusted_proxies"):
        await ask(build_app(network))


@asynccontextmanager
async def serve_privately(app: FastAPI, listening: socket.socket) -> AsyncIterator[None]:
    """Run the library's server on the socket."""
    server = build_server(app, limits=ServerLimits(), pause=0, timeout=5)
    running = asyncio.create_task(uvicorn.Server.serve(server, sockets=[listening]))
    try:
        while not server.started:
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await running


async def test_the_server_itself_uses_no_forwarded_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with serve_privately(build_app(), listening):
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/client"
            async with httpx.AsyncClient() as client:
                response = await client.get(url, headers=[FORGED, ("X-Forwarded-Proto", "https")])
    assert response.json() == {"client": "127.0.0.1", "scheme": "http"}


async def test_a_proxy_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        async with serve_privately(build_app("unix"), listening):
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                response = await client.get("/client", headers=[FORGED, ("X-Forwarded-Proto", "https")])
    assert response.json() == {"client": "6.6.6.6", "scheme": "https"}
