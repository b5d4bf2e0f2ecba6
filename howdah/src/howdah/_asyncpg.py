"""Calls of asyncpg functions that have no public name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


async def copy_in(connection: Any, statement: str, columns: Any, records: Iterable[Any]) -> int:
    """Run `COPY … FROM STDIN (FORMAT binary)` on the driver's connection, and return how many rows were written.

    The records are encoded for the columns that the prepared statement `columns` returns.

    The public function is `copy_records_to_table`. It takes the column types from the driver's cache of prepared
    statements (<https://github.com/MagicStack/asyncpg/pull/1360>). Neither ALTER TABLE nor a change of `search_path`
    invalidates that cache, so the bytes of an integer could be stored as a double. `prepare` doesn't use the cache.
    """
    status: str = await connection._protocol.copy_in(statement, None, None, records, columns._state, None)
    return int(status.rpartition(" ")[2])
