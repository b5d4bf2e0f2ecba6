import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Integer, event, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AwareDateTime, Database, LockTimeout, UniqueViolation, bulk
from shop.importing import loading
from shop.importing.classifying import (
    LARGEST_CENTS,
    LARGEST_QUANTITY,
    LONGEST_CODE,
    LONGEST_COUNTRY,
    LONGEST_DESCRIPTION,
)
from shop.importing.loading import Loaded, load
from shop.importing.retail import Customer, RetailFile, read_retail
from shop.orders.models import Order, OrderItem
from shop.users.models import User

WriteFile = Callable[..., Path]
Dump = dict[str, list[tuple[Any, ...]]]
TakeDump = Callable[[], Awaitable[Dump]]
AnotherImport = Callable[[], AbstractAsyncContextManager[None]]

EMPTY: Dump = {"users": [], "orders": [], "items": []}
CANCELLED = {"Quantity": "-2"}


@pytest.fixture
def retail(write_csv: WriteFile) -> RetailFile:
    """Six sales to three customers, three cancellations, and two rejected lines, one of a fourth customer."""
    sales = [
        {"Invoice": f"50000{n}", "Customer ID": str(n % 3 + 1), "StockCode": f"ware {n % 2}"}
        for n in range(6)
        for _line in range(n % 3 + 1)
    ]
    return read_retail(
        write_csv(
            *sales,
            {"Customer ID": "4", "Price": "0"},
            {"Invoice": "A1", "Customer ID": "4"},
            {"Invoice": "C1", "Customer ID": "1", "StockCode": "ware 0", **CANCELLED},
            {"Invoice": "C2", "Customer ID": "2", "StockCode": "ware 0", **CANCELLED},
            {"Invoice": "C3", "Customer ID": "3", "StockCode": "ware 2", **CANCELLED},
        )
    )


def expected_dump(retail: RetailFile) -> Dump:
    """The dump that the import of the file should have."""
    invoices = sorted((each for batch in retail.batches() for each in batch), key=lambda invoice: invoice.reference)
    emails = {customer.number: customer.email for customer in retail.customers}
    users = [(each.email, each.name, each.country) for each in retail.customers]
    return {
        "users": sorted(users),
        "orders": [
            (
                each.reference,
                emails[each.customer_number],
                each.status,
                "GBP",
                each.total_cents,
                each.placed_at,
                each.cancels,
                None,
            )
            for each in invoices
        ],
        "items": [(each.reference, *item) for each in invoices for item in each.items],
    }


async def rows_of(database: Database) -> dict[str, list[Any]]:
    """Every column of every row."""
    async with database.session() as session:
        tables = ("users", "orders", "order_items")
        return {
            table: list((await session.execute(text(f"SELECT * FROM {table} ORDER BY id"))).all()) for table in tables
        }


async def empty(database: Database) -> None:
    async with database.begin() as session:
        for table in ("order_items", "orders", "users"):
            await session.execute(text(f"DELETE FROM {table}"))


async def test_an_invoice_becomes_an_order_with_its_items(
    committed_database: Database, write_csv: WriteFile, dump: TakeDump
) -> None:
    retail = read_retail(
        write_csv(
            {"StockCode": "A", "Price": "1.005"},
            {"StockCode": "B", "Description": "", "Quantity": "3", "Price": "0.001"},
            {"Invoice": "C500002", "StockCode": "A", "Quantity": "-1", "Price": "1.005", "Country": "France"},
        )
    )
    await load(committed_database, retail)
    email, placed_at = "customer-13085@retail.example", datetime(2010, 1, 5, 10, 30, tzinfo=UTC)
    assert await dump() == {
        "users": [(email, "Customer 13085", "France")],
        "orders": [
            ("retail:500001", email, "delivered", "GBP", 202, placed_at, None, None),
            ("retail:C500002", email, "refunded", "GBP", 101, placed_at, "retail:500001", None),
        ],
        "items": [
            ("retail:500001", 1, "A", "SCOTTIE DOG", 2, 101),
            ("retail:500001", 2, "B", None, 3, 0),
            ("retail:C500002", 1, "A", "SCOTTIE DOG", 1, 101),
        ],
    }


@pytest.mark.parametrize("items", [1, 3, 5_000])
async def test_the_whole_file_is_written_for_every_batch_size(
    committed_database: Database, retail: RetailFile, dump: TakeDump, items: int
) -> None:
    steps: list[int] = []
    loaded = await load(committed_database, retail, items=items, advance=steps.append)
    assert await dump() == expected_dump(retail)
    assert loaded == Loaded(users_created=4, users_existing=0, orders_created=9, orders_existing=0, differing=[])
    assert sum(steps) == retail.summary.sale_lines + retail.summary.cancellation_lines == 15
    assert len(steps) == len(list(retail.batches(items=items)))


