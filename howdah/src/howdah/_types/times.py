"""Codecs for dates, times and intervals, in place of the driver's own, on every connection of a `Database`.

They apply to all values: scalars, arrays, ranges, multiranges, composites and domains, with and without a mapped
column.

The driver's own codecs write a naive `datetime` as local time and read an infinite `timestamptz` as a naive `datetime`.
They store `date.max` as infinity. They drop the offset of a `time`, and the time of a `datetime` for a `date` column.
The codecs here reject values that can't be written or read exactly.

CPU time of the client for 100,000 values, with the driver's codec in parentheses:

- `timestamptz`: 113 ms to read (114), 31 ms to write (57)
- `timestamp`: 108 ms (103), 33 ms (23)
- `date`: 80 ms (70), 23 ms (13)
- `time`: 95 ms (74), 32 ms (21)

Values at the limits:

- `timestamptz` and `timestamp`: `datetime.max` and `datetime.min` (in UTC, or naive) stand for PostgreSQL's infinities.
  The finite values that are equal to them in Python (9999-12-31 23:59:59.999999 and 0001-01-01 00:00:00) can't be read.
- `date`: 9999-12-31 and 0001-01-01 are finite, because many systems store them. An infinite date is read as `INFINITY`
  or `MINUS_INFINITY`. These are equal to `date.max` and `date.min`, and are written as infinities.
- Values outside of the years 1 to 9999, the time 24:00 and infinite intervals raise `OutOfRange`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any, Final

from sqlalchemy import Engine, event
from sqlalchemy.engine import AdaptedConnection

from howdah._rejected_values import RejectedTime, RejectedValue, UnreadableTime

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH: Final = _EPOCH.replace(tzinfo=None)
_EPOCH_ORDINAL: Final = _EPOCH.toordinal()
_DAY_MICROSECONDS: Final = 24 * 60 * 60 * 1_000_000

_MAX_DATETIME: Final = datetime.max.replace(tzinfo=UTC)
_MIN_DATETIME: Final = datetime.min.replace(tzinfo=UTC)

# In PostgreSQL's binary format, the largest number is infinity, and the smallest is -infinity.
_INT32_MAX: Final = 2**31 - 1
_INT64_MAX: Final = 2**63 - 1

_YEAR_RANGE: Final = "Python has the years 1 to 9999 only"


class InfiniteDate(date):
    """`INFINITY` or `MINUS_INFINITY`. The result of a calculation with one of them is an ordinary date."""

    def __new__(cls, *parts: Any) -> Any:
        return date(*parts)

    def replace(self, *args: Any, **parts: Any) -> Any:
        return date(self.year, self.month, self.day).replace(*args, **parts)

    def __repr__(self) -> str:
        return "howdah." + self.__reduce__()

    def __reduce__(self) -> str:  # for copy and pickle
        return "INFINITY" if self == date.max else "MINUS_INFINITY"


INFINITY: Final = date.__new__(InfiniteDate, 9999, 12, 31)
MINUS_INFINITY: Final = date.__new__(InfiniteDate, 1, 1, 1)


def use_exact_times(engine: Engine) -> None:
    """Use the codecs of this module on every connection that the engine opens from now on."""

    @event.listens_for(engine, "connect")
    def set_codecs(connection: AdaptedConnection, _record: Any) -> None:
        connection.run_async(_set_codecs)


async def _set_codecs(driver: Any) -> None:
    """Set the codecs. This needs no query, because the driver knows the built-in types."""
    for name, (encode, decode) in _CODECS.items():
        await driver.set_type_codec(name, schema="pg_catalog", encoder=encode, decoder=decode, format="tuple")


def _encode_timestamptz(value: Any) -> tuple[int, ...]:
    """Microseconds since 2000 in UTC."""
    try:
        since = value - _EPOCH
        microseconds: int = since.days * _DAY_MICROSECONDS + since.seconds * 1_000_000 + since.microseconds
    except (TypeError, AttributeError):
        raise RejectedValue(describe_naive_value(value)) from None
    return (microseconds,) if _MIN_MICROSECONDS < microseconds < _MAX_MICROSECONDS else _encode_infinity(microseconds)


def _decode_timestamptz(parts: tuple[int, ...]) -> datetime:
    microseconds = parts[0]
    if _MIN_MICROSECONDS < microseconds < _MAX_MICROSECONDS:
        return _EPOCH + timedelta(0, 0, microseconds)
    return _decode_infinity(microseconds)


def _encode_timestamp(value: Any) -> tuple[int, ...]:
    """Microseconds since 2000."""
    if not isinstance(value, datetime):
        if not isinstance(value, date):
            raise RejectedValue(f"a {type(value).__name__} was rejected for a timestamp: pass a datetime")
        value = datetime.combine(value, time())
    if value.tzinfo is not None:
        raise RejectedValue(
            "a datetime with a time zone was rejected for a timestamp without time zone: use timestamptz "
            "(Mapped[datetime], or cast(..., AwareDateTime) around an expression such as func.now())"
        )
    since = value - _NAIVE_EPOCH
    microseconds = since.days * _DAY_MICROSECONDS + since.seconds * 1_000_000 + since.microseconds
    return (microseconds,) if _MIN_MICROSECONDS < microseconds < _MAX_MICROSECONDS else _encode_infinity(microseconds)


def _decode_timestamp(parts: tuple[int, ...]) -> datetime:
    microseconds = parts[0]
    if _MIN_MICROSECONDS < microseconds < _MAX_MICROSECONDS:
        return _NAIVE_EPOCH + timedelta(0, 0, microseconds)
    return _decode_infinity(microseconds).replace(tzinfo=None)


def _encode_date(value: Any) -> tuple[int, ...]:
    """Days since 2000."""
    if isinstance(value, datetime) or not isinstance(value, date):
        raise RejectedValue(
            f"a {type(value).__name__} was rejected for a date: use its .date() in the time zone that you mean"
        )
    if isinstance(value, InfiniteDate):
        return (_INT32_MAX if value == INFINITY else -_INT32_MAX - 1,)
    return (value.toordinal() - _EPOCH_ORDINAL,)


def _decode_date(parts: tuple[int, ...]) -> date:
    days = parts[0]
    if 0 < days + _EPOCH_ORDINAL <= _MAX_ORDINAL:
        return date.fromordinal(days + _EPOCH_ORDINAL)
    if days == _INT32_MAX:
        return INFINITY
    if days == -_INT32_MAX - 1:
        return MINUS_INFINITY
    raise UnreadableTime(f"a date in the database can't be read: {_YEAR_RANGE}")


def _encode_time(value: Any) -> tuple[int, ...]:
    """Microseconds since midnight."""
    if not isinstance(value, time) or value.tzinfo is not None:
        with_zone = " with a time zone" if isinstance(value, time) else ""
        raise RejectedValue(
            f"a {type(value).__name__}{with_zone} was rejected for a time without time zone: pass a naive time"
        )
    return (_count_microseconds(value),)


def _decode_time(parts: tuple[int, ...]) -> time:
    return _to_time(parts[0])


def _encode_timetz(value: Any) -> tuple[int, ...]:
    """Microseconds since midnight, and the seconds to add to get UTC."""
    offset = value.utcoffset() if isinstance(value, time) else None
    if offset is None:
        raise RejectedValue(
            f"a {type(value).__name__} without an offset was rejected for a time with time zone: use "
            ".replace(tzinfo=timezone(...)). The offset of a ZoneInfo depends on the date, so it can't be used"
        )
    if offset.microseconds:
        raise RejectedValue(
            "a time with a fraction of a second in its offset was rejected: PostgreSQL's offsets are whole seconds"
        )
    return _count_microseconds(value), -(offset.days * 86_400 + offset.seconds)


def _decode_timetz(parts: tuple[int, ...]) -> time:
    return _to_time(parts[0]).replace(tzinfo=timezone(timedelta(seconds=-parts[1])))


def _encode_interval(value: Any) -> tuple[int, ...]:
    """Months, days and microseconds."""
    if not isinstance(value, timedelta):
        raise RejectedValue(f"a {type(value).__name__} was rejected for an interval: pass a timedelta")
    return 0, value.days, value.seconds * 1_000_000 + value.microseconds


def _decode_interval(parts: tuple[int, ...]) -> timedelta:
    """A year is read as 365 days and a month as 30, as the driver does."""
    months, days, microseconds = parts
    years = abs(months) // 12 * (1 if months > 0 else -1)
    try:
        return timedelta(days + (months - 12 * years) * 30 + years * 365, 0, microseconds)
    except OverflowError:
        raise UnreadableTime(
            "an interval in the database can't be read: a timedelta is finite and has at most 999999999 days"
        ) from None


def describe_naive_value(value: object) -> str:
    """The error message for a value without a time zone, which is rejected for `timestamptz`."""
    return (
        f"a {type(value).__name__} without a time zone was rejected: "
        "use howdah.utcnow(), datetime.now(UTC) or .replace(tzinfo=...)"
    )


def _count_since_epoch(moment: datetime) -> int:
    """Microseconds since 2000."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


