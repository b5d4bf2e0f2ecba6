"""The ways to write rows of the table `moments`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import bulk
from howdah_tests.support.moments import Moment

WAYS = ["flush", "core", "insert_many", "update_many", "upsert_many"]
# unnest would flatten an array of arrays
NOT_IN_ARRAYS = {"ats", "plain_ats", "spans", "span_array", "clocks", "days", "day_spans"}


def writable(way: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values that can be written in this way."""
    by_array = way in {"update_many", "upsert_many"}
    return {name: value for name, value in values.items() if not (by_array and name in NOT_IN_ARRAYS)}


async def write(session: AsyncSession, way: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows, which don't exist yet."""
    match way:
        case "flush":
            session.add_all(Moment(**row) for row in rows)
            await session.flush()
            session.expunge_all()
        case "core":
            await session.execute(insert(Moment), rows)
        case "insert_many":
            await bulk.insert_many(session, Moment, rows)
        case "update_many":
            await bulk.insert_many(session, Moment, [{"id": row["id"]} for row in rows])
            await bulk.update_many(session, Moment, rows)
        case "upsert_many":
            await bulk.upsert_many(session, Moment, [{"id": row["id"]} for row in rows[::2]], on=["id"])
            await bulk.upsert_many(session, Moment, rows, on=["id"])
