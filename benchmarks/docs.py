"""`make bench-docs`: write the figures of a run between the markers of docs/benchmarks.md and of the README."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import report, results

FIGURES: Final = Path("benchmarks/results/latest.json")
PAGE: Final = Path("docs/benchmarks.md")
README: Final = Path("README.md")
START: Final = "<!-- figures: made by `make bench-docs` from benchmarks/results/latest.json -->"
END: Final = "<!-- end of figures -->"

# The goals that the README shows. Each is the name of the comparison, the contender, and the contender with which it is
# compared. Include a goal that isn't met.
HEADLINES: Final[Sequence[tuple[str, str, str | None]]] = (
    ("bulk-create", "howdah create_many", "advanced-alchemy add_many"),
    ("upsert", "howdah upsert_many", "advanced-alchemy upsert_many"),
    ("pages", "deep page, by time", "first page, by time"),
    ("memory", "howdah create_many(keys=False)", None),
    ("get-user", "howdah view, 64 connections", "reference, 64 connections"),
    ("transfers", "howdah Ledger.submit, uniform, 256 tasks", "reference, uniform, 256 tasks"),
)


def replace_figures(page: str, text: str) -> str:
    """The page with this text between its markers. Raises `ValueError` for a page without markers."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page needs the lines {START} and {END}")
    return f"{before}{START}\n{text}\n{END}{after}"


def all_figures(run: dict[str, Any]) -> str:
    """The figures in docs/benchmarks.md: the environment, each goal's ratio, and the figures of all contenders."""
    return "\n".join([*_environment(run["environment"]), "", *_goals(run), *_skipped(run), *_comparisons(run)])


def headline_figures(run: dict[str, Any]) -> str:
    """The figures in the README: the ratios of `HEADLINES`. Raises `ValueError` if one is missing."""
    goals = {
        (comparison["name"], goal["contender"], goal["against"]): (comparison, goal)
        for comparison in run["comparisons"]
        for goal in comparison["goals"]
    }
    lines = ["| | measured | goal | |", "| --- | --- | --- | --- |"]
    for headline in HEADLINES:
        if headline not in goals:
            raise ValueError(f"the run has no goal {headline}: run `make bench`, or change HEADLINES in {__file__}")
        comparison, goal = goals[headline]
        size = f", {comparison['size']:,} rows" if comparison["unit"] == "rows" else ""
        name = f"{comparison['name']}{size}"
        lines.append(_row((name, report.goal_sentence(goal), report.bound(goal), report.verdict(goal))))
    return "\n".join(lines)


def _environment(environment: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    settings = ", ".join(f"`{name}` {value}" for name, value in environment["settings"].items())
    machine = f"{environment['cores']} cores ({environment['processor']}, {environment['system']})"
    yield f"Measured {environment['measured_at'][:10]} on {machine}."
    yield ""
    yield f"{versions}."
    yield ""
    yield f"PostgreSQL's settings: {settings}."


def _goals(run: dict[str, Any]) -> Iterator[str]:
    yield "| | contender | ratio (min - max) | goal | result |"
    yield "| --- | --- | --- | --- | --- |"
    for comparison in run["comparisons"]:
        for row in report.goals_table(comparison).rows:
            yield _row((comparison["name"], *row))


def _skipped(run: dict[str, Any]) -> Iterator[str]:
    for name, reason in run["skipped"].items():
        yield ""
        yield f"`{name}` was skipped: {reason}."


def _comparisons(run: dict[str, Any]) -> Iterator[str]:
    """The description, the table and the notes of each comparison, in Markdown."""
    for comparison in run["comparisons"]:
        yield ""
        measured = f" (measured {comparison['measured_at'][:10]})" if "measured_at" in comparison else ""
        yield f"**{comparison['name']}**{measured}: {comparison['description']}."
        yield ""
        if comparison["failure"] is not None:
            yield f"Failed: {comparison['failure']}."
            continue
        table = report.contenders_table(comparison)
        yield _row(table.headings)
        yield _row(["---:" if heading in table.numeric else "---" for heading in table.headings])
        for row in table.rows:
            yield _row(row)
        for note in report.notes(comparison):
            yield ""
            yield note


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="benchmarks.docs", description=__doc__)
    parser.add_argument("--figures", type=Path, default=FIGURES, metavar="JSON")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the pages don't match the figures")
    arguments = parser.parse_args()
    try:
        run = results.read_publishable(arguments.figures)
    except results.NotPublishable as error:
        parser.error(str(error))
    for page, text in ((PAGE, all_figures(run)), (README, headline_figures(run))):
        old = page.read_text()
        new = replace_figures(old, text)
        if arguments.check and new != old:
            raise SystemExit(f"{page} doesn't match {arguments.figures}: run make bench-docs")
        page.write_text(new)


if __name__ == "__main__":
    main()
