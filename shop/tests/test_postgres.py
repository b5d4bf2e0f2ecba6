"""Which database a command uses, and that it doesn't silently use a second one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from howdah.embedded import EmbeddedPostgres
from howdah_tests.support.embedded_servers import open_folder
from shop import postgres
from shop.cli import app
from shop.postgres import (
    MissingUrl,
    describe_location,
    find_running_services,
    open_location,
    open_service_location,
)
from shop.settings import Settings


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedPostgres]:
    """The running server of a service with its own data directory. No other server is found."""
    monkeypatch.delenv("SHOP_DATA_DIR", raising=False)
    monkeypatch.delenv("SHOP_DATABASE_URL", raising=False)
    monkeypatch.delenv("SHOP_OWNER_DATABASE_URL", raising=False)
    with open_folder() as folder:
        monkeypatch.setattr("howdah.embedded.server.default_data_dir", lambda _version: folder / "default")
        monkeypatch.setattr(postgres, "running_data_dirs", lambda: [folder / "service"])
        with EmbeddedPostgres(folder / "service") as server:
            server.ensure_database("shop")
            yield server


@pytest.mark.parametrize("command", ["create-demo", "check", "migrate"])
def test_a_command_without_the_services_data_dir_is_refused(service: EmbeddedPostgres, command: str) -> None:
    default = service.data_dir.with_name("default")
    finished = CliRunner().invoke(app, [command], catch_exceptions=False)
    assert finished.exit_code == 1
    assert finished.stderr.splitlines() == [
        f"database: shop in {default} (embedded PostgreSQL)",
        f"the default server isn't running, but a service uses the server in {service.data_dir}: set "
        f"SHOP_DATA_DIR={service.data_dir} to use that one, or SHOP_DATA_DIR={default} for the default one",
    ]
    assert not default.exists()


def test_a_command_with_the_services_data_dir_uses_its_database(
    service: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_DATA_DIR", str(service.data_dir))
    finished = CliRunner().invoke(app, ["create-demo", "--users", "1"], catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    where = f"database: shop in {service.data_dir} (embedded PostgreSQL)"
    assert finished.stderr.startswith(f"{where}\n")
    assert finished.stdout.splitlines() == ["1 users created, 0 existed already", where]
    assert service.pid is not None


def test_a_server_without_a_database_of_shop_is_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder() as folder:
        monkeypatch.setattr(postgres, "running_data_dirs", lambda: [folder / "data", folder / "ended"])
        with EmbeddedPostgres(folder / "data") as server:
            assert find_running_services() == []
            server.ensure_database("shop")
            assert find_running_services() == [folder / "data"]


def test_the_logins_of_the_embedded_server_follow_from_each_other(service: EmbeddedPostgres) -> None:
    settings = Settings(data_dir=service.data_dir)
    with open_service_location(settings) as location, open_location(settings) as of_owner:
        assert location.owner_url == of_owner.url == service.url("shop")
        assert location.url == service.url("shop", user="shop_service")


def test_a_url_of_the_wrong_login_is_not_used() -> None:
    only_service = Settings(database_url="postgresql://shop_service@db/shop")
    only_owner = Settings(owner_database_url="postgresql://owner:secret@db/shop")
    with pytest.raises(MissingUrl, match="set SHOP_OWNER_DATABASE_URL"), open_location(only_service):
        pass
    of_the_service = "set SHOP_DATABASE_URL to a URL that logs in as shop_service"
    with pytest.raises(MissingUrl, match=of_the_service), open_service_location(only_owner):
        pass
    with open_service_location(only_service) as location:
        assert location.owner_url is None
    with open_location(only_owner) as of_owner:
        assert of_owner.url == "postgresql+asyncpg://owner:secret@db/shop"
        assert "secret" not in repr(of_owner)


def test_the_service_and_the_owner_may_have_different_addresses() -> None:
    settings = Settings(database_url="postgresql://pooler/shop", owner_database_url="postgresql://db/shop")
    assert describe_location(settings) == "shop on db"
    assert describe_location(settings, is_service=True) == "shop on pooler"


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("postgresql://ada:secret@db.example.com:5433/shop", "shop on db.example.com:5433"),
        ("postgresql://ada:secret@/shop?host=/run/postgresql", "shop on /run/postgresql"),
        ("postgresql+asyncpg:///shop", "shop on the default host"),
    ],
)
def test_a_location_is_described_without_its_password(url: str, where: str) -> None:
    assert describe_location(Settings(database_url=url)) == where
    assert describe_location(Settings(owner_database_url=url), is_service=True) == where
