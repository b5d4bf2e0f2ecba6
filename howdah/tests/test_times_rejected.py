"""Naive values and values out of range are rejected, on writing and on reading."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import ARRAY, DateTime, func, literal, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AwareDateTime, Database, InvalidValue, OutOfRange, utcnow
from howdah_tests.support.moment_writes import WAYS, writable, write
from howdah_tests.support.moments import (
    AWARE,
    GREATEST,
    LOCAL_GREATEST,
    LOCAL_LEAST,
    NAIVE,
    WITH_ZONE,
    Moment,
)


def with_naive(name: str, value: Any) -> dict[str, Any]:
    """The values of a row for this attribute, with a naive value in it."""
    return {
        "at": {"at": value},
        "plain_at": {"plain_at": value},
        "ats": {"ats": [AWARE, value]},
        "plain_ats": {"plain_ats": [value]},
        "span": {"span": Range(value, GREATEST)},
        "spans": {"spans": MultiRange([Range(None, value)])},
        "span_array": {"span_array": [Range(value, None)]},
        "clock_with_zone": {"clock_with_zone": time(12)},
        "period": {"begins": AWARE, "ends": value},
    }[name]


@pytest.mark.parametrize("value", [NAIVE, date(2026, 1, 1), LOCAL_GREATEST], ids=["naive", "date", "greatest"])
@pytest.mark.parametrize("name", WITH_ZONE)
async def test_naive_values_are_rejected_by_every_write_and_criterion(
    moments: AsyncSession, name: str, value: Any
) -> None:
    for way in WAYS:
        for count in (1, 25, 1100) if name == "plain_at" else (1, 25):
            nothing = dict.fromkeys(with_naive(name, value))
            rows = [{"id": id, **writable(way, nothing)} for id in range(count - 1)]
            rows.append({"id": count, **writable(way, with_naive(name, value))})
            if len(rows[-1]) > 1:
                with pytest.raises(InvalidValue, match=r"without (a time zone|an offset)") as caught:
                    async with moments.begin_nested():
                        await write(moments, way, rows)
                moments.expunge_all()
                assert caught.value.row_index == (count - 1 if way.endswith("_many") else None)
    if name == "period":
        return
    column, naive = getattr(Moment, name), with_naive(name, value)[name]
    criteria = [column == naive, column.in_([naive]), column != naive]
    if name == "plain_at" and type(value) is date:
        return  # SQLAlchemy sends a date, and PostgreSQL compares with its midnight in UTC
    if name in {"at", "plain_at", "clock_with_zone"}:
        criteria += [column > naive, column.between(naive, naive)]
    if name in {"span", "spans"}:
        criteria += [column.overlaps(naive), column.contains(naive)]
    for criterion in criteria:
        with pytest.raises(InvalidValue, match=r"without (a time zone|an offset)"):
            await moments.execute(select(Moment).where(criterion))


@pytest.mark.parametrize(
    "statement",
    [
        select(Moment).where(Moment.plain_at > NAIVE),
        select(Moment).where(Moment.at == func.any([NAIVE], type_=ARRAY(AwareDateTime))),
        select(Moment).where(tuple_(Moment.id, Moment.plain_at) > (1, NAIVE)),
        select(Moment.plain_at - NAIVE),
        select(literal(NAIVE, DateTime(timezone=True))),
        update(Moment).values(plain_at=NAIVE),
    ],
    ids=lambda statement: str(statement)[-50:],
)
async def test_naive_values_are_rejected_anywhere_in_a_statement(moments: AsyncSession, statement: Any) -> None:
    with pytest.raises(InvalidValue, match="without a time zone"):
        await moments.execute(statement)


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("SELECT 1 FROM moments WHERE at > :value", NAIVE),
        ("SELECT 1 FROM moments WHERE at = ANY (:value)", [NAIVE]),
        ("SELECT CAST(:value AS timestamptz)", date(2026, 1, 1)),
    ],
)
async def test_naive_values_are_rejected_in_text_statements(moments: AsyncSession, statement: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match="without a time zone"):
        await moments.execute(text(statement), {"value": value})


async def test_a_naive_literal_is_a_timestamp_in_utc(session: AsyncSession) -> None:
    """It is sent as `timestamp`, which PostgreSQL converts to `timestamptz` in the time zone of the session."""
    assert await session.scalar(select(literal(AWARE) == literal(NAIVE)))
    difference = await session.scalar(select(func.now() - literal(utcnow().replace(tzinfo=None))))
    assert difference is not None
    assert difference < timedelta(seconds=5)


@pytest.mark.parametrize(
    ("statement", "value", "says"),
    [
        ("SELECT CAST(:value AS timestamp)", AWARE, "use timestamptz"),
        ("SELECT CAST(:value AS timestamp)", 1, "for a timestamp: pass a datetime"),
        ("SELECT CAST(:value AS date)", AWARE, r"use its \.date\(\)"),
        ("SELECT CAST(:value AS time)", time(12, tzinfo=UTC), "a time with a time zone"),
        ("SELECT CAST(:value AS time)", AWARE, "a datetime was rejected"),
        ("SELECT CAST(:value AS timetz)", time(12, tzinfo=ZoneInfo("Europe/Berlin")), "depends on the date"),
        ("SELECT CAST(:value AS timetz)", time(12, tzinfo=timezone(timedelta(microseconds=1))), "whole seconds"),
        ("SELECT CAST(:value AS interval)", 5, "for an interval: pass a timedelta"),
    ],
)
async def test_a_value_that_would_lose_a_part_is_rejected(
    session: AsyncSession, statement: str, value: Any, says: str
) -> None:
    with pytest.raises(InvalidValue, match=says):
        await session.execute(text(statement), {"value": value})


@pytest.mark.parametrize(("value", "hours"), [(LOCAL_GREATEST, -5), (LOCAL_LEAST, 5)])
async def test_a_time_that_is_out_of_range_in_utc_is_rejected(
    session: AsyncSession, value: datetime, hours: int
) -> None:
    value = value.replace(tzinfo=timezone(timedelta(hours=hours)))
    with pytest.raises(OutOfRange, match="in UTC"):
        await session.execute(select(literal(value, AwareDateTime)))


BEYOND = [
    "timestamptz '10000-01-01 00:00+00'",
    "timestamptz '0044-03-15 BC'",
    "timestamptz '9999-12-31 23:59:59.999999+00'",
    "timestamptz '0001-01-01 00:00:00+00'",
    "timestamp '294276-12-31 23:59:59'",
    "timestamp '4713-01-01 BC'",
    "ARRAY[timestamptz '10000-01-01']",
    "tstzrange('10000-01-01', NULL)",
    "tstzmultirange(tstzrange('10000-01-01', NULL))",
    "ROW(timestamptz '10000-01-01')",
    "date '10000-01-01'",
    "date '0001-12-31 BC'",
    "daterange('2020-01-01', '9999-12-31', '[]')",
    "time '24:00'",
    "timetz '24:00+00'",
    "interval '1000000000 days'",
    "interval '10000000 years'",
]


@pytest.mark.parametrize("value", BEYOND)
async def test_a_value_that_python_cannot_represent_is_out_of_range(value: str, session: AsyncSession) -> None:
    with pytest.raises(OutOfRange, match="can't be read"):
        await session.execute(text(f"SELECT {value}"))
    with pytest.raises(OutOfRange, match="can't be read"):
        async for _ in await session.stream(text(f"SELECT {value}")):
            pass
    assert await session.scalar(text("SELECT 1")) == 1


async def test_a_connection_is_usable_after_a_value_that_cannot_be_read(real_database: Database) -> None:
    for value in BEYOND:
        with pytest.raises(OutOfRange):
            await real_database.read(lambda connection, value=value: connection.execute(text(f"SELECT {value}")))  # type: ignore[misc]
        async with real_database.session() as session:
            for _ in range(2):
                assert await session.scalar(text("SELECT now()")) <= utcnow()
