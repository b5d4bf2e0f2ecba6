"""An import in another process ends in the middle of a transaction (Ctrl-C, kill -9, or a lost connection), and is run
again."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import text

from howdah import Database, uuid7
from shop.importing.loading import load
from shop.importing.retail import RetailFile, read_retail
from shop.orders.models import Order
from shop.users.models import User
from shop_tests.support.trigger_bypass import disable_triggers

WriteFile = Callable[..., Path]
Dump = dict[str, list[tuple[Any, ...]]]
TakeDump = Callable[[], Awaitable[Dump]]

# If the tests run in the background, they ignore SIGINT, and their subprocesses would inherit that.
SHOP = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from shop.cli import main
main()
"""
INVOICES = 4000
ITEMS_PER_INVOICE = 8
FIRST_BATCH = 2500
"""The number of invoices in the first batch."""
TIMEOUT_SECONDS = 60


@pytest.fixture
def path(write_csv: WriteFile) -> Path:
    """Two batches of invoices. The orders of each are written in several chunks."""
    return write_csv(
        *(
            {
                "Invoice": f"{500_000 + number}",
                "Customer ID": f"{number % 50}",
                "InvoiceDate": f"2010-01-05 {number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}",
                "StockCode": f"{line}",
            }
            for number in range(INVOICES)
            for line in range(ITEMS_PER_INVOICE)
        )
    )


@asynccontextmanager
async def blocked_import(path: Path, url: str, database: Database) -> AsyncIterator[Process]:
    """`shop import retail`, blocked in the transaction of its second batch, with most of the batch's orders written. It
    continues at the end of the `async with` block."""
    environment = {
        **os.environ,
        "SHOP_OWNER_DATABASE_URL": url,
        "SHOP_LOCK_TIMEOUT": f"{TIMEOUT_SECONDS}",
        "FORCE_COLOR": "1",  # with the progress bar of a terminal
    }
    async with database.session() as session:
        # An open transaction has inserted an order of the batch, so the import waits at the unique index.
        user = User(id=uuid7(), email="somebody@shop.example", name="Somebody")
        reference = f"retail:{500_000 + FIRST_BATCH + 1200}"
        session.add_all([user, Order(user_id=user.id, reference=reference, total_cents=1)])
        await session.flush()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SHOP, "import", "retail", path),
            cwd=path.parent,
            env=environment,
            stdout=PIPE,
            stderr=PIPE,
        )
        try:
            waiting = "application_name = 'shop import' AND wait_event_type = 'Lock'"
            await until(database, f"SELECT count(*) = 1 FROM pg_stat_activity WHERE {waiting}", process)
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await session.rollback()


async def until(database: Database, condition: str, process: Process | None = None) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS), database.engine.connect() as connection:
        own = "datname = current_database() AND backend_type = 'client backend'"
        statement = text(f"{condition} AND {own}")
        while not await connection.scalar(statement):
            await connection.rollback()
            if process is not None and process.returncode is not None:
                pytest.fail(f"the import ended with {process.returncode}: {await process.communicate()}")
            await asyncio.sleep(0.01)


async def interrupt(process: Process, _database: Database) -> None:
    process.send_signal(signal.SIGINT)


async def kill(process: Process, _database: Database) -> None:
    process.kill()


async def drop_connection(_process: Process, database: Database) -> None:
    async with database.begin() as session:
        await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'shop import' AND datname = current_database()"
            )
        )


class Ending(NamedTuple):
    end: Callable[[Process, Database], Awaitable[None]]
    exit_code: int
    message: str


@pytest.mark.parametrize(
    "ending",
    [
        Ending(interrupt, 130, "interrupted: run the command again to finish"),
        Ending(kill, -signal.SIGKILL, ""),
        Ending(
            drop_connection, 1, "terminating connection due to administrator command): run the command again to finish"
        ),
    ],
    ids=["ctrl-c", "kill", "connection lost"],
)
async def test_an_interrupted_import_leaves_whole_batches_and_the_next_one_finishes(
    committed_database: Database, committed_url: str, path: Path, dump: TakeDump, ending: Ending
) -> None:
    async with blocked_import(path, committed_url, committed_database) as process:
        await ending.end(process, committed_database)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            stdout, stderr = await process.communicate()
    assert process.returncode == ending.exit_code
    assert stdout == b""
    output = stderr.decode()
    assert "Traceback" not in output
    assert ending.message in output.splitlines()[-1]

    no_session = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'shop import'"
    await until(committed_database, no_session)
    part = await dump()
    assert [order[0] for order in part["orders"]] == [f"retail:{500_000 + n}" for n in range(FIRST_BATCH)]
    assert len(part["items"]) == FIRST_BATCH * ITEMS_PER_INVOICE

    retail = read_retail(path)
    loaded = await load(committed_database, retail)
    assert (loaded.orders_existing, loaded.orders_created) == (FIRST_BATCH, INVOICES - FIRST_BATCH)
    resumed = await dump()
    await import_into_empty_tables(committed_database, retail)
    assert resumed == await dump()


async def test_ctrl_c_ends_an_import_that_is_reading_the_file(tmp_path: Path) -> None:
    pipe = tmp_path / "retail.csv"
    os.mkfifo(pipe)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SHOP, "import", "retail", pipe), cwd=tmp_path, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (writing := open_for_writing(pipe)) is None:
                assert process.returncode is None, await process.communicate()
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGINT)
            # otherwise the import could see the end of the file before the signal
            while is_pending(process.pid, signal.SIGINT):
                await asyncio.sleep(0.01)
            os.close(writing)
            ending = asyncio.create_task(process.communicate())
            while not ending.done():  # opening the pipe again would wait for a writer
                if (writing := open_for_writing(pipe)) is not None:
                    os.close(writing)
                await asyncio.sleep(0.01)
            stdout, stderr = await ending
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, stdout, stderr) == (130, b"", b"interrupted: run the command again to finish\n")
    assert list(tmp_path.iterdir()) == [pipe]


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether the signal has been sent and not been received yet. False on systems without /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    masks = (int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))
    return any(mask >> (number - 1) & 1 for mask in masks)


def open_for_writing(pipe: Path) -> int | None:
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # no process has opened the pipe for reading yet
        return None


async def import_into_empty_tables(database: Database, retail: RetailFile) -> None:
    async with database.begin() as session:
        await disable_triggers(session)
        await session.execute(text("TRUNCATE users, orders, order_items CASCADE"))
    await load(database, retail)
