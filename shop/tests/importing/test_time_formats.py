"""The format of a file's times is determined from all of its lines."""

import csv
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shop.importing.classifying import Reason
from shop.importing.options import TimeFormat
from shop.importing.reading import LINES_AT_A_TIME, UnreadableFile
from shop.importing.retail import RetailFile, read_retail
from shop.importing.time_formats import NoTimeFormat, find_time_format, parse_time

ISO, MONTH_FIRST, DAY_FIRST = TimeFormat

WriteFile = Callable[..., Path]


def frame(*times: str | None, first_line: int = 2) -> pl.DataFrame:
    lines = pl.int_range(first_line, first_line + len(times), dtype=pl.UInt32, eager=True)
    return pl.DataFrame({"line": lines, "InvoiceDate": pl.Series(times, dtype=pl.String)})


def parsed(text: str, form: TimeFormat) -> datetime | None:
    found: datetime | None = frame(text).select(parse_time(pl.col("InvoiceDate"), form)).item()
    return found


def placed(retail: RetailFile) -> list[datetime]:
    return [invoice.placed_at for batch in retail.batches() for invoice in batch]


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("2010-01-05 10:30:00", ISO, datetime(2010, 1, 5, 10, 30, tzinfo=UTC)),
        ("2010-01-05T10:30", ISO, datetime(2010, 1, 5, 10, 30, tzinfo=UTC)),
        ("2010-07-05 10:30:00.25", ISO, datetime(2010, 7, 5, 9, 30, 0, 250_000, tzinfo=UTC)),
        ("2010-07-05 10:30:00Z", ISO, datetime(2010, 7, 5, 10, 30, tzinfo=UTC)),
        ("2010-10-31 01:30:00Z", ISO, datetime(2010, 10, 31, 1, 30, tzinfo=UTC)),
        ("6/20/11 15:19", MONTH_FIRST, datetime(2011, 6, 20, 14, 19, tzinfo=UTC)),
        ("06/20/2011 05:19:59", MONTH_FIRST, datetime(2011, 6, 20, 4, 19, 59, tzinfo=UTC)),
        ("12/1/10 8:26", MONTH_FIRST, datetime(2010, 12, 1, 8, 26, tzinfo=UTC)),
        ("12/1/10 8:26", DAY_FIRST, datetime(2010, 1, 12, 8, 26, tzinfo=UTC)),
        ("20/6/11 15:19", DAY_FIRST, datetime(2011, 6, 20, 14, 19, tzinfo=UTC)),
        ("29/2/2012 0:00:00", DAY_FIRST, datetime(2012, 2, 29, tzinfo=UTC)),
        ("1/1/69 0:00", DAY_FIRST, datetime(1968, 12, 31, 23, tzinfo=UTC)),  # British Standard Time
        ("1/1/68 0:00", DAY_FIRST, datetime(2068, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_by_its_format(text: str, form: TimeFormat, expected: datetime) -> None:
    assert parsed(text, form) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "6/20/11",
        "6/20/11 15",
        "6/20/11 3:19 PM",
        "6/20/11 24:00",
        "6/20/11 15:60",
        "6/20/11 15:19:60",
        "6/31/11 15:19",
        "31/6/11 15:19",
        "13/13/11 15:19",
        "2/29/11 15:19",
        "0/1/11 15:19",
        "1/0/11 15:19",
        "6/20/011 15:19",
        "6/20/0011 15:19",
        "6/20/1 15:19",
        "6-20-11 15:19",
        "6/20/11T15:19",
        "6/20/11  15:19",
        "6/20/11 15:19Z",
        "\u0666/20/11 15:19",
        "11-06-20 15:19",
        "2011-06-20",
        "2011-06-31 15:19",
        "2011-06-20 15:19:60",
        "2011-06-20 15",
        "2011-06-20 15:19+01:00",
        "20110620 15:19",
        "40714.6382",
    ],
)
def test_a_text_that_matches_no_format_is_not_a_time(text: str) -> None:
    assert [parsed(text, form) for form in TimeFormat] == [None, None, None]


