"""Small retail files that the tests write, and the database after an import."""

import asyncio
import csv
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl
import pytest
from sqlalchemy import text

from howdah import Database, advisory_lock
from shop_tests.support.retail_lines import A_SALE

BESIDE_THE_PROJECT = Path(__file__).parents[4] / "shared" / "data" / "online-retail-2009-2010.parquet"

A_TYPED_SALE = A_SALE | {"Quantity": 2, "Price": 4.95, "Customer ID": 13085.0}
Dump: TypeAlias = dict[str, list[tuple[Any, ...]]]

TYPES = dict.fromkeys(A_SALE, pl.String()) | {
    "Quantity": pl.Int64(),
    "Price": pl.Float64(),
    "Customer ID": pl.Float64(),
}


@pytest.fixture(scope="session")
def real_file() -> Path:
    path = Path(os.environ.get("HOWDAH_RETAIL_FILE", BESIDE_THE_PROJECT))
    if not path.exists():
        pytest.skip(f"the real retail file is not at {path}; HOWDAH_RETAIL_FILE names it")
    return path


@pytest.fixture(scope="session")
def real_sample() -> Path:
    """A part of the shop's other file, next to the real file. It has other column names and another format of times."""
    real_file = Path(os.environ.get("HOWDAH_RETAIL_FILE", BESIDE_THE_PROJECT))
    path = real_file.with_name("online-retail-2010-2011-sample.csv")
    if not path.exists():
        pytest.skip(f"the sample of the other real file is not at {path}; HOWDAH_RETAIL_FILE names the file beside it")
    return path


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CSV file with a line per argument. Each line is a valid sale with the values of the argument."""

    def write(*lines: Mapping[str, str]) -> Path:
        path = tmp_path / "retail.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(A_SALE))
            writer.writeheader()
            writer.writerows({**A_SALE, **line} for line in lines)
        return path

    return write


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes such a file as Parquet, with the column types of the real file."""

    def write(*lines: Mapping[str, object]) -> Path:
        path = tmp_path / "retail.parquet"
        pl.DataFrame([{**A_TYPED_SALE, **line} for line in lines], schema=TYPES).write_parquet(path)
        return path

    return write


@pytest.fixture
def dump(committed_database: Database) -> Callable[[], Awaitable[Dump]]:
    """Reads all rows that an import writes, without keys, creation times and versions."""

    async def dump() -> Dump:
        async with committed_database.session() as session:
            return {
                name: [tuple(row) for row in await session.execute(text(query))] for name, query in _ALL_ROWS.items()
            }

    return dump


@pytest.fixture
def another_import(committed_database: Database) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Holds the advisory lock of imports during the `async with` block."""

    @asynccontextmanager
    async def another_import() -> AsyncIterator[None]:
        has_its_turn, is_done = asyncio.Event(), asyncio.Event()

        async def hold_lock() -> None:
            async with committed_database.begin() as session:
                await advisory_lock(session, "shop import retail")
                has_its_turn.set()
                await is_done.wait()

        taking = asyncio.create_task(hold_lock())  # in another task, so that the test's task isn't inside a transaction
        await has_its_turn.wait()
        yield
        is_done.set()
        await taking

    return another_import


_ALL_ROWS = {
    "users": "SELECT email, name, country FROM users ORDER BY email",
    "orders": """
        SELECT orders.reference, email, orders.status, orders.currency, orders.total_cents, orders.placed_at,
               cancelled.reference AS cancels, orders.transfer_id
        FROM orders JOIN users ON users.id = orders.user_id
        LEFT JOIN orders AS cancelled ON cancelled.id = orders.cancels_id
        ORDER BY orders.reference
    """,
    "items": """
        SELECT reference, line_no, sku, description, quantity, unit_price_cents
        FROM order_items JOIN orders ON orders.id = order_id
        ORDER BY reference, line_no
    """,
}
