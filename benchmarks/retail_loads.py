"""The contenders of `retail_import`. Each runs in a new process, in a database with Shop's tables."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import make_url

import shop.tables  # noqa: F401 (tables refer to each other)
from benchmarks.processes import measure_block
from howdah import Database, utcnow, uuid7
from shop import migrations
from shop.importing.loading import CURRENCY, load
from shop.importing.retail import RetailFile, read_retail
from shop.memory import freeze_loaded_objects

COLUMNS = {
    "users": "id email name country created_at updated_at version",
    "orders": "id user_id reference status currency total_cents placed_at cancels_id created_at updated_at version",
    "order_items": "id order_id line_no sku description quantity unit_price_cents",
}


async def import_(url: str, file: Path) -> None:
    async with Database(url) as database:
        await database.ping()
        async with measure_block(from_zero=True) as restart_clock:
            retail = read_retail(file)
            freeze_loaded_objects()  # `shop import` does this, too
            restart_clock()
            await load(database, retail)


async def copy(url: str, file: Path) -> None:
    connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))
    async with measure_block(from_zero=True) as restart_clock:
        tuples = _tuples(read_retail(file))
        freeze_loaded_objects()
        restart_clock()
        async with connection.transaction():
            for table, columns in COLUMNS.items():
                await connection.copy_records_to_table(table, records=tuples[table], columns=columns.split())
    await connection.close()


def _tuples(retail: RetailFile) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of each table, ready for COPY."""
    now = utcnow()
    users = {customer.number: uuid7() for customer in retail.customers}
    invoices = [invoice for batch in retail.batches() for invoice in batch]
    orders = {invoice.reference: uuid7() for invoice in invoices}
    return {
        "users": [(users[each.number], each.email, each.name, each.country, now, now, 1) for each in retail.customers],
        "orders": [
            (
                orders[each.reference],
                users[each.customer_number],
                each.reference,
                each.status,
                CURRENCY,
                each.total_cents,
                each.placed_at,
                None if each.cancels is None else orders[each.cancels],
                now,
                now,
                1,
            )
            for each in invoices
        ],
        "order_items": [(uuid7(), orders[each.reference], *item) for each in invoices for item in each.items],
    }


async def _migrate() -> None:
    async with measure_block(from_zero=True):
        await asyncio.to_thread(migrations.upgrade, sys.argv[2])


if __name__ == "__main__":
    _, action, url, file = sys.argv
    loads = {"shop": lambda: import_(url, Path(file)), "copy": lambda: copy(url, Path(file)), "migrate": _migrate}
    asyncio.run(loads[action]())