async def test_cancellations_are_linked_to_sales_of_other_batches(
    committed_database: Database, retail: RetailFile, dump: TakeDump
) -> None:
    await load(committed_database, retail, items=1)
    orders = (await dump())["orders"]
    assert {(order[0], order[2], order[6]) for order in orders if order[2] != "delivered"} == {
        ("retail:C1", "cancelled", "retail:500000"),
        ("retail:C2", "refunded", "retail:500004"),
        ("retail:C3", "refunded", None),
    }


async def test_a_second_import_changes_nothing(committed_database: Database, retail: RetailFile) -> None:
    await load(committed_database, retail)
    first = await rows_of(committed_database)
    again = await load(committed_database, retail)
    assert again == Loaded(users_created=0, users_existing=4, orders_created=0, orders_existing=9, differing=[])
    assert await rows_of(committed_database) == first


async def test_a_longer_file_adds_its_new_orders_and_links_them_to_existing_ones(
    committed_database: Database, write_csv: WriteFile, dump: TakeDump
) -> None:
    cancellation = {"Invoice": "C500001", "Quantity": "-2"}
    await load(committed_database, read_retail(write_csv({})))
    longer = read_retail(write_csv({}, {"Invoice": "500002", "Customer ID": "7", "StockCode": "B"}, cancellation))
    loaded = await load(committed_database, longer)
    assert loaded == Loaded(users_created=1, users_existing=1, orders_created=2, orders_existing=1, differing=[])
    assert await dump() == expected_dump(longer)


async def test_an_order_with_another_total_is_unchanged_and_reported(
    committed_database: Database, write_csv: WriteFile
) -> None:
    await load(committed_database, read_retail(write_csv({}, {"Invoice": "500002"})))
    before = await rows_of(committed_database)
    loaded = await load(committed_database, read_retail(write_csv({}, {"Invoice": "500002", "Quantity": "3"})))
    assert loaded == Loaded(
        users_created=0, users_existing=1, orders_created=0, orders_existing=2, differing=["retail:500002"]
    )
    assert await rows_of(committed_database) == before


async def test_a_user_with_the_address_of_a_customer_is_unchanged_and_gets_the_orders(
    committed_database: Database, write_csv: WriteFile, dump: TakeDump
) -> None:
    async with committed_database.begin() as session:
        session.add(User(email="customer-13085@retail.example", name="Ada", country=None))
    await load(committed_database, read_retail(write_csv({})))
    found = await dump()
    assert found["users"] == [("customer-13085@retail.example", "Ada", None)]
    assert [order[1] for order in found["orders"]] == ["customer-13085@retail.example"]


async def test_a_customer_with_only_rejected_lines_becomes_a_user(
    committed_database: Database, write_csv: WriteFile, dump: TakeDump
) -> None:
    await load(committed_database, read_retail(write_csv({"Price": "-1"})))
    expected = ("customer-13085@retail.example", "Customer 13085", "United Kingdom")
    assert await dump() == {**EMPTY, "users": [expected]}


async def test_a_file_without_lines_writes_nothing(
    committed_database: Database, write_csv: WriteFile, dump: TakeDump
) -> None:
    loaded = await load(committed_database, read_retail(write_csv()))
    assert loaded == Loaded(users_created=0, users_existing=0, orders_created=0, orders_existing=0, differing=[])
    assert await dump() == EMPTY


async def test_more_customers_than_a_batch_are_written(
    committed_database: Database, write_csv: WriteFile, dump: TakeDump
) -> None:
    retail = read_retail(write_csv(*({"Invoice": f"{n}", "Customer ID": f"{n}"} for n in range(2001))))
    loaded = await load(committed_database, retail)
    assert (loaded.users_created, loaded.orders_created) == (2001, 2001)
    assert await dump() == expected_dump(retail)


async def test_a_cancelled_import_leaves_whole_invoices_and_the_next_one_finishes(
    committed_database: Database, retail: RetailFile, dump: TakeDump
) -> None:
    """The import is cancelled at its first statement, then at its second, and so on, until one import finishes."""
    expected = expected_dump(retail)
    batches = [len(invoices) for invoices in retail.batches(items=6)]
    order_counts = set[int]()
    for statement in range(1, 1000):
        await empty(committed_database)
        if not await cancel_at_statement(statement, committed_database, load(committed_database, retail, items=6)):
            break
        part = await dump()
        assert all(row in expected[name] for name, rows in part.items() for row in rows)
        references = {order[0] for order in part["orders"]}
        assert part["items"] == [item for item in expected["items"] if item[0] in references]
        order_counts.add(len(references))
        await load(committed_database, retail, items=6)
        assert await dump() == expected
    assert order_counts == {0, *accumulate(batches[:-1])}
    assert statement > 4 * len(batches)


