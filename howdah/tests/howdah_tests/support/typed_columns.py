"""A table with columns of any type, and functions that write and read it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import asyncpg
from sqlalchemy import (
    ColumnElement,
    Select,
    literal_column,
    make_url,
    select,
    text,
)
from sqlalchemy.orm import mapped_column
from sqlalchemy.schema import MetaData
from sqlalchemy.types import UserDefinedType

from howdah import Base, Database, UUIDv7PrimaryKey, bulk

# Fewer than 20 rows are inserted, more are copied, a thousand at a time.
SIZES = [1, 30, 1100]

numbers = itertools.count(1)


class Point(UserDefinedType[Any]):
    """A composite type, which SQLAlchemy sends without a cast."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "place"


def create_mapped_class(**columns: Any) -> Any:
    """A mapped class of the table `samples` with these columns besides its key."""

    class Separate(Base):
        __abstract__ = True
        metadata = MetaData()

    attributes = {name: mapped_column(kind, nullable=True) for name, kind in columns.items()}
    return type(f"Sample{next(numbers)}", (UUIDv7PrimaryKey, Separate), {"__tablename__": "samples", **attributes})


async def execute(url: str, *statements: str) -> None:
    """Execute the statements on a new connection."""
    connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def open_one_connection(url: str, **options: Any) -> Database:
    return Database(url, pool_size=1, max_overflow=0, **options)


def as_text(model: Any) -> Select[Any]:
    columns: list[ColumnElement[Any]] = [
        literal_column(column.name + "::text") for column in model.__table__.c if not column.primary_key
    ]
    return select(*columns).select_from(model).order_by(*columns)


async def write(database: Database, model: Any, values: Sequence[Any], count: int) -> list[Any]:
    """Write that many rows, read all of them as text, and empty the table."""
    rows = [{"v": values[i % len(values)]} for i in range(count)]
    async with database.begin() as session:
        assert (await bulk.insert_many(session, model, rows)).count == count
        found = [*await session.execute(as_text(model))]
        await session.execute(text("DELETE FROM samples"))
    return found
