"""Generate and insert the rows of the tables, restore them before each run, and check them after it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from benchmarks.comparison import check_equal
from howdah import uuid7

_COUNTRIES = ("Denmark", "France", "Germany", "Japan", "United Kingdom")


def user_rows(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Users as dicts, as an API receives them: without keys, timestamps and versions."""
    return [
        {"email": f"somebody-{n}@example.com", "name": f"Somebody {n}", "country": _COUNTRIES[n % len(_COUNTRIES)]}
        for n in range(first, first + count)
    ]


def shuffle(items: Sequence[Any]) -> list[Any]:
    """The items in a random order that is the same in every run."""
    return random.Random(7).sample(items, len(items))


async def fill_orders(driver: Any, count: int, *, users: int = 1000) -> list[UUID]:
    """Insert `count` orders of `users` users, and a copy of the orders for `restore_orders`. Returns the keys of the
    orders, ascending."""
    user_ids = [uuid7() for _ in range(users)]
    order_ids = [uuid7() for _ in range(count)]
    await driver.execute(
        """
        INSERT INTO users (id, email, name, created_at, updated_at, version)
        SELECT id, 'customer-' || number || '@example.com', 'Customer ' || number, now(), now(), 1
        FROM unnest($1::uuid[]) WITH ORDINALITY AS input (id, number)
        """,
        user_ids,
    )
    await driver.execute(
        """
        INSERT INTO orders (id, user_id, status, total_cents, created_at, updated_at, version)
        SELECT id, ($2::uuid[])[1 + number % cardinality($2::uuid[])], 'pending', 100 + number * 7919 % 1000,
            now() - interval '400 days' + number / 10 * interval '1 second', now() - interval '1 day', 1
        FROM unnest($1::uuid[]) WITH ORDINALITY AS input (id, number)
        """,
        order_ids,
        user_ids,
    )
    await driver.execute("DROP TABLE IF EXISTS orders_before")
    await driver.execute("CREATE TABLE orders_before AS SELECT * FROM orders")
    await driver.execute("VACUUM ANALYZE")
    return order_ids


async def restore_orders(driver: Any) -> None:
    await driver.execute("TRUNCATE orders")
    await driver.execute("INSERT INTO orders SELECT * FROM orders_before ORDER BY id")
    await driver.execute("VACUUM ANALYZE orders")


async def empty_tables(driver: Any) -> None:
    await driver.execute("TRUNCATE users, orders")
    await driver.execute("VACUUM ANALYZE users, orders")


async def checksum_of_rows(driver: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """The value of `checksum_of_users` for a table with exactly these rows."""
    return await driver.fetchval(
        """
        SELECT sum(hashtextextended(concat_ws('|', email, name, country), 0))
        FROM unnest($1::text[], $2::text[], $3::text[]) AS input (email, name, country)
        """,
        *([row[name] for row in rows] for name in ("email", "name", "country")),
    )


async def checksum_of_users(driver: Any) -> Any:
    return await driver.fetchval("SELECT sum(hashtextextended(concat_ws('|', email, name, country), 0)) FROM users")


async def check_new_users(driver: Any, count: int) -> None:
    """Raise `WrongResult` unless the table has `count` users, each with a distinct UUIDv7, version 1 and current
    timestamps."""
    found = await driver.fetchrow(
        """
        SELECT count(DISTINCT id) AS ids, bool_and(uuid_extract_version(id) = 7) AS version_7,
            min(version) AS least, max(version) AS most,
            count(*) FILTER (WHERE created_at BETWEEN now() - interval '1 hour' AND now()
                AND updated_at BETWEEN now() - interval '1 hour' AND now()) AS timed
        FROM users
        """
    )
    check_equal(
        "count of ids, all UUIDv7, lowest and highest version, count of timestamps",
        tuple(found),
        (count, True, 1, 1, count),
    )
