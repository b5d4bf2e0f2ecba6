"""Writes the lines that weren't imported to a file of their own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import polars as pl

from shop.importing.reading import COLUMNS, read_lines

_HEADER = ("line", "reason", "detail", *COLUMNS)


class UnwritableFile(Exception):
    """The rejects can't be written there."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def write_rejects(source: Path, rejects: pl.DataFrame, target: Path) -> None:
    """CSV of each reject's line number, reason and detail, then the eight columns as they are in the source.

    The source is read a second time, which costs less than keeping the text of every reject. The target is whole or as
    it was: it is written beside its place and then put there. Without rejects it has a header only. A malformed record
    has no columns; its text is in the detail. Raises `UnwritableFile`, and `UnreadableFile` of the source.
    """
    try:
        _refuse_to_replace(target, source)
        with _in_the_place_of(target) as file:
            pl.DataFrame(schema=dict.fromkeys(_HEADER, pl.String)).write_csv(file)
            for lines in read_lines(source):
                rejected = lines.join(rejects, on="line", maintain_order="left").select(_HEADER)
                rejected.write_csv(file, include_header=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UnwritableFile(target, getattr(error, "strerror", None) or str(error)) from error


@contextmanager
def _in_the_place_of(target: Path) -> Iterator[BinaryIO]:
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


def _refuse_to_replace(target: Path, source: Path) -> None:
    if target.exists():
        if not target.is_file():  # a file in the place of /dev/null would be worse than an error
            raise UnwritableFile(target, "it isn't a regular file")
        if target.samefile(source):
            raise UnwritableFile(target, "it is the file that is imported")