# A value between these two is finite, in PostgreSQL and in Python.
_MIN_MICROSECONDS: Final = _count_since_epoch(_MIN_DATETIME)
_MAX_MICROSECONDS: Final = _count_since_epoch(_MAX_DATETIME)
_MAX_ORDINAL: Final = date.max.toordinal()


def _encode_infinity(microseconds: int) -> tuple[int]:
    """Encode the minimum or the maximum as an infinity. Reject a datetime that is beyond them in UTC."""
    if microseconds == _MAX_MICROSECONDS:
        return (_INT64_MAX,)
    if microseconds == _MIN_MICROSECONDS:
        return (-_INT64_MAX - 1,)
    raise RejectedTime(
        f"a datetime was rejected: in UTC it is outside of the range that can be read, because {_YEAR_RANGE}"
    )


def _decode_infinity(microseconds: int) -> datetime:
    """Decode an infinity. Raise `UnreadableTime` for a finite value that a `datetime` can't hold."""
    if microseconds == _INT64_MAX:
        return _MAX_DATETIME
    if microseconds == -_INT64_MAX - 1:
        return _MIN_DATETIME
    if microseconds in {_MIN_MICROSECONDS, _MAX_MICROSECONDS}:
        raise UnreadableTime(
            "a time in the database can't be read: 0001-01-01 00:00:00 and 9999-12-31 23:59:59.999999 stand for "
            "PostgreSQL's infinities in Python; store 'infinity', '-infinity' or NULL in its place"
        )
    raise UnreadableTime(f"a time in the database can't be read: {_YEAR_RANGE}")


def _count_microseconds(value: time) -> int:
    """Microseconds since midnight."""
    return ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond


def _to_time(microseconds: int) -> time:
    """The time of day at this number of microseconds after midnight."""
    if microseconds >= _DAY_MICROSECONDS:
        raise UnreadableTime("a time in the database can't be read: Python has no 24:00")
    seconds, microsecond = divmod(microseconds, 1_000_000)
    minutes, second = divmod(seconds, 60)
    return time(minutes // 60, minutes % 60, second, microsecond)


# The encoder and the decoder of each type. The integers are those of asyncpg's format "tuple" for the type.
_CODECS: Final[dict[str, tuple[Callable[[Any], tuple[int, ...]], Callable[[tuple[int, ...]], Any]]]] = {
    "timestamptz": (_encode_timestamptz, _decode_timestamptz),
    "timestamp": (_encode_timestamp, _decode_timestamp),
    "date": (_encode_date, _decode_date),
    "time": (_encode_time, _decode_time),
    "timetz": (_encode_timetz, _decode_timetz),
    "interval": (_encode_interval, _decode_interval),
}
