"""`shop serve --workers`: every worker has the whole service."""

from __future__ import annotations

import signal
from pathlib import Path

from howdah.serving import bind_socket
from shop_tests.support.http_service import client_of, run_shop_serve


async def test_two_workers_serve_on_both_ports_and_end_with_their_parent(committed_url: str, tmp_path: Path) -> None:
    with bind_socket("127.0.0.1", 0) as unused:
        internal = unused.getsockname()[1]
    settings = {"SHOP_WORKERS": "2", "SHOP_INTERNAL_PORT": str(internal)}
    async with run_shop_serve(committed_url, tmp_path / "log", **settings) as (process, address):
        async with client_of(address) as first, client_of(address) as second:
            for number, client in enumerate((first, second)):  # a connection to each worker
                body = {"email": f"user-{number}@example.com", "name": "Ada"}
                assert (await client.post("/users", json=body)).status_code == 201
            assert (await first.get("/metrics")).status_code == 404
        async with client_of(f"http://127.0.0.1:{internal}") as client:
            metrics = (await client.get("/metrics")).text
        assert "howdah_workers 2.0" in metrics
        assert 'howdah_requests_total{method="POST",route="/users",status="201"} 2.0' in metrics
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
