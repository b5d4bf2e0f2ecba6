"""Every `timestamptz` is aware, and values of all time types are read as they were written."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import func, inspect, literal, select, text
from sqlalchemy.dialects.postgresql import JSONB, Range
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import (
    INFINITY,
    MINUS_INFINITY,
    AsyncRepository,
    AwareDateTime,
    InvalidValue,
    utcnow,
)
from howdah_tests.support.moment_writes import WAYS, writable, write
from howdah_tests.support.moments import (
    AWARE,
    GREATEST,
    LEAST,
    LOCAL_GREATEST,
    LOCAL_LEAST,
    NAIVE,
    ROWS,
    VALUES,
    WITH_ZONE,
    Moment,
    Period,
)
from howdah_tests.support.savepoints import rollback_at_end


def in_utc(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [in_utc(item) for item in value]
    if isinstance(value, Range):
        return Range(in_utc(value.lower), in_utc(value.upper), bounds=value.bounds, empty=value.empty)
    return value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo is not None else value


def times_in(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [each for item in value for each in times_in(item)]
    if isinstance(value, Range):
        return times_in([value.lower, value.upper])
    if isinstance(value, Period):
        return times_in([value.begins, value.ends])
    return [value] if isinstance(value, datetime | date | time) else []


without_deadline = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def assert_same(found: dict[str, Any], row: dict[str, Any]) -> None:
    for name, value in row.items():
        # in the repeated hour at the end of DST, Python finds the same moment in two zones unequal
        assert in_utc(found[name]) == in_utc(value), name
        kinds = [type(each) for each in times_in(found[name])]
        assert kinds == [type(each) for each in times_in(value)], name  # an infinite date stays infinite
        if name in WITH_ZONE:
            assert all(each.tzinfo is not None for each in times_in(found[name])), name


async def assert_stored(session: AsyncSession, rows: list[dict[str, Any]]) -> None:
    """Check the stored rows: read as objects, as columns, and as streams."""
    by_id = {row["id"]: row for row in rows}
    columns = [getattr(Moment, name) for name in ("id", *VALUES)]
    found = (await session.scalars(select(Moment))).all()
    assert len(found) == len(rows)
    for moment in found:
        assert_same(moment.__dict__, by_id[moment.id])
        assert times_in(moment.period) == times_in([moment.begins, moment.ends])
    for row in await session.execute(select(*columns)):
        assert_same(row._asdict(), by_id[row.id])
    async for row in await session.stream(select(*columns)):
        assert_same(row._asdict(), by_id[row.id])
    async for moment in AsyncRepository(session, Moment).stream(select(Moment)):
        assert_same(moment.__dict__, by_id[moment.id])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
@settings(without_deadline, max_examples=settings().max_examples // 5)
@given(rows=ROWS)
async def test_any_values_are_read_back_unchanged(moments: AsyncSession, way: str, rows: list[Any]) -> None:
    rows = [{"id": id, **writable(way, row)} for id, row in enumerate(rows)]
    async with rollback_at_end(moments):
        await write(moments, way, rows)
        await assert_stored(moments, rows)


EDGES: dict[str, Any] = {
    "at": GREATEST,
    "plain_at": LEAST,
    "ats": [LEAST, AWARE, GREATEST],
    "plain_ats": [GREATEST, None],
    "span": Range(AWARE, GREATEST, bounds="[]"),
    "spans": MultiRange([Range(LEAST, AWARE, bounds="[)")]),
    "span_array": [Range(None, GREATEST, bounds="()"), Range(empty=True)],
    "clock_with_zone": time(12, tzinfo=timezone(timedelta(hours=5.5))),
    "begins": AWARE,
    "ends": GREATEST,
    "local": LOCAL_GREATEST,
    "local_span": Range(LOCAL_LEAST, None, bounds="[)"),
    "clock": time.max,
    "clocks": [time.min],
    "day": INFINITY,
    "days": [MINUS_INFINITY, date.min, date.max, INFINITY],
    "day_spans": MultiRange([Range(date.min, date(2020, 1, 1), bounds="[)")]),
    "length": timedelta.min,
}


@pytest.mark.parametrize("count", [1, 25, 1100])
@pytest.mark.parametrize("way", WAYS)
async def test_infinities_are_read_back_for_any_number_of_rows(moments: AsyncSession, way: str, count: int) -> None:
    rows = [{"id": id, **writable(way, EDGES)} for id in range(count)]
    await write(moments, way, rows)
    await assert_stored(moments, rows)
    infinite = text(
        "SELECT count(*) FROM moments WHERE at = 'infinity' AND plain_at = '-infinity' AND upper(span) = 'infinity' "
        "AND ends = 'infinity' AND day = 'infinity' AND local = 'infinity' AND (ats IS NULL OR ats[1] = '-infinity' "
        "AND lower(spans) = '-infinity' AND days = '{-infinity,0001-01-01,9999-12-31,infinity}')"
    )
    assert await moments.scalar(infinite) == count


async def test_values_that_were_read_can_be_written_and_compared(moments: AsyncSession) -> None:
    await moments.execute(
        text("INSERT INTO moments (id, at, day, span) VALUES (1, 'infinity', 'infinity', '[2020-01-01, infinity)')")
    )
    moment = (await moments.scalars(select(Moment))).one()
    assert moment.at is not None
    assert moment.at > utcnow()
    assert (moment.day, moment.span) == (date.max, Range(datetime(2020, 1, 1, tzinfo=UTC), GREATEST))
    assert moment.day is not None
    moment.plain_at, moment.begins, moment.days = moment.at, moment.at, [moment.day]
    await moments.flush()
    for criterion in (
        Moment.at == moment.at,
        Moment.plain_at >= moment.at,
        Moment.begins.between(AWARE, moment.at),
        Moment.at.in_([moment.at]),
        Moment.at == func.any([moment.at], type_=AwareDateTime),
        Moment.day == moment.day,
        Moment.days == [moment.day],
        Moment.span == moment.span,
        func.isfinite(Moment.day).is_(False),
    ):
        assert await moments.scalar(select(Moment.id).where(criterion)) == 1
    assert await moments.scalar(select(Moment.id).where(Moment.day == date.max)) is None


async def test_values_of_composite_types_and_domains_are_exact_too(session: AsyncSession) -> None:
    for statement in (
        "CREATE TYPE stay AS (arrives timestamptz, day date)",
        "CREATE DOMAIN instant AS timestamptz",
        "CREATE TABLE stays (stay stay, instant instant)",
        "INSERT INTO stays VALUES (ROW('infinity', '-infinity'), 'infinity')",
    ):
        await session.execute(text(statement))
    stay, instant = (await session.execute(text("SELECT stay, instant FROM stays"))).one()
    assert (*stay, instant) == (GREATEST, MINUS_INFINITY, GREATEST)
    again = text("SELECT count(*) FROM stays WHERE stay = CAST(:stay AS stay) AND instant = :instant")
    assert await session.scalar(again, {"stay": tuple(stay), "instant": instant}) == 1
    with pytest.raises(InvalidValue, match="without a time zone"):
        await session.execute(again, {"stay": (NAIVE, date.max), "instant": instant})


async def test_seconds_of_an_offset_are_kept(session: AsyncSession) -> None:
    read = await session.scalar(text("SELECT timetz '12:00+01:30:20'"))
    assert read.utcoffset() == timedelta(hours=1, minutes=30, seconds=20)


class TestInfiniteDates:
    @pytest.mark.parametrize("value", [INFINITY, MINUS_INFINITY])
    def test_stay_the_same_object_in_copies_and_pickles(self, value: date) -> None:
        for same in (copy.copy(value), copy.deepcopy([value])[0], pickle.loads(pickle.dumps(value))):  # noqa: S301
            assert same is value

    def test_compare_as_the_greatest_and_the_least_date(self) -> None:
        assert MINUS_INFINITY < date(2026, 1, 1) < INFINITY
        assert (date.min, date.max) == (MINUS_INFINITY, INFINITY)

    def test_become_ordinary_dates_in_arithmetic(self) -> None:
        for each in (
            INFINITY - timedelta(1),
            INFINITY.replace(year=2026),
            INFINITY.replace(),
            type(INFINITY)(2026, 1, 1),
        ):
            assert type(each) is date
        assert repr(INFINITY) == "howdah.INFINITY"

    async def test_are_written_as_json_like_other_dates(self, session: AsyncSession) -> None:
        days = {"first": MINUS_INFINITY, "last": INFINITY}
        assert await session.scalar(select(literal(days, JSONB))) == {"first": "0001-01-01", "last": "9999-12-31"}


def test_annotations_become_columns_with_time_zones() -> None:
    kinds = {name: str(column.type) for name, column in inspect(Moment).columns.items() if name in VALUES}
    assert {name: kinds[name] for name in ("span", "spans", "day_spans")} == {
        "span": "TSTZRANGE",
        "spans": "TSTZMULTIRANGE",
        "day_spans": "DATEMULTIRANGE",
    }
    array: Any = inspect(Moment).columns["ats"].type
    assert isinstance(array.item_type, AwareDateTime)