async def cancel_at_statement(number: int, database: Database, work: Awaitable[object]) -> bool:
    """Run `work`, and cancel it while it executes the statement of this number. Returns whether there was one."""
    task = asyncio.ensure_future(work)
    sent = 0

    def count(*_arguments: object) -> None:
        nonlocal sent
        sent += 1
        if sent == number:
            task.cancel()

    event.listen(database.engine.sync_engine, "before_cursor_execute", count)
    try:
        await asyncio.wait([task])
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", count)
    if not task.cancelled():
        task.result()
    return task.cancelled()


async def test_concurrent_imports_write_everything_once(
    committed_database: Database, retail: RetailFile, dump: TakeDump
) -> None:
    loads = await asyncio.gather(*(load(committed_database, retail, items=1) for _ in range(4)))
    assert sum(loaded.users_created for loaded in loads) == 4
    assert sum(loaded.orders_created for loaded in loads) == 9
    assert {loaded.orders_created + loaded.orders_existing for loaded in loads} == {9}
    assert await dump() == expected_dump(retail)


async def test_without_the_advisory_lock_one_of_two_imports_fails_and_nothing_is_duplicated(
    committed_database: Database, retail: RetailFile, dump: TakeDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_have_looked = asyncio.Barrier(2)
    insert_many = bulk.insert_many

    async def take_no_lock(*_arguments: object) -> None: ...

    async def insert_when_both_have_looked(session: AsyncSession, model: Any, rows: Any, **options: Any) -> Any:
        if model is Order:
            await asyncio.wait_for(both_have_looked.wait(), 10)
        return await insert_many(session, model, rows, **options)

    monkeypatch.setattr(loading, "advisory_lock", take_no_lock)
    monkeypatch.setattr(bulk, "insert_many", insert_when_both_have_looked)
    results = await asyncio.gather(*(load(committed_database, retail) for _ in range(2)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Loaded", UniqueViolation.__name__]
    assert await dump() == expected_dump(retail)


async def test_an_import_raises_lock_timeout_while_another_one_runs(
    committed_url: str,
    retail: RetailFile,
    dump: TakeDump,
    another_import: AnotherImport,
) -> None:
    async with Database(committed_url, lock_timeout=0.05) as impatient, another_import():
        with pytest.raises(LockTimeout):
            await load(impatient, retail)
    assert await dump() == EMPTY


def test_the_columns_are_large_enough_for_accepted_values() -> None:
    def length(attribute: Any) -> int:
        return int(attribute.type.length)

    longest = Customer(10**18 - 1, None)
    assert length(User.email) >= len(longest.email)
    assert length(User.name) >= len(longest.name)
    assert length(User.country) == LONGEST_COUNTRY
    assert length(Order.reference) >= len("retail:") + LONGEST_CODE
    assert length(OrderItem.sku) >= LONGEST_CODE
    assert length(OrderItem.description) == LONGEST_DESCRIPTION
    assert type(OrderItem.line_no.type) is type(OrderItem.quantity.type) is Integer
    assert type(OrderItem.unit_price_cents.type) is type(Order.total_cents.type) is BigInteger
    assert type(Order.placed_at.type) is AwareDateTime


async def test_the_largest_values_are_stored_unchanged(
    committed_database: Database, write_csv: WriteFile, dump: TakeDump
) -> None:
    longest = {
        "Invoice": "C" + "\U0001f418" * (LONGEST_CODE - 1),
        "StockCode": "\U0001f418" * LONGEST_CODE,
        "Description": "\U0001f418" * LONGEST_DESCRIPTION,
        "Country": "\U0001f418" * LONGEST_COUNTRY,
        "Customer ID": "9" * 18,
        "Quantity": "-1",
    }
    retail = read_retail(
        write_csv(
            longest,
            {"Quantity": str(LARGEST_QUANTITY), "InvoiceDate": "9999-12-31 23:59:59.999998"},
            {"Invoice": "2", "Quantity": "1", "Price": f"{LARGEST_CENTS // 100}.{LARGEST_CENTS % 100:02}"},
            {"Invoice": "3", "Price": "1e-300", "InvoiceDate": "1000-01-01 00:00:00"},
        )
    )
    assert retail.summary.rejected == {}
    await load(committed_database, retail)
    found = await dump()
    assert found == expected_dump(retail)
    assert max(order[4] for order in found["orders"]) == LARGEST_CENTS
