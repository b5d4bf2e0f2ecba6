"""The formats of a retail file's times. A file has one format, which is determined from all of its lines."""

from collections.abc import Iterable
from typing import Final

import polars as pl

from shop.importing.options import TimeFormat

SHOP_TIME_ZONE: Final = "Europe/London"

_ISO_TIME: Final = r"^[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}(?::[0-5][0-9](?:\.[0-9]+)?)?$"
_ISO_MINUTE_LENGTH: Final = len("2010-01-05 10:30")
_SLASHED_TIME: Final = (
    r"^(?<first>[0-9]{1,2})/(?<second>[0-9]{1,2})/(?<year>[0-9]{2}|[1-9][0-9]{3}) "
    r"(?<hour>[0-9]{1,2}):(?<minute>[0-9]{2})(?::(?<seconds>[0-5][0-9]))?$"
)


class NoTimeFormat(Exception):
    """The lines fit no format, or more than one. The message says what to do."""


def find_time_format(frames: Iterable[pl.DataFrame], chosen: TimeFormat | None = None) -> TimeFormat | None:
    """The format that every readable time fits; None if no line has a time. `frames` have `line` and `InvoiceDate`.

    A time is readable if it fits at least one format. Unreadable times are ignored here; the import rejects their
    lines. All readable times must fit the same format, because a file may consist of two exports. Then `5/6/11` could
    be a day in June in one of them, and a day in May in the other.

    Raises `NoTimeFormat` if no time is readable, if no format fits all readable times, or if several formats fit all of
    them (no day is after the 12th). With `chosen`, it raises only if no time fits that format.
    """
    first_time: str | None = None
    fitting: dict[TimeFormat, str] = {}
    misfits: dict[TimeFormat, str] = {}
    for frame in frames:
        times = frame.select("line", pl.col("InvoiceDate").str.strip_chars().alias("time")).filter(pl.col("time") != "")
        times = times.unique("time", keep="first", maintain_order=True).with_columns(
            parse_time(pl.col("time"), each).is_not_null().alias(each) for each in TimeFormat
        )
        readable = times.filter(pl.any_horizontal(*TimeFormat))
        first_time = first_time or _describe_first(times)
        for each in TimeFormat:
            fitting |= _find_example(readable.filter(pl.col(each)), each, unless=fitting)
            misfits |= _find_example(readable.filter(~pl.col(each)), each, unless=misfits)

    if first_time is None:
        return None
    if chosen is not None and chosen in fitting:
        return chosen
    if chosen is not None:
        raise NoTimeFormat(
            f"none of its times is {chosen} ({chosen.pattern}); the first is {first_time}: choose another --times"
        )
    match [each for each in fitting if each not in misfits]:
        case [found]:
            return found
        case [found, *_]:
            raise NoTimeFormat(
                f"its times may be month-first or day-first, such as {fitting[found]}: no day is after the 12th. "
                "Choose one with --times month-first or --times day-first"
            )
    if not fitting:
        known = ", ".join(each.pattern for each in TimeFormat)
        raise NoTimeFormat(
            f"none of its times can be read; the first is {first_time}: write all times as one of {known}"
        )
    described = ", ".join(f"{misfits[each]} is not {each}" for each in fitting)
    raise NoTimeFormat(
        f"its times have more than one format: {described}. Write all in one format, or choose one with --times: lines "
        "with other times are then rejected"
    )


def parse_time(text: pl.Expr, form: TimeFormat) -> pl.Expr:
    """Convert the shop's local time to UTC. Null if a text doesn't have this format. An ISO time that ends in Z is UTC.

    When summer time ends, an hour occurs twice: a time in it is read as summer time. When summer time begins, an hour
    is skipped: a time in it is read as winter time, because a clock that wasn't put forward shows such times. Polars
    has its own time zones, so the machine needs no time zone database.
    """
    if form is not TimeFormat.ISO:
        return _local_to_utc(_slashed_clock(text, form))
    is_utc = text.str.ends_with("Z")
    clock = _iso_clock(text.str.strip_suffix("Z"))
    return pl.when(is_utc).then(clock.dt.replace_time_zone("UTC")).otherwise(_local_to_utc(clock))


def _local_to_utc(clock: pl.Expr) -> pl.Expr:
    local = clock.dt.replace_time_zone(SHOP_TIME_ZONE, ambiguous="earliest", non_existent="null")
    return local.dt.convert_time_zone("UTC").fill_null(clock.dt.replace_time_zone("UTC"))


def _iso_clock(text: pl.Expr) -> pl.Expr:
    to_the_second = pl.when(text.str.len_bytes() == _ISO_MINUTE_LENGTH).then(text + ":00").otherwise(text)
    return _parse_clock(pl.when(text.str.contains(_ISO_TIME)).then(to_the_second.str.replace("T", " ", literal=True)))


def _slashed_clock(text: pl.Expr, form: TimeFormat) -> pl.Expr:
    def part(name: str) -> pl.Expr:
        return text.str.extract_groups(_SLASHED_TIME).struct.field(name)

    first, second, year = part("first").str.zfill(2), part("second").str.zfill(2), part("year")
    month, day = (first, second) if form is TimeFormat.MONTH_FIRST else (second, first)
    century = pl.when(year.str.len_bytes() == 4).then(pl.lit("")).when(year >= "69").then(pl.lit("19"))
    date = pl.concat_str(century.otherwise(pl.lit("20")) + year, month, day, separator="-")
    time = pl.concat_str(part("hour").str.zfill(2), part("minute"), part("seconds").fill_null("00"), separator=":")
    return _parse_clock(date + " " + time)


def _parse_clock(text: pl.Expr) -> pl.Expr:
    return text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)


def _find_example(times: pl.DataFrame, form: TimeFormat, *, unless: dict[TimeFormat, str]) -> dict[TimeFormat, str]:
    found = None if form in unless else _describe_first(times)
    return {} if found is None else {form: found}


def _describe_first(times: pl.DataFrame) -> str | None:
    if times.is_empty():
        return None
    line, time = times.row(0)[:2]
    return f"'{time}' on line {line}"