@pytest.mark.parametrize(
    ("times", "form"),
    [
        (["12/1/10 8:26", "12/13/10 8:26"], MONTH_FIRST),
        (["12/1/10 8:26", "13/12/2010 08:26:30"], DAY_FIRST),
        (["2010-12-01 08:26", "2010-12-01 08:26:00"], ISO),
        ([" 6/20/11 15:19 ", "", None, " "], MONTH_FIRST),
        (["6/20/11 15:19", "never", "99/99/99 99:99"], MONTH_FIRST),
        (["never", "20/6/11 15:19", *["n/a"] * 50], DAY_FIRST),
        ([None, "", " "], None),
        ([], None),
    ],
)
def test_the_format_is_the_one_that_every_readable_time_matches(
    times: list[str | None], form: TimeFormat | None
) -> None:
    assert find_time_format([frame(*times)]) == form
    assert find_time_format([frame(each, first_line=n) for n, each in enumerate(times)]) == form


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            ["never", "12/1/10 8:26", "1/12/10 8:26"],
            r"its times may be month-first or day-first, such as '12/1/10 8:26' on line 3: no day is after the 12th. "
            r"Choose one with --times month-first or --times day-first",
        ),
        (["5/5/10 8:26"], "may be month-first or day-first"),
        (
            ["12/1/10 8:26", "12/13/10 8:26", "13/12/10 8:26"],
            r"its times have more than one format: '13/12/10 8:26' on line 4 is not month-first, "
            r"'12/13/10 8:26' on line 3 is not day-first. Write all in one format, or choose one with --times",
        ),
        (["2010-12-01 08:26", "12/13/10 8:26"], "'12/13/10 8:26' on line 3 is not iso"),
        (
            ["never", "6/20/11"],
            r"none of its times can be read; the first is 'never' on line 2: write all times as one of YYYY",
        ),
    ],
)
def test_a_file_without_a_single_format_of_times_is_rejected(times: list[str], message: str) -> None:
    with pytest.raises(NoTimeFormat, match=message.replace(".", r"\.")):
        find_time_format([frame(*times)])
    with pytest.raises(NoTimeFormat):
        find_time_format([frame(each, first_line=n) for n, each in enumerate(reversed(times))])


@pytest.mark.parametrize("chosen", [MONTH_FIRST, DAY_FIRST])
def test_an_operator_can_choose_the_format(chosen: TimeFormat) -> None:
    assert find_time_format([frame("12/1/10 8:26")], chosen) == chosen
    assert find_time_format([frame("12/13/10 8:26", "13/12/10 8:26")], chosen) == chosen
    assert find_time_format([frame(None)], chosen) is None
    with pytest.raises(
        NoTimeFormat, match=f"none of its times is {chosen} .*; the first is '2010-01-01 00:00' on line 2: choose"
    ):
        find_time_format([frame("2010-01-01 00:00")], chosen)


_LOCAL = st.datetimes(datetime(1971, 1, 1), datetime(2037, 1, 1)).map(  # noqa: DTZ001
    lambda local: local.replace(microsecond=0)
)


@settings(max_examples=settings().max_examples // 3, deadline=None)
@given(
    st.lists(_LOCAL, min_size=1, max_size=20), st.sampled_from([MONTH_FIRST, DAY_FIRST]), st.booleans(), st.booleans()
)
def test_times_are_never_read_in_another_format_than_they_were_written_in(
    moments: list[datetime], form: TimeFormat, long_years: bool, seconds: bool
) -> None:
    def write_time(moment: datetime) -> str:
        first, second = (moment.month, moment.day) if form is MONTH_FIRST else (moment.day, moment.month)
        year = moment.year if long_years else moment.year % 100
        return f"{first}/{second}/{year:02} {moment.hour}:{moment.minute:02}" + f":{moment.second:02}" * seconds

    frames = [frame(*map(write_time, moments))]
    if max(moment.day for moment in moments) > 12:
        assert find_time_format(frames) == form
    else:
        with pytest.raises(NoTimeFormat, match="month-first or day-first"):
            find_time_format(frames)
    iso = [moment.isoformat(" ") if seconds else f"{moment:%Y-%m-%d %H:%M}" for moment in moments]
    assert [parsed(write_time(each), form) for each in moments] == [parsed(each, ISO) for each in iso]


OTHER_NAMES = {"Invoice": "InvoiceNo", "Price": "UnitPrice", "Customer ID": "CustomerID"}


def rename_columns(path: Path, names: dict[str, str]) -> Path:
    """Rename the columns of the CSV file."""
    with path.open(newline="") as file:
        header, *lines = csv.reader(file)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[names.get(name, name) for name in header], *lines])
    return path


@pytest.mark.parametrize("other", [OTHER_NAMES, {"Price": "UnitPrice"}, {}])
def test_each_column_can_have_either_of_its_names(
    write_csv: WriteFile, write_parquet: WriteFile, other: dict[str, str]
) -> None:
    path = write_parquet({}, {"Invoice": "2"})
    pl.read_parquet(path).rename(other).write_parquet(path)
    retail = read_retail(rename_columns(write_csv({}, {"Invoice": "2"}), other))
    assert retail.summary == read_retail(path).summary
    assert retail.summary.sales_cents == 2 * 990


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(("name", "other"), OTHER_NAMES.items())
def test_a_file_with_both_names_of_a_column_is_rejected(
    write_csv: WriteFile, tmp_path: Path, name: str, other: str, suffix: str
) -> None:
    lines = pl.read_csv(write_csv({}), infer_schema=False).with_columns(pl.col(name).alias(other))
    path = tmp_path / f"both.{suffix}"
    lines.write_csv(path) if suffix == "csv" else lines.write_parquet(path)
    with pytest.raises(
        UnreadableFile, match=f"more than one column {name}: '{name}' and '{other}'. Remove all but one"
    ):
        read_retail(path)


