"""Read a retail file, Parquet or CSV, into frames of text. Values are parsed later, in `classifying`.

Parquet is read by Polars. CSV is read by the standard library, because the CSV reader of Polars rejects the whole file
for one unclosed quote, and silently drops extra fields of a line.
"""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import polars as pl

LINES_AT_A_TIME = 32_768

COLUMNS = ("Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country")

# The names in the other published file, "Online Retail" of 2010 and 2011.
_OTHER_SPELLINGS = {"Invoice": "InvoiceNo", "Price": "UnitPrice", "Customer ID": "CustomerID"}

_PARQUET_MAGIC = b"PAR1"


class UnreadableFile(Exception):
    """The file can't be imported: it can't be opened, isn't a retail file, or lacks a column."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def read_lines(path: Path, columns: Sequence[str] = COLUMNS) -> Iterator[pl.DataFrame]:
    """Read the file in frames of `LINES_AT_A_TIME` lines, in order. Raises `UnreadableFile`.

    A frame has the columns `line`, `malformed` and `columns`. The values of `columns` are text. For a record that can't
    be split into columns, `malformed` is the reason, and the values of `columns` are null. For other records
    `malformed` is null. There is at least one frame, which may be empty.

    In the file, columns may be in any order, and other columns are ignored. `Invoice`, `Price` and `Customer ID` may
    also be named `InvoiceNo`, `UnitPrice` and `CustomerID`. The first bytes decide whether a file is Parquet or CSV.

    Parquet: rows are numbered from 1. A float becomes its shortest decimal text. A time with a time zone becomes an ISO
    time in UTC that ends in Z.

    CSV: a record has the number of its first line. The header is line 1. Blank lines are skipped. The file is read as
    UTF-8, and invalid bytes become U+FFFD. In CSV a quoted field may contain line breaks. So all lines from a stray
    quote to the next one are read as one record. This can't be detected.
    """
    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
        yield from _parquet_lines(path, columns) if is_parquet else _csv_lines(path, columns)
    except OSError as error:
        raise UnreadableFile(path, error.strerror or str(error)) from error
    except pl.exceptions.PolarsError as error:
        raise UnreadableFile(path, str(error)) from error


def _parquet_lines(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """`read_lines` for a Parquet file, which is read one frame at a time."""
    rows = pl.scan_parquet(path, glob=False)
    schema = rows.collect_schema()
    names = _names_in(path, schema.names())
    texts = [_as_text(names[column], schema[names[column]]).alias(column) for column in columns]
    row_count = int(rows.select(pl.len()).collect().item())
    for start in range(0, max(1, row_count), LINES_AT_A_TIME):
        part = rows.slice(start, LINES_AT_A_TIME).select(texts).collect()
        yield part.select(
            pl.int_range(start + 1, start + 1 + part.height, dtype=pl.UInt32).alias("line"),
            pl.lit(None, dtype=pl.String).alias("malformed"),
            *columns,
        )


def _as_text(name: str, kind: pl.DataType) -> pl.Expr:
    if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
        return pl.col(name).dt.convert_time_zone("UTC").dt.to_string("%Y-%m-%d %H:%M:%S%.6fZ")
    return pl.col(name).cast(pl.String)


def _csv_lines(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """`read_lines` for a CSV file. A record with another number of fields than the header is malformed."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        records = _csv_records(file)
        _, header = next(records, (1, []))
        if isinstance(header, str):
            raise UnreadableFile(path, f"the header can't be read: {header}")
        names = [name.strip() for name in header]
        own_names = _names_in(path, names)
        positions = [names.index(own_names[column]) for column in columns]
        no_values: list[str | None] = [None] * len(columns)
        schema = pl.Schema({"line": pl.UInt32(), "malformed": pl.String(), **dict.fromkeys(columns, pl.String())})

        rows: list[tuple[int | str | None, ...]] = []
        for number, fields in records:
            if isinstance(fields, str):
                rows.append((number, fields, *no_values))
            elif len(fields) != len(names):
                problem = f"{len(fields)} fields instead of {len(names)}: {','.join(fields)}"
                rows.append((number, problem, *no_values))
            else:
                rows.append((number, None, *[fields[position] for position in positions]))
            if len(rows) == LINES_AT_A_TIME:
                yield pl.DataFrame(rows, schema=schema, orient="row")
                rows.clear()
        yield pl.DataFrame(rows, schema=schema, orient="row")


def _names_in(path: Path, names: list[str]) -> dict[str, str]:
    """The name that each column has in the file."""
    found = {column: [name for name in names if name in (column, _OTHER_SPELLINGS.get(column))] for column in COLUMNS}
    missing = [f"'{column}'" for column, own in found.items() if not own]
    if missing:
        raise UnreadableFile(path, f"it has no column {', '.join(missing)}")
    for column, own in found.items():
        if len(own) > 1:
            listed = " and ".join(f"'{name}'" for name in own)
            raise UnreadableFile(path, f"it has more than one column {column}: {listed}. Remove all but one of them")
    return {column: own[0] for column, own in found.items()}


def _csv_records(file: TextIO) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the number of each record's first line, and the list of its fields.

    If a record can't be read, the error and the text of its first line are yielded instead of the list. Then
    reading continues with the second line of the record. Otherwise a quote that is never closed would also skip the
    valid lines after it, up to the reader's limit for one field.
    """
    lines = _Lines(file)
    reader = csv.reader(lines, strict=True)
    while True:
        lines.record_lines.clear()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            first = lines.push_back_all_but_first()
            yield lines.first_number, f"{error}: {first.rstrip()}"
            lines.first_number += 1
            continue
        if fields is None:
            return
        if fields:
            yield lines.first_number, fields
        lines.first_number += len(lines.record_lines)


class _Lines:
    """The lines of a text file. The lines of the current record can be pushed back, to be read again."""

    def __init__(self, file: TextIO) -> None:
        self.first_number = 1
        self.record_lines: list[str] = []
        self._file = file
        self._pushed_back: deque[str] = deque()

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._pushed_back.popleft() if self._pushed_back else next(self._file)
        self.record_lines.append(line)
        return line

    def push_back_all_but_first(self) -> str:
        first, *others = self.record_lines
        self._pushed_back.extendleft(reversed(others))
        return first
