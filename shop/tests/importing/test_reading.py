from pathlib import Path

import polars as pl
import pytest

from shop.importing.reading import COLUMNS, LINES_AT_A_TIME, UnreadableFile, read_lines

HEADER = ",".join(COLUMNS)
GOOD = "500001,22111,SCOTTIE DOG,2,2010-01-05 10:30:00,4.95,13085.0,United Kingdom"


def csv_of(tmp_path: Path, *lines: str | bytes, header: str = HEADER) -> Path:
    path = tmp_path / "retail.csv"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in (header, *lines)))
    return path


def read(path: Path) -> pl.DataFrame:
    return pl.concat(read_lines(path))


def test_csv_records_have_the_number_of_their_first_line(tmp_path: Path) -> None:
    path = csv_of(tmp_path, GOOD, "", GOOD.replace("SCOTTIE DOG", '"SCOTTIE\nDOG"'), GOOD, "")
    lines = read(path)
    assert lines["line"].to_list() == [2, 4, 6]
    assert lines["Description"].to_list() == ["SCOTTIE DOG", "SCOTTIE\nDOG", "SCOTTIE DOG"]
    assert lines["malformed"].null_count() == 3


def test_parquet_rows_are_numbered_from_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame([dict.fromkeys(COLUMNS, "1")] * (2 * LINES_AT_A_TIME + 5)).write_parquet(path)
    frames = list(read_lines(path))
    assert [frame.height for frame in frames] == [LINES_AT_A_TIME, LINES_AT_A_TIME, 5]
    assert pl.concat(frames)["line"].to_list() == list(range(1, 2 * LINES_AT_A_TIME + 6))


def test_a_long_csv_file_is_read_in_frames_without_losing_a_line(tmp_path: Path) -> None:
    count = 2 * LINES_AT_A_TIME
    lines = read(csv_of(tmp_path, *[GOOD] * count))
    assert lines["line"].to_list() == list(range(2, count + 2))


def test_parquet_is_recognized_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "export[1]*.csv"
    pl.DataFrame([dict.fromkeys(COLUMNS, "1")]).write_parquet(path)
    assert read(path).height == 1


def test_a_float_becomes_its_shortest_text(tmp_path: Path) -> None:
    path = tmp_path / "floats.parquet"
    pl.DataFrame([dict.fromkeys(COLUMNS, "1") | {"Price": 25111.09, "Customer ID": 13085.0}]).write_parquet(path)
    assert read(path).select("Price", "Customer ID").row(0) == ("25111.09", "13085.0")


def test_columns_may_be_in_any_order_and_others_are_ignored(tmp_path: Path) -> None:
    names = [*reversed(COLUMNS), "Remark"]
    lines = read(csv_of(tmp_path, ",".join(names), header=", ".join(names)))
    assert lines.select(COLUMNS).row(0) == COLUMNS


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    assert read(csv_of(tmp_path, GOOD, header="\ufeff" + HEADER)).height == 1


@pytest.mark.parametrize(("record", "count"), [("500001,22111,SCOTTIE DOG", 3), (GOOD + ",", 9)])
def test_a_record_with_too_few_or_too_many_fields_is_malformed(tmp_path: Path, record: str, count: int) -> None:
    lines = read(csv_of(tmp_path, GOOD, record, GOOD))
    assert lines["malformed"].to_list() == [None, f"{count} fields instead of 8: {record}", None]
    assert lines.row(1)[2:] == (None,) * 8


def test_an_unclosed_quote_makes_only_its_line_malformed(tmp_path: Path) -> None:
    broken = GOOD.replace("SCOTTIE", '"SCOTTIE')
    quoted = GOOD.replace("SCOTTIE DOG", '"SCOTTIE DOG"')
    lines = read(csv_of(tmp_path, GOOD, broken, GOOD, quoted, broken, GOOD))
    assert lines["line"].to_list() == [2, 3, 4, 5, 6, 7]
    assert [number for number, malformed in lines.select("line", "malformed").iter_rows() if malformed] == [3, 6]
    assert broken in lines["malformed"][1]


def test_an_unclosed_quote_far_from_the_end_makes_only_its_line_malformed(tmp_path: Path) -> None:
    """The standard library's reader fails at 131,072 characters. The lines read until then are read again."""
    broken = GOOD.replace("SCOTTIE", '"SCOTTIE')
    lines = read(csv_of(tmp_path, broken, *[GOOD] * 5_000))
    assert lines.height == 5_001
    assert lines["malformed"].is_not_null().sum() == 1


def test_two_stray_quotes_make_one_record(tmp_path: Path) -> None:
    """A known limitation: it can't be distinguished from a field with line breaks."""
    lines = read(
        csv_of(tmp_path, GOOD.replace("SCOTTIE", '"SCOTTIE'), GOOD, GOOD.replace("SCOTTIE DOG", 'SCOTTIE DOG"'), GOOD)
    )
    assert lines.select("line", "malformed").rows() == [(2, None), (5, None)]
    assert lines["Description"][0].count("\n") == 2


def test_invalid_utf8_becomes_replacement_characters(tmp_path: Path) -> None:
    lines = read(csv_of(tmp_path, GOOD.encode().replace(b"DOG", b"DOG \xa35")))
    assert lines["Description"].to_list() == ["SCOTTIE DOG \ufffd5"]


def test_a_file_with_a_header_only_has_no_lines(tmp_path: Path) -> None:
    assert [frame.height for frame in read_lines(csv_of(tmp_path))] == [0]
    path = tmp_path / "empty.parquet"
    pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String)).write_parquet(path)
    assert [frame.height for frame in read_lines(path)] == [0]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_missing_columns_are_reported(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"lacking.{suffix}"
    frame = pl.DataFrame([dict.fromkeys(COLUMNS, "1")]).drop("Price", "Customer ID")
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    with pytest.raises(UnreadableFile, match=r"lacking\.\w+: it has no column 'Price', 'Customer ID'"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x00\xff" * 500, b'"Invoice', b"Invoice;StockCode\n1;2\n"])
def test_a_file_that_is_no_retail_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"other\.csv"):
        read(path)


def test_a_truncated_parquet_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "whole.parquet"
    pl.DataFrame([dict.fromkeys(COLUMNS, "1")] * 1000).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableFile, match=r"whole\.parquet"):
        read(path)


def test_a_column_that_is_neither_text_nor_number_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "nested.parquet"
    pl.DataFrame([dict.fromkeys(COLUMNS, "1") | {"Description": b"\xff\xfe"}]).write_parquet(path)
    with pytest.raises(UnreadableFile, match=r"nested\.parquet"):
        read(path)


def test_the_reason_is_reported_if_a_file_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"none\.csv: No such file or directory"):
        read(tmp_path / "none.csv")
    with pytest.raises(UnreadableFile, match="Is a directory"):
        read(tmp_path)
