"""The commands: mistakes of the operator are reported in one line, and `shop check` checks the ledger."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from howdah import Database
from shop.cli import app
from shop.demo import create_demo
from shop.keyrings import new_key
from shop.ledger.check import STEPS
from shop.postgres import as_service_login
from shop_tests.support.identity import SIGNING_KEYS

NOWHERE = "postgresql://shop:secret@127.0.0.1:1/shop"


def shop(*arguments: str, **variables: str) -> Result:
    """Run the command in this process. Any exception but an exit fails the test."""
    environment = {f"SHOP_{name}": value for name, value in variables.items()}
    return CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)


def shop_process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in another process. `serve` needs one: it sets a signal handler and the garbage collector."""
    return subprocess.run(
        [sys.executable, "-c", "from shop.cli import main; main()", *arguments],
        env={
            **os.environ,
            "SHOP_SIGNING_KEYS": SIGNING_KEYS,
            "SHOP_ENCRYPTION_KEYS": new_key(),
            "SHOP_CONSOLE_MAILS": "on",
            **{f"SHOP_{name}": value for name, value in variables.items()},
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def execute(url: str, statement: str) -> None:
    async def run() -> None:
        async with Database(url) as database, database.begin() as session:
            await session.execute(text(statement))

    asyncio.run(run())


def add_demo(url: str, *, users: int, seed: int) -> None:
    async def run() -> None:
        async with Database(url) as database:
            await create_demo(database, users=users, seed=seed)

    asyncio.run(run())


def test_help_imports_only_the_command_line() -> None:
    """All imports together take a second, and polars, alembic and FastAPI are needed by some commands only."""
    code = "import sys; from shop.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    shown, *_, modules = finished.stdout.splitlines()
    assert "Usage" in finished.stdout, shown
    packages = {name.partition(".")[0] for name in modules.split()}
    assert {"shop", "typer"} < packages
    assert packages.isdisjoint({"alembic", "asyncpg", "fastapi", "howdah", "polars", "pydantic", "sqlalchemy"})


@pytest.mark.parametrize("command", ["migrate", "check", "create-demo", "import retail FILE"])
def test_an_unreachable_database_is_reported_in_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "retail.csv"
    file.write_text("Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n")
    finished = shop(*command.replace("FILE", str(file)).split(), OWNER_DATABASE_URL=NOWHERE)
    assert finished.exit_code == 1
    database, problem = finished.stderr.splitlines()
    assert database == "database: shop on 127.0.0.1:1"
    assert problem.startswith("the database can't be reached: ")
    assert "secret" not in finished.output


def test_serve_reports_an_unreachable_database_in_one_line() -> None:
    finished = shop_process("serve", "--port", "0", DATABASE_URL=NOWHERE)
    assert finished.returncode == 1
    assert finished.stdout.splitlines() == ["database: shop on 127.0.0.1:1"]
    assert finished.stderr.splitlines()[-1].startswith("the database can't be reached: ")
    assert "Traceback" not in finished.stderr
    assert "secret" not in finished.stderr


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (
            "DATABASE_URL",
            "somewhere:secret",
            "SHOP_DATABASE_URL: Value error, the URL of the database can't be read: write postgresql://",
        ),
        ("DATABASE_URL", "mysql://shop:secret@db/shop", "SHOP_DATABASE_URL: Value error, mysql:// isn't supported"),
        *(
            ("DATABASE_URL", f"postgresql://shop:secret@{rest}", f"SHOP_DATABASE_URL: Value error, the URL's {problem}")
            for rest, problem in [
                ("db/shop?foo=1", "parameter 'foo' isn't supported: remove it"),
                ("db/shop?pool_size=5", "parameter 'pool_size' isn't supported: remove it"),
                ("db/shop?connect_timeout=abc", "parameter 'connect_timeout' must be a number of seconds"),
                ("db/shop?sslmode=wrong", "parameter 'sslmode' must be one of disable, allow"),
                ("db:99999/shop", "parameter 'port' must be a number from 1 to 65535, not '99999'"),
            ]
        ),
        ("POOL_SIZE", "0", "SHOP_POOL_SIZE: Input should be greater than or equal to 1"),
    ],
)
def test_an_invalid_setting_is_reported_with_its_name(name: str, value: str, problem: str) -> None:
    variables: dict[str, Any] = {name: value}
    finished = shop("check", **variables)
    assert finished.exit_code == 1
    assert finished.stderr.startswith(problem)
    assert len(finished.stderr.splitlines()) == 1
    assert "secret" not in finished.stderr


def test_a_used_port_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        finished = shop_process("serve", "--port", str(port), DATABASE_URL=NOWHERE)
    assert (finished.returncode, finished.stderr) == (
        1,
        f"can't listen on 127.0.0.1, port {port}: Address already in use\n",
    )


