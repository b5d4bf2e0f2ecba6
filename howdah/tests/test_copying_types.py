"""COPY encodes values for the current column types in the database, even if the connection has cached other types."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from ipaddress import ip_address
from typing import Any

import asyncpg
import pytest
from sqlalchemy import (
    ARRAY,
    CHAR,
    JSON,
    BigInteger,
    Boolean,
    Enum,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    Uuid,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import (
    BIT,
    INET,
    INT4MULTIRANGE,
    INT4RANGE,
    JSONB,
    TSVECTOR,
    Range,
)
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, bulk
from howdah.testing import assert_statements
from howdah_tests.support.typed_columns import Point, create_mapped_class, execute, open_one_connection, write


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    [
        (INT4MULTIRANGE(), [Range(1, 3), Range(5, 7)], "{[1,3),[5,7)}"),
        (INT4RANGE(), Range(1, 3), "[1,3)"),
        (INET(), ip_address("10.0.0.1"), "10.0.0.1/32"),
        (BIT(3), asyncpg.BitString("101"), "101"),
        (Interval(), timedelta(days=1, seconds=3), "1 day 00:00:03"),
        (JSONB(), {"a": [1, None]}, '{"a": [1, null]}'),
        (JSON(), None, "null"),
        (LargeBinary(), b"\x00\xff", "\\x00ff"),
        (Boolean(), True, "true"),
        (Uuid(as_uuid=False), "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bcce-b302099a8057"),
        (CHAR(4), "ab", "ab"),
        (Numeric(6, 2), Decimal("1.005"), "1.01"),
        (TSVECTOR(), "cat dog", "'cat' 'dog'"),
        (ARRAY(Integer, dimensions=2), [[1, 2], [3, 4]], "{{1,2},{3,4}}"),
        (Enum("sad", "happy", name="mood"), "sad", "sad"),
        (Point(), (1, "b"), "(1,b)"),
    ],
)
async def test_every_type_is_stored_the_same_for_every_number_of_rows(
    committed_url: str, kind: Any, value: Any, stored: str
) -> None:
    await execute(committed_url, "CREATE TYPE place AS (x bigint, y text)")
    model = create_mapped_class(v=kind)
    async with (
        open_one_connection(committed_url) as database,
        open_one_connection(committed_url, copy=False) as inserting,
    ):
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        for size in (1, 2, 30):
            assert await write(database, model, [value], size) == [(stored,)] * size
            assert await write(inserting, model, [value], size) == [(stored,)] * size


@pytest.mark.parametrize("kind", ["enum", "composite", "array of enum", "bigint"])
async def test_a_connection_without_prepared_statements_copies_too(committed_url: str, kind: str) -> None:
    """This is the case behind a pooler. The driver's queries about unknown types are unnamed statements, too."""
    await execute(committed_url, "CREATE TYPE place AS (x bigint, y text)")
    mood = Enum("sad", "happy", name="mood")
    types: dict[str, tuple[Any, Any, str]] = {
        "enum": (mood, "sad", "sad"),
        "composite": (Point(), (1, "b"), "(1,b)"),
        "array of enum": (ARRAY(mood), ["sad", None], "{sad,NULL}"),
        "bigint": (BigInteger(), 5, "5"),
    }
    column, value, stored = types[kind]
    model = create_mapped_class(v=column)
    url = make_url(committed_url).update_query_dict({"prepared_statement_cache_size": "0"})
    async with Database(url, pool_size=1, connect_args={"statement_cache_size": 0}) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(model.metadata.create_all)
        for size in (30, 1, 1100):
            assert await write(database, model, [value], size) == [(stored,)] * size
        async with database.begin() as session:
            with assert_statements(session, 1) as sent:
                await bulk.insert_many(session, model, [{"v": value}] * 30)
            assert sent[0].startswith("COPY")
            names = await session.scalars(
                text("SELECT name FROM pg_prepared_statements WHERE statement LIKE '%samples%'")
            )
            assert not names.all()


async def test_an_open_cursor_returns_the_right_rows_during_a_copy(session: AsyncSession) -> None:
    """The statement that describes the columns is unnamed, and replaces any other unnamed statement."""
    cursor = await session.stream_scalars(select(func.generate_series(1, 2000)), execution_options={"yield_per": 50})
    model = create_mapped_class(v=BigInteger())
    await (await session.connection()).run_sync(model.metadata.create_all)
    seen = 0
    async for number in cursor:
        seen += 1
        assert number == seen
        if number in (1, 777):
            await bulk.insert_many(session, model, [{"v": 1250}] * 30)
    assert seen == 2000
