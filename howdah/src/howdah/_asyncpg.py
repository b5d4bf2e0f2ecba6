"""What asyncpg has no public name for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


async def copy_in(connection: Any, statement: str, columns: Any, records: Iterable[Any]) -> int:
    """Run `COPY … FROM STDIN (FORMAT binary)` on the driver's connection; how many rows PostgreSQL has written. The
    records are encoded for the columns that the prepared statement `columns` returns.

    The public way is `copy_records_to_table`. It takes the column types from the driver's cache of prepared statements
    (<https://github.com/MagicStack/asyncpg/pull/1360>), which no ALTER TABLE and no other `search_path` invalidates:
    the bytes of an integer are then stored as a double. A statement of `prepare` is never taken from that cache.
    """
    status: str = await connection._protocol.copy_in(statement, None, None, records, columns._state, None)
    return int(status.rpartition(" ")[2])
