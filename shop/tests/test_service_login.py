"""The login of the service: which ones `shop serve` refuses, and how one gets its password."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
from sqlalchemy import make_url, text

from howdah import ConnectionFailed, Database
from howdah.embedded import EmbeddedPostgres
from howdah_tests.support.embedded_servers import open_folder, query, socket_dir_of
from shop.postgres import as_service_login, open_owner_database, open_staff_database, open_system_database
from shop.roles import CUSTOMER_ROLE, SERVICE_LOGIN, STAFF_ROLE, SYSTEM_ROLE
from shop.service_login import CannotServe, WrongPassword, check_login, check_service, create_login
from shop.settings import Settings

PAGE: Final = Path(__file__).parents[2] / "docs" / "operations" / "roles.md"
START_SECONDS: Final = 90  # on a busy machine, three commands take a while


async def execute(url: str, *statements: str) -> None:
    async with Database(url) as database, database.begin() as session:
        for each in statements:
            await session.execute(text(each))


@pytest.fixture
async def login(database_url: str) -> AsyncIterator[str]:
    """The URL of a login without rights, which only this test uses."""
    name = f"{make_url(database_url).database}_login"
    await execute(database_url, f"CREATE ROLE {name} LOGIN")
    yield make_url(database_url).set(username=name).render_as_string(hide_password=False)
    await execute(database_url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


async def test_the_services_own_login_is_accepted(database_url: str) -> None:
    await check_service(as_service_login(database_url), Settings(), must_be_migrated=True)


async def test_a_login_that_could_bypass_a_policy_is_refused_with_what_to_do(database_url: str, login: str) -> None:
    name = make_url(login).username
    member = f"GRANT {CUSTOMER_ROLE}, {STAFF_ROLE}, {SYSTEM_ROLE} TO {name} WITH INHERIT FALSE, SET TRUE"
    for change, problem in (
        (None, f"isn't a member of {CUSTOMER_ROLE}, {STAFF_ROLE}, {SYSTEM_ROLE}"),
        (member, None),
        (f"GRANT {STAFF_ROLE} TO {name} WITH INHERIT TRUE", f"has the rights of {STAFF_ROLE} without taking it"),
        (f"GRANT {STAFF_ROLE} TO {name} WITH INHERIT FALSE", None),
        (f"GRANT postgres TO {name} WITH INHERIT FALSE", "is a member of a role with it"),  # the owner's role
        (f"REVOKE postgres FROM {name}", None),
        (f"CREATE TABLE owned_by_login (); ALTER TABLE owned_by_login OWNER TO {name}", "owns owned_by_login"),
    ):
        if change is not None:
            await execute(database_url, *change.split("; "))
        async with Database(login) as database:
            if problem is None:
                await check_login(database)
                continue
            with pytest.raises(CannotServe, match=rf"{problem}.*SHOP_DATABASE_URL log in as shop_service") as caught:
                await check_login(database)
            assert "shop create-login" in str(caught.value)


async def test_a_schema_that_is_not_migrated_is_refused_without_the_owners_url(committed_url: str) -> None:
    await execute(committed_url, "UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(CannotServe, match=r"the schema is at 0001, not at .*: run shop migrate"):
        await check_service(as_service_login(committed_url), Settings(), must_be_migrated=True)
    await check_service(as_service_login(committed_url), Settings(), must_be_migrated=False)


@pytest.mark.parametrize(
    ("open_", "role", "size"), [(open_system_database, SYSTEM_ROLE, 5), (open_staff_database, STAFF_ROLE, 4)]
)
async def test_the_databases_of_the_system_and_the_staff_have_their_role_and_pool_size(
    service_url: str, open_: Callable[[str, Settings], Database], role: str, size: int
) -> None:
    settings = Settings(pool_size=7, system_pool_size=5, staff_pool_size=4)
    async with open_(service_url, settings) as database, database.session() as session:
        assert (await session.execute(text("SELECT session_user, current_user"))).one() == (SERVICE_LOGIN, role)
        assert (database.pool_status().size, database.pool_status().max_overflow) == (size, 2)


async def test_a_command_of_the_owner_never_reads_only_a_part_of_the_rows(database_url: str, login: str) -> None:
    """If a policy applies to the owner, the statement fails. Otherwise `shop check` would find no faults."""
    name = make_url(login).username
    await execute(
        database_url,
        "CREATE TABLE guarded (id int)",
        "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        f"ALTER TABLE guarded OWNER TO {name}",
    )
    count = text("SELECT count(*) FROM guarded")
    async with Database(login) as control, control.session() as session:
        assert await session.scalar(count) == 0
    async with open_owner_database(login, Settings(), application_name="shop check") as database:
        with pytest.raises(Exception, match="would be affected by row-level security policy"):
            async with database.session() as session:
                await session.scalar(count)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://postgres:secret-that-is-long-enough@db/shop", "must log in as shop_service"),
        ("postgresql://shop_service@db/shop", "has no password: generate one"),
        ("postgresql://shop_service:secret@db/shop", "at least 16 printable ASCII characters"),
        ("postgresql://shop_service:secret-%C3%A9-that-is-long-enough@db/shop", "printable ASCII"),
    ],
)
async def test_an_unusable_password_is_rejected_and_not_shown(database_url: str, url: str, problem: str) -> None:
    with pytest.raises(WrongPassword, match=problem) as caught:
        await create_login(database_url, url, Settings())
    assert "secret" not in str(caught.value).replace("secrets", "")


# --- An external server with passwords --------------------------------------------------------------------------------


@pytest.fixture
def external() -> Iterator[EmbeddedPostgres]:
    """A server of which only `postgres` can log in without a password. Its log has all statements."""
    with open_folder() as folder:
        settings = {"fsync": "off", "shared_buffers": "16MB", "log_statement": "all", "max_connections": "70"}
        with EmbeddedPostgres(folder / "data", settings=settings) as server:
            access = "local all postgres trust\nlocal all all scram-sha-256\n"
            (server.data_dir / "pg_hba.conf").write_text(access)
            query(server, "SELECT pg_reload_conf()")
            yield server


def read_steps(kind: str) -> list[str]:
    """The blocks of this kind in the section of the page about external servers."""
    section = PAGE.read_text(encoding="utf-8").partition("## Set up an external server")[2].partition("\n## ")[0]
    return re.findall(rf"^```{kind}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def shell(server: EmbeddedPostgres, script: str, **variables: str) -> subprocess.Popen[str]:
    """Run the script of the page on this server, whose address differs from that of the page."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SHOP_")}
    programs = f"{Path(sys.executable).parent}:{server.bin_dir}:{own['PATH']}"
    script = script.replace("@db.example.com/shop", f"@/shop?host={socket_dir_of(server)}")
    return subprocess.Popen(
        [shutil.which("sh") or "sh", "-euc", script],
        env=own | {"PATH": programs, "MAIL_PASSWORD": "of-the-mail-server"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


async def test_the_steps_of_the_page_set_up_an_external_server(external: EmbeddedPostgres) -> None:
    create, roles = read_steps("sql")
    migrate, set_password, serve = read_steps("sh")
    for statement in create.strip().splitlines():
        query(external, statement)
    owner_password = "owner-password-of-this-test"
    query(external, f"ALTER ROLE shop_owner PASSWORD '{owner_password}'")
    port = find_unused_port()
    script = f"{migrate}\n{set_password}\n{serve.replace('shop serve', 'exec shop serve')}"
    service = shell(external, script, OWNER_PASSWORD=owner_password, PORT=str(port), SHOP_SHUTDOWN_PAUSE="0")
    try:
        await until_ready(service, port)
        url = read_environment(service.pid)["SHOP_DATABASE_URL"]
        logins = query(external, "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = 'shop'")
        assert logins == SERVICE_LOGIN
    finally:
        service.send_signal(signal.SIGTERM)
        output, _ = await asyncio.to_thread(service.communicate, timeout=START_SECONDS)
    password = make_url(url).password
    assert isinstance(password, str)
    log = external.log_file.read_text(encoding="utf-8", errors="replace")
    assert "ALTER ROLE shop_service PASSWORD 'SCRAM-SHA-256$" in log
    assert password not in log + output

    with pytest.raises(ConnectionFailed, match="password authentication failed"):
        async with Database(make_url(url).set(password="a wrong password")) as database:
            await database.ping()
    owner = make_url(url).set(username="shop_owner", password=owner_password)
    await create_login(owner.render_as_string(hide_password=False), url.replace(password, "x" * 20), Settings())
    async with Database(url.replace(password, "x" * 20)) as database:
        await database.ping()
    assert roles.count("CREATE ROLE") == 4


def find_unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port: int = unused.getsockname()[1]
    return port


async def until_ready(service: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
        while time.monotonic() < deadline:
            assert service.poll() is None, service.stdout and service.stdout.read()
            try:
                response = await client.get("/readyz")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            assert response.status_code == 200, response.text
            return
    raise TimeoutError("the service isn't ready")


def read_environment(pid: int) -> dict[str, str]:
    parts = Path(f"/proc/{pid}/environ").read_bytes().decode().rstrip("\0").split("\0")
    return dict(part.split("=", 1) for part in parts)