def test_serve_refuses_the_login_of_the_owner_in_one_line(committed_url: str) -> None:
    finished = shop_process("serve", "--port", "0", DATABASE_URL=committed_url)
    assert finished.returncode == 1
    problem = finished.stderr.splitlines()[-1]
    assert problem.startswith("the service doesn't start: the role 'postgres' is a superuser, and policies don't apply")
    assert "Traceback" not in finished.stderr


def test_too_many_workers_are_refused_in_one_line(committed_url: str) -> None:
    finished = shop_process(
        *("serve", "--port", "0", "--workers", "9"),
        DATABASE_URL=as_service_login(committed_url),
        OWNER_DATABASE_URL=committed_url,
    )
    assert finished.returncode == 1
    problem = finished.stderr.splitlines()[-1]
    assert problem.startswith("9 workers, and one more while a worker is replaced, could open 630 connections (63 in")
    assert "or lower SHOP_POOL_SIZE, SHOP_STAFF_POOL_SIZE and SHOP_SYSTEM_POOL_SIZE, or run at most" in problem
    assert "Traceback" not in finished.stderr


def test_create_login_names_the_variable_that_is_missing() -> None:
    finished = shop("create-login", OWNER_DATABASE_URL=NOWHERE)
    assert finished.exit_code == 1
    assert finished.stderr.splitlines()[-1].startswith("SHOP_DATABASE_URL isn't set")
    finished = shop("create-login", DATABASE_URL=NOWHERE)
    assert finished.stderr.splitlines()[-1].endswith("set SHOP_OWNER_DATABASE_URL")
    assert "secret" not in finished.output


def test_an_unknown_revision_is_reported_in_one_line(committed_url: str) -> None:
    finished = shop("migrate", "--downgrade", "nonsense", OWNER_DATABASE_URL=committed_url)
    assert finished.exit_code == 1
    assert finished.stderr.splitlines()[-1] == "Can't locate revision identified by 'nonsense'"


def test_check_reports_no_faults_or_ends_with_exit_code_1(committed_url: str) -> None:
    assert shop("create-demo", "--users", "3", OWNER_DATABASE_URL=committed_url).exit_code == 0
    finished = shop("check", OWNER_DATABASE_URL=committed_url)
    assert finished.exit_code == 0
    counts, seal, verdict = finished.stdout.splitlines()
    assert (counts, verdict) == ("4 accounts, 3 transfers, 6 entries", "no faults found")
    assert re.fullmatch(r"the seal of the ledger is [1-9]\d*:[0-9a-f]{64}", seal)
    assert f"{len(STEPS)}/{len(STEPS)}" in finished.stderr
    execute(committed_url, "UPDATE accounts SET held = 1 WHERE purpose IS NULL")
    finished = shop("check", OWNER_DATABASE_URL=committed_url)
    assert (finished.exit_code, finished.stdout.splitlines()) == (1, [counts, seal])
    assert "held amounts differ from the pending transfers:\n  account " in finished.stderr
    assert finished.stderr.count(": 1 held, 0 pending\n") == 3


def test_check_compares_the_ledger_with_an_earlier_seal(committed_url: str) -> None:
    add_demo(committed_url, users=2, seed=1)
    seal = shop("check", OWNER_DATABASE_URL=committed_url).stdout.splitlines()[1].split()[-1]
    add_demo(committed_url, users=2, seed=2)
    assert shop("check", "--seal", seal, OWNER_DATABASE_URL=committed_url).exit_code == 0
    finished = shop("check", "--seal", f"1{seal}", OWNER_DATABASE_URL=committed_url)
    assert finished.exit_code == 1
    assert f"the chain of seals doesn't contain this seal:\n  1{seal}\n" in finished.stderr


def test_an_invalid_seal_is_reported_before_the_database_is_read() -> None:
    finished = shop("check", "--seal", "nonsense", OWNER_DATABASE_URL=NOWHERE)
    assert finished.exit_code == 2
    assert "POSITION:HASH" in finished.stderr


def test_a_database_without_a_trigger_is_not_served(committed_url: str) -> None:
    execute(committed_url, "ALTER TABLE transfers DISABLE TRIGGER post_transfers")
    finished = shop_process(
        "serve", "--port", "0", DATABASE_URL=as_service_login(committed_url), OWNER_DATABASE_URL=committed_url
    )
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith(
        "the database differs from the ledger's schema: trigger post_transfers on transfers: disabled. Restore"
    )
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("DROP FUNCTION link_seals", "function link_seals(max_seals integer): missing"),
        ("DROP FUNCTION digest_of_transfer", "function digest_of_transfer(t transfers): missing"),
        ("DROP TABLE seals CASCADE", "table seals: missing"),
    ],
)
def test_check_continues_if_a_function_or_table_is_missing(committed_url: str, change: str, missing: str) -> None:
    execute(committed_url, change)
    finished = shop("check", "--seal", "1:" + 64 * "a", OWNER_DATABASE_URL=committed_url)
    assert finished.exit_code == 1
    assert missing in finished.stderr
    assert "the chain of seals doesn't contain this seal:" in finished.stderr
