"""The complete real file is imported into the database. Skipped without the file."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sqlalchemy import func, select, text

from howdah import Database
from shop.orders.models import Order, OrderStatus
from shop.user_orders.service import get_user_order_summary
from shop.users.models import User
from shop.users.repository import UserRepository

IMPORT_AND_MEASURE = """
import sys
from pathlib import Path
from shop.cli import main

try:
    main()
finally:
    status = Path("/proc/self/status")
    if status.exists():
        peak = dict(line.split(":", 1) for line in status.read_text().splitlines())["VmHWM"]
        print("peak:", int(peak.split()[0]) // 1024, "MB", file=sys.stderr)
"""


async def shop_import(file: Path, url: str, folder: Path) -> tuple[str, str]:
    # measuring coverage would be too slow
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", IMPORT_AND_MEASURE, "import", "retail", file),
        cwd=folder,
        env={**environment, "SHOP_OWNER_DATABASE_URL": url},
        stdout=PIPE,
        stderr=PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode(), stderr.decode()


def orders_of_customer(lines: pl.DataFrame, customer: int) -> dict[str, tuple[int, int]]:
    """The number and the total in pence of the sales and of the cancellations, computed without the importer."""
    is_cancellation = pl.col("Invoice").str.starts_with("C")
    amount = (pl.col("Price") * 100 + 0.5).floor().cast(pl.Int64) * pl.col("Quantity").abs()
    lines_of_customer = lines.filter((pl.col("Customer ID") == customer) & (pl.col("Price") > 0))

    def total(selected: pl.DataFrame) -> tuple[int, int]:
        return selected["Invoice"].n_unique(), int(selected.select(amount.sum()).item())

    return {
        "sales": total(lines_of_customer.filter(~is_cancellation & (pl.col("Quantity") > 0))),
        "cancellations": total(lines_of_customer.filter(is_cancellation & (pl.col("Quantity") < 0))),
    }


@pytest.mark.timeout(300)
async def test_the_real_file_is_imported_completely_and_once(
    real_file: Path, committed_database: Database, committed_url: str, tmp_path: Path
) -> None:
    summary, messages = await shop_import(real_file, committed_url, tmp_path)
    print(messages)
    counts = [int(count.replace(",", "")) for count in re.findall(r"^ *\D+?  +([\d,]+)", summary, re.MULTILINE)]
    all_lines, sale_lines, cancellation_lines, rejected, *_ = counts
    assert all_lines == 525_461 == sale_lines + cancellation_lines + rejected
    rejects = pl.read_csv(tmp_path / f"{real_file.name}.rejects.csv", infer_schema=False)
    assert rejects.height == rejected == 107_958
    if sys.platform == "linux":
        peak = re.search(r"^peak: (\d+) MB$", messages, re.MULTILINE)
        assert peak is not None
        assert int(peak[1]) < 400

    async with committed_database.session() as session:
        sales = select(func.count(), func.sum(Order.total_cents)).where(Order.status == OrderStatus.DELIVERED)
        assert tuple((await session.execute(sales)).one()) == (19_213, 883_200_326)
        assert await session.scalar(select(func.count()).select_from(User)) == 4_383
        wrong_totals = """
            SELECT count(*) FROM orders JOIN (
                SELECT order_id, sum(quantity * unit_price_cents) AS total_cents, count(*) AS items,
                       max(line_no) AS last_no
                FROM order_items GROUP BY order_id
            ) AS sums ON orders.id = order_id
            WHERE orders.total_cents <> sums.total_cents OR items <> last_no
        """
        assert await session.scalar(text(wrong_totals)) == 0
        items = await session.scalar(text("SELECT count(*) FROM order_items"))
        assert items == sale_lines + cancellation_lines == 417_503

        lines = pl.read_parquet(real_file)
        by_customer = lines.group_by("Customer ID").len().drop_nulls().sort("len", "Customer ID")["Customer ID"]
        for customer in map(int, [*by_customer[:3], *by_customer[-3:], *by_customer[:: len(by_customer) // 20]]):
            await assert_summary_agrees(session, lines, customer)
        before = await fingerprint(session)

    again, _ = await shop_import(real_file, committed_url, tmp_path)
    assert re.findall(r"created +(\S+)\n +existing +(\S+)", again) == [("0", "4,383"), ("0", "23,585")]
    async with committed_database.session() as session:
        assert await fingerprint(session) == before


async def assert_summary_agrees(session: Any, lines: pl.DataFrame, customer: int) -> None:
    user = await UserRepository(session).get_by_email(f"customer-{customer}@retail.example")
    assert user is not None
    found = await get_user_order_summary(session, user.id)
    assert found is not None
    expected = orders_of_customer(lines, customer)
    orders, cents = expected["sales"]
    assert (found["total_orders"], found["total_spent_cents"]) == (orders, cents)
    assert found["avg_order_cents"] == (cents / orders if orders else 0)
    reversed_amount = [found["by_status"].get(status) for status in (OrderStatus.CANCELLED, OrderStatus.REFUNDED)]
    assert (
        sum(each.orders for each in reversed_amount if each is not None),
        sum(each.total_cents for each in reversed_amount if each is not None),
    ) == expected["cancellations"]


async def fingerprint(session: Any) -> list[Any]:
    """Changes with every write: a row that is written gets another transaction id in `xmin`."""
    tables = ("users", "orders", "order_items")
    return [
        (await session.execute(text(f"SELECT count(*), max(xmin::text::bigint) FROM {table}"))).one()
        for table in tables
    ]
