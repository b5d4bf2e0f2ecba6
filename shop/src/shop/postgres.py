"""Which PostgreSQL the service runs on: the operator's, or one embedded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from howdah.embedded import EmbeddedPostgres
from shop.settings import Settings

_DATABASE = "shop"


@dataclass(frozen=True, slots=True)
class Location:
    """`where` is for people: where the data lies."""

    url: str
    where: str


@contextmanager
def located(settings: Settings) -> Iterator[Location]:
    """The database of these settings, reachable inside the block. An embedded server is started if need be, and
    stopped afterwards unless another process uses it."""
    if settings.database_url is not None:
        yield Location(settings.database_url, "the server in SHOP_DATABASE_URL")
        return
    with EmbeddedPostgres(settings.data_dir) as server:
        server.ensure_database(_DATABASE)
        yield Location(server.url(_DATABASE), str(server.data_dir))
