"""What the tables hold: made up, filled in, set back, and summed up to be compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from benchmarks.comparison import same
from howdah import uuid7

_COUNTRIES = ("Denmark", "France", "Germany", "Japan", "United Kingdom")


def people(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Users as they come from outside: without keys, times and versions."""
    return [
        {"email": f"somebody-{n}@example.com", "name": f"Somebody {n}", "country": _COUNTRIES[n % len(_COUNTRIES)]}
        for n in range(first, first + count)
    ]


def shuffled(items: Sequence[Any]) -> list[Any]:
    """In an order that is no table's, the same every time."""
    return random.Random(7).sample(items, len(items))


async def fill_orders(driver: Any, count: int, *, users: int = 1000) -> list[UUID]:
    """So many orders of so many users, and a copy of them for `restore_orders`; their keys, ascending."""
    user_ids = [uuid7() for _ in range(users)]
    order_ids = [uuid7() for _ in range(count)]
    await driver.execute(
        """
        INSERT INTO users (id, email, name, created_at, updated_at, version)
        SELECT id, 'customer-' || number || '@example.com', 'Customer ' || number, now(), now(), 1
        FROM unnest($1::uuid[]) WITH ORDINALITY AS given (id, number)
        """,
        user_ids,
    )
    await driver.execute(
        """
        INSERT INTO orders (id, user_id, status, total_cents, created_at, updated_at, version)
        SELECT id, ($2::uuid[])[1 + number % cardinality($2::uuid[])], 'pending', 100 + number * 7919 % 1000,
            now() - interval '400 days' + number / 10 * interval '1 second', now() - interval '1 day', 1
        FROM unnest($1::uuid[]) WITH ORDINALITY AS given (id, number)
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


async def empty(driver: Any) -> None:
    await driver.execute("TRUNCATE users, orders")
    await driver.execute("VACUUM ANALYZE users, orders")


async def sum_of_people(driver: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """What `sum_of_users` is to be once these rows are in the table."""
    return await driver.fetchval(
        """
        SELECT sum(hashtextextended(concat_ws('|', email, name, country), 0))
        FROM unnest($1::text[], $2::text[], $3::text[]) AS given (email, name, country)
        """,
        *([row[name] for row in rows] for name in ("email", "name", "country")),
    )


async def sum_of_users(driver: Any) -> Any:
    return await driver.fetchval("SELECT sum(hashtextextended(concat_ws('|', email, name, country), 0)) FROM users")


async def check_new_users(driver: Any, count: int) -> None:
    """So many users, each with a key of its own that is a UUIDv7, version 1, and both times of just now."""
    found = await driver.fetchrow(
        """
        SELECT count(DISTINCT id) AS ids, bool_and(uuid_extract_version(id) = 7) AS version_7,
            min(version) AS least, max(version) AS most,
            count(*) FILTER (WHERE created_at BETWEEN now() - interval '1 hour' AND now()
                AND updated_at BETWEEN now() - interval '1 hour' AND now()) AS timed
        FROM users
        """
    )
    same("ids, kind, versions, times of the users", tuple(found), (count, True, 1, 1, count))
