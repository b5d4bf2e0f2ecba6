"""Write the rejected lines to a CSV file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import polars as pl

from shop.importing.reading import COLUMNS, read_lines

_HEADER = ("line", "reason", "detail", *COLUMNS)


class UnwritableFile(Exception):
    """The file with the rejected lines can't be written."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def write_rejects(source: Path, rejects: pl.DataFrame, target: Path) -> None:
    """Write a CSV file with the line number, reason and detail of each rejected line, and its eight columns.

    The source is read a second time, because keeping the text of all rejected lines would need more memory. The lines
    are written to a temporary file, which then replaces the target. After an error the target is unchanged. Without
    rejected lines the target has only a header. A malformed record has no columns; its text is in the detail. Raises
    `UnwritableFile` for the target, and `UnreadableFile` for the source.
    """
    try:
        _check_target(target, source)
        with _replace_atomically(target) as file:
            pl.DataFrame(schema=dict.fromkeys(_HEADER, pl.String)).write_csv(file)
            for lines in read_lines(source):
                rejected = lines.join(rejects, on="line", maintain_order="left").select(_HEADER)
                rejected.write_csv(file, include_header=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UnwritableFile(target, getattr(error, "strerror", None) or str(error)) from error


@contextmanager
def _replace_atomically(target: Path) -> Iterator[BinaryIO]:
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        with suppress(OSError):
            partial.unlink()


def _check_target(target: Path, source: Path) -> None:
    if target.exists():
        if not target.is_file():  # for example, /dev/null would be replaced by a file
            raise UnwritableFile(target, "it isn't a regular file")
        if target.samefile(source):
            raise UnwritableFile(target, "it is the file that is imported")
