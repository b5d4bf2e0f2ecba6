"""The settings, which are read from environment variables."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from sqlalchemy import text

from howdah import Database
from shop.postgres import open_database
from shop.settings import Settings


def test_each_setting_is_read_from_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DATABASE_URL", "postgresql://db/shop")
    monkeypatch.setenv("SHOP_POOL_SIZE", "7")
    monkeypatch.setenv("SHOP_LOCK_TIMEOUT", "0.5")
    settings = Settings()
    assert (settings.database_url, settings.pool_size, settings.lock_timeout) == ("postgresql://db/shop", 7, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POOL_SIZE", "0"),
        ("POOL_TIMEOUT", "-1"),
        ("LOG_FORMAT", "xml"),
        ("SHUTDOWN_TIMEOUT", "soon"),
        ("DATABASE_URL", "somewhere"),
        ("DATABASE_URL", "mysql://db/shop"),
        ("DATABASE_URL", "postgresql://db:port/shop"),
        ("OWNER_DATABASE_URL", "mysql://db/shop"),
        ("SYSTEM_POOL_SIZE", "3"),
    ],
)
def test_an_invalid_setting_is_rejected(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SHOP_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DATABASE_URL", "")
    monkeypatch.setenv("SHOP_DATA_DIR", "")
    assert (Settings().database_url, Settings().data_dir) == (None, None)


def test_a_password_is_not_shown() -> None:
    settings = Settings(database_url="postgresql://a:secret@db/a", owner_database_url="postgresql://b:secret@db/a")
    assert "secret" not in repr(settings)
    assert "secret" not in str(settings)


async def test_the_timeouts_are_set_on_the_server(committed_url: str) -> None:
    settings = Settings(pool_size=3, statement_timeout=7, lock_timeout=0.25)
    async with open_database(committed_url, settings) as database:
        assert database.pool_status().size == 3
        assert await _show(database, "statement_timeout", "lock_timeout", "application_name") == [
            "7s",
            "250ms",
            "shop",
        ]


async def _show(database: Database, *names: str) -> list[str]:
    async with database.session() as session:
        return [str(await session.scalar(text(f"SHOW {name}"))) for name in names]


def test_hosts_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_ALLOWED_HOSTS", "shop.example.com, *.example.org")
    assert Settings().allowed_hosts == ["shop.example.com", "*.example.org"]
    assert Settings().with_hosts_of("127.0.0.1").allowed_hosts == ["shop.example.com", "*.example.org"]


def test_a_service_on_a_loopback_address_answers_only_for_this_machine() -> None:
    assert Settings().with_hosts_of("127.0.0.1").allowed_hosts == ["localhost", "127.0.0.1", "[::1]"]
    assert Settings().with_hosts_of("0.0.0.0").allowed_hosts is None  # noqa: S104
