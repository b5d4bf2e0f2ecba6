"""Every `timestamptz` is aware, and values of all time types are read as they were written."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import ARRAY, DateTime, func, insert, inspect, literal, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB, Range
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import (
    INFINITY,
    MINUS_INFINITY,
    AsyncRepository,
    AwareDateTime,
    Database,
    InvalidValue,
    OutOfRange,
    bulk,
    utcnow,
)
from howdah_tests.support.moments import (
    GREATEST,
    LEAST,
    LOCAL_GREATEST,
    LOCAL_LEAST,
    ROWS,
    VALUES,
    Moment,
    Period,
    Separate,
)
from howdah_tests.support.savepoints import rollback_at_end

NAIVE = datetime(2026, 1, 1, 12)  # noqa: DTZ001
AWARE = NAIVE.replace(tzinfo=UTC)


@pytest.fixture
async def moments(session: AsyncSession) -> AsyncSession:
    await (await session.connection()).run_sync(Separate.metadata.create_all)
    return session


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


WITH_ZONE = ["at", "plain_at", "ats", "plain_ats", "span", "spans", "span_array", "clock_with_zone", "period"]
without_deadline = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
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
