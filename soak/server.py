"""Temporary PostgreSQL servers, with or without Shop's schema."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from howdah.embedded import EmbeddedPostgres
from shop import migrations


@dataclass(frozen=True)
class ShopServer:
    """A server that has a migrated database for Shop."""

    postgres: EmbeddedPostgres
    url: str
    folder: Path
    """A directory for other files of the run. It is deleted with the server."""


@contextmanager
def temporary_server(settings: Mapping[str, str] | None = None) -> Iterator[EmbeddedPostgres]:
    """A running server whose data is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL does not run as root: its user must be able to enter the directory
        with EmbeddedPostgres(Path(folder, "data"), settings=settings) as server:
            yield server


@contextmanager
def shop_server(settings: Mapping[str, str] | None = None) -> Iterator[ShopServer]:
    """A temporary server with Shop's schema."""
    with temporary_server(settings) as server, tempfile.TemporaryDirectory(prefix="soak-") as folder:
        server.ensure_database("shop")
        url = server.url("shop")
        migrations.upgrade(url)
        yield ShopServer(server, url, Path(folder))


def kill_postmaster(server: EmbeddedPostgres) -> None:
    """Kill PostgreSQL, and start it again."""
    assert server.pid is not None
    psutil.Process(server.pid).send_signal(signal.SIGKILL)
    with contextlib.suppress(Exception):
        server.stop()
    server.start()
