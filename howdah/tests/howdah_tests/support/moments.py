"""A table with columns of every type of time, and random values for them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from sqlalchemy import ARRAY, DateTime, MetaData, Time
from sqlalchemy.dialects.postgresql import TSRANGE, TSTZRANGE, Range
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.orm import Mapped, composite, mapped_column

from howdah import Base
from howdah._types.times import INFINITY, MINUS_INFINITY

GREATEST, LEAST = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
LOCAL_GREATEST, LOCAL_LEAST = datetime.max, datetime.min  # noqa: DTZ901
NAIVE = datetime(2026, 1, 1, 12)  # noqa: DTZ001
AWARE = NAIVE.replace(tzinfo=UTC)


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


@dataclass
class Period:
    begins: datetime | None
    ends: datetime | None


class Moment(Separate):
    """A column of every type that contains a time."""

    __tablename__ = "moments"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime | None]
    plain_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    ats: Mapped[list[datetime] | None]
    plain_ats: Mapped[list[datetime] | None] = mapped_column(ARRAY(DateTime(timezone=True)))
    span: Mapped[Range[datetime] | None]
    spans: Mapped[MultiRange[datetime] | None]
    span_array: Mapped[list[Range[datetime]] | None] = mapped_column(ARRAY(TSTZRANGE))
    clock_with_zone: Mapped[time | None] = mapped_column(Time(timezone=True))
    begins: Mapped[datetime | None]
    ends: Mapped[datetime | None]
    period: Mapped[Period] = composite("begins", "ends")
    local: Mapped[datetime | None] = mapped_column(DateTime())
    local_span: Mapped[Range[datetime] | None] = mapped_column(TSRANGE)
    clock: Mapped[time | None]
    clocks: Mapped[list[time] | None]
    day: Mapped[date | None]
    days: Mapped[list[date] | None]
    day_spans: Mapped[MultiRange[date] | None]
    length: Mapped[timedelta | None]


WITH_ZONE = ["at", "plain_at", "ats", "plain_ats", "span", "spans", "span_array", "clock_with_zone", "period"]
"""The attributes whose values have a time zone."""
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
# a day from the ends, since an offset would lead beyond them
MOMENTS = st.datetimes(
    datetime(1, 1, 2),  # noqa: DTZ001
    datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=ZONES | st.just(ZoneInfo("Europe/Berlin")),
    allow_imaginary=False,
) | st.sampled_from([GREATEST, LEAST])
LOCAL = st.datetimes()
DATES = st.dates() | st.sampled_from([INFINITY, MINUS_INFINITY, date.max, date.min])


def ranges_of(values: st.SearchStrategy[Any], bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Range[Any]]:
    def between(ends: list[Any], bounds: Any) -> Range[Any]:
        return Range(
            *sorted(ends, key=lambda end: end.replace(tzinfo=UTC) if end.tzinfo is None else end), bounds=bounds
        )

    return (
        st.builds(between, st.lists(values, min_size=2, max_size=2, unique=True), bounds)
        | st.just(Range(empty=True))
        | st.just(Range(None, None, bounds="()"))
        | values.map(lambda value: Range(value, None, bounds="[)"))
        | values.map(lambda value: Range(None, value, bounds="()"))
    )


def disjoint(ends: list[Any]) -> MultiRange[Any]:
    ends = sorted(ends)
    return MultiRange([Range(*ends[n : n + 2], bounds="[)") for n in range(0, len(ends), 2)])


BOUNDS: Any = st.sampled_from(["[)", "(]", "()", "[]"])
FEW: dict[str, Any] = {"max_size": 3}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "at": MOMENTS,
    "plain_at": MOMENTS,
    "ats": st.lists(MOMENTS, **FEW),
    "plain_ats": st.lists(st.none() | MOMENTS, **FEW),
    "span": ranges_of(MOMENTS, BOUNDS),
    "spans": st.integers(0, 2).flatmap(
        lambda n: st.lists(MOMENTS, min_size=2 * n, max_size=2 * n, unique=True).map(disjoint)
    ),
    "span_array": st.lists(ranges_of(MOMENTS, BOUNDS), **FEW),
    "clock_with_zone": st.times(timezones=st.integers(-57_000, 57_000).map(lambda s: timezone(timedelta(seconds=s)))),
    "begins": MOMENTS,
    "ends": MOMENTS,
    "local": LOCAL,
    "local_span": ranges_of(LOCAL, BOUNDS),
    "clock": st.times(),
    "clocks": st.lists(st.times(), **FEW),
    "day": DATES,
    "days": st.lists(DATES, **FEW),
    # a day before the last one, since PostgreSQL stores the day after an inclusive upper bound
    "day_spans": st.lists(st.dates(max_value=date(9999, 12, 30)), min_size=2, max_size=2, unique=True).map(disjoint),
    "length": st.timedeltas(),
}
ROWS = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()}), min_size=1, max_size=3
)