def test_a_file_with_a_duplicate_column_is_rejected(write_csv: WriteFile) -> None:
    path = rename_columns(write_csv({}), {"Country": "Price", "Description": "Country", "StockCode": "Description"})
    path.write_text(path.read_text().replace("Invoice,", "StockCode,Invoice,", 1))
    with pytest.raises(UnreadableFile, match="more than one column Price: 'Price' and 'Price'"):
        read_retail(path)


def test_an_invalid_time_rejects_only_its_line(write_csv: WriteFile) -> None:
    times = ["12/13/10 8:26", "13/13/10 8:26", "12/14/10 8:26", "12/1/10 25:00"]
    retail = read_retail(write_csv(*({"InvoiceDate": each} for each in times)))
    assert retail.rejects.rows() == [
        (3, Reason.UNREADABLE_VALUE, "InvoiceDate: '13/13/10 8:26' is no date and time"),
        (5, Reason.UNREADABLE_VALUE, "InvoiceDate: '12/1/10 25:00' is no date and time"),
    ]
    assert retail.summary.times is MONTH_FIRST


def test_the_last_of_many_lines_can_determine_the_format(write_csv: WriteFile) -> None:
    lines = [{"InvoiceDate": "1/2/10 8:26"}] * (LINES_AT_A_TIME + 5)
    with pytest.raises(UnreadableFile, match="month-first or day-first"):
        read_retail(write_csv(*lines))
    retail = read_retail(write_csv(*lines, {"InvoiceDate": "31/12/10 8:26"}))
    assert retail.summary.times is DAY_FIRST
    assert placed(retail) == [datetime(2010, 2, 1, 8, 26, tzinfo=UTC)]


def test_lines_in_another_format_than_the_chosen_one_are_rejected(write_csv: WriteFile) -> None:
    path = write_csv({"InvoiceDate": "12/13/10 8:26"}, {"InvoiceDate": "13/12/10 8:26"})
    retail = read_retail(path, DAY_FIRST)
    assert [line for line, _, _ in retail.rejects.rows()] == [2]
    assert placed(retail) == [datetime(2010, 12, 13, 8, 26, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pl.Series([datetime(2010, 7, 1, 12, 30)]), datetime(2010, 7, 1, 11, 30, tzinfo=UTC)),  # noqa: DTZ001
        (pl.Series([datetime(2010, 7, 1, 12, 30)]).cast(pl.Datetime("ns")), datetime(2010, 7, 1, 11, 30, tzinfo=UTC)),  # noqa: DTZ001
        (pl.Series([datetime(2010, 7, 1, 12, 30)]).cast(pl.Datetime("ms")), datetime(2010, 7, 1, 11, 30, tzinfo=UTC)),  # noqa: DTZ001
        (pl.Series([datetime(2010, 10, 31, 1, 30, tzinfo=UTC)]), datetime(2010, 10, 31, 1, 30, tzinfo=UTC)),
        (
            pl.Series([datetime(2010, 7, 1, 12, 30, 0, 5, tzinfo=UTC)]).dt.convert_time_zone("America/New_York"),
            datetime(2010, 7, 1, 12, 30, 0, 5, tzinfo=UTC),
        ),
    ],
)
def test_a_parquet_column_of_times_is_read_exactly(
    write_parquet: WriteFile, times: pl.Series, expected: datetime
) -> None:
    path = write_parquet({})
    pl.read_parquet(path).with_columns(InvoiceDate=times).write_parquet(path)
    retail = read_retail(path)
    assert (retail.summary.times, placed(retail)) == (ISO, [expected])


def test_a_parquet_column_of_dates_without_times_is_rejected(write_parquet: WriteFile) -> None:
    path = write_parquet({})
    pl.read_parquet(path).with_columns(InvoiceDate=pl.date(2010, 1, 5)).write_parquet(path)
    with pytest.raises(UnreadableFile, match="none of its times can be read; the first is '2010-01-05' on line 1"):
        read_retail(path)


def test_a_parquet_file_of_text_is_read_like_csv(write_csv: WriteFile, write_parquet: WriteFile) -> None:
    values: list[dict[str, Any]] = [
        {"InvoiceDate": "12/13/10 8:26"},
        {"Invoice": "2", "InvoiceDate": "1/2/2011 9:00:01"},
    ]
    from_csv, from_parquet = read_retail(write_csv(*values)), read_retail(write_parquet(*values))
    assert from_csv.summary == from_parquet.summary
    assert (
        placed(from_csv)
        == placed(from_parquet)
        == [
            datetime(2010, 12, 13, 8, 26, tzinfo=UTC),
            datetime(2011, 1, 2, 9, 0, 1, tzinfo=UTC),
        ]
    )
