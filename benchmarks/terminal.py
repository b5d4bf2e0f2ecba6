"""The output of `make bench` in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import report

_COLOURS = {"met": "green", "not met": "red", "not measured": "yellow"}
_WIDTH_OF_FILES = 200
"""The width of the output to a file or a pipe, which has no width of its own."""


class Terminal:
    def __init__(self) -> None:
        console = Console()
        self._console = console if console.is_terminal else Console(width=_WIDTH_OF_FILES)

    def print_line(self, text: str) -> None:
        self._console.print(escape(text))

    def print_comparison(self, comparison: Mapping[str, Any]) -> None:
        self._console.print()
        self._console.print(f"[bold]{escape(comparison['name'])}[/]: {escape(comparison['description'])}")
        if comparison["failure"] is not None:
            self.print_line(f"  failed: {comparison['failure']}")
        for table in (report.goals_table(comparison), report.contenders_table(comparison)):
            if table.rows:
                self._console.print(_rich_table(table))
        for note in report.notes(comparison):
            self.print_line(f"  {note}")

    @contextmanager
    def progress(self, name: str) -> Iterator[Callable[[str], None]]:
        """A line with the current step. The yielded function changes it."""
        with self._console.status(f"{name}: inserting the data") as status:
            yield lambda text: status.update(f"{name}: {escape(text)}")


def _rich_table(table: report.TextTable) -> Table:
    rich = Table(box=SIMPLE_HEAD)
    for heading in table.headings:
        # Figures are never wrapped. Long failures and names of contenders are.
        is_numeric = heading in table.numeric
        rich.add_column(heading, justify="right" if is_numeric else "left", no_wrap=is_numeric)
    for row in table.rows:
        cells = [escape(cell) for cell in row]
        if (colour := _COLOURS.get(row[-1])) is not None:
            cells[-1] = f"[{colour}]{cells[-1]}[/]"
        rich.add_row(*cells)
    return rich
