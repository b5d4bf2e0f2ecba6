"""`/docs` works without files from other hosts."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from howdah import Database
from howdah.fastapi import configure_app
from howdah_tests.support.fastapi_apps import asgi_client, http_client

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def build_app(app: FastAPI) -> FastAPI:
    configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"))

    @app.get("/items/{item_id}")
    async def get_item(item_id: int) -> int:
        return item_id

    return app


@pytest.mark.parametrize("root_path", ["", "/api"])
async def test_the_page_refers_only_to_files_of_the_application(root_path: str) -> None:
    app = build_app(FastAPI(title="<Tracker>"))
    transport = httpx.ASGITransport(app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        page = await client.get(f"{root_path}/docs")
        assert "//" not in page.text.removeprefix("<!DOCTYPE html>")
        assert "<title>&lt;Tracker&gt; - Swagger UI</title>" in page.text
        assert "script-src 'self';" in page.headers["content-security-policy"]
        assert "<script>" not in page.text
        names = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(names) == 4
        for name in names:
            file = await client.get(name)
            assert file.status_code == 200, name
            assert file.content
        assert (await client.get(f"{root_path}/redoc")).status_code == 404


async def test_the_page_sends_requests_only_to_the_servers_of_the_description() -> None:
    servers = [{"url": "https://api.example.com/v1"}, {"url": "/relative"}, {"url": "https://a.example; script-src *"}]
    for app, origins in ((FastAPI(), "'self'"), (FastAPI(servers=servers), "'self' https://api.example.com")):
        async with asgi_client(build_app(app)) as client:
            policy = (await client.get("/docs")).headers["content-security-policy"]
        assert f"connect-src {origins};" in policy


async def test_a_script_of_the_application_runs_after_the_others() -> None:
    app = FastAPI()
    configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"), docs_script="/own.js")
    async with asgi_client(app) as client:
        page = await client.get("/docs")
    assert re.findall(r'<script src="([^"]+)"', page.text)[-1] == "/own.js"


async def test_a_page_of_the_application_is_kept() -> None:
    app = FastAPI(docs_url=None)

    @app.get("/docs")
    async def own_docs() -> PlainTextResponse:
        return PlainTextResponse("own")

    async with asgi_client(build_app(app)) as client:
        assert (await client.get("/docs")).text == "own"


async def test_no_page_is_added_without_a_description() -> None:
    async with asgi_client(build_app(FastAPI(openapi_url=None))) as client:
        assert (await client.get("/docs")).status_code == 404


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
async def test_a_browser_without_network_shows_the_operations(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    async with http_client(build_app(FastAPI())) as client:
        page = await _dump_page(client.base_url, tmp_path)
    paths = set(re.findall(r'data-path="([^"]+)"', page))
    assert {"/items/{item_id}", "/healthz", "/readyz", "/metrics"} <= paths


async def _dump_page(base_url: httpx.URL, folder: Path) -> str:
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"),
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        *("--virtual-time-budget=10000", "--dump-dom", str(base_url.join("/docs"))),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return output.decode()
