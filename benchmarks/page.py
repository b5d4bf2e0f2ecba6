"""`make bench-docs`: writes the figures of a run between the markers in docs/benchmarks.md and in the README."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import report, results

FIGURES: Final = Path("benchmarks/results/latest.json")
PAGE: Final = Path("docs/benchmarks.md")
README: Final = Path("README.md")
START: Final = "<!-- figures: made by `make bench-docs` from benchmarks/results/latest.json -->"
END: Final = "<!-- end of figures -->"

# The goals that the README shows: comparison, contender and what it is compared with. One that isn't met belongs here.
HEADLINES: Final[Sequence[tuple[str, str, str | None]]] = (
    ("bulk-create", "howdah create_many", "advanced-alchemy add_many"),
    ("upsert", "howdah upsert_many", "advanced-alchemy upsert_many"),
    ("pages", "deep page, by time", "first page, by time"),
    ("memory", "howdah create_many(keys=False)", None),
    ("get-user", "howdah view, 64", "reference, 64"),
    ("transfers", "howdah Ledger.submit, spread, 256", "reference, spread, 256"),
)


def written(page: str, text: str) -> str:
    """The page with this text as its figures. Raises `ValueError` for a page without markers."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page needs the lines {START} and {END}")
    return f"{before}{START}\n{text}\n{END}{after}"


def figures(run: dict[str, Any]) -> str:
    return "\n".join([*_place(run["place"]), "", *_goals(run), *_left_out(run), *_contenders(run)])


def brief(run: dict[str, Any]) -> str:
    """What the README shows: the ratios of `HEADLINES`. Raises `ValueError` if the run doesn't have one of them."""
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
        cells = (f"{comparison['name']}{size}", report.measured(goal), report.bound(goal), report.verdict(goal))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _place(place: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items() if version)
    settings = ", ".join(f"`{name}` {value}" for name, value in place["settings"].items())
    yield f"Taken {place['taken_at'][:10]} on {place['cores']} cores ({place['processor']}, {place['system']})."
    yield ""
    yield f"{versions}."
    yield ""
    yield f"The server: {settings}."


def _goals(run: dict[str, Any]) -> Iterator[str]:
    yield "| | contender | ratio (least-most) | goal | |"
    yield "| --- | --- | --- | --- | --- |"
    for comparison in run["comparisons"]:
        for goal in comparison["goals"]:
            cells = (comparison["name"], goal["contender"], report.ratio(goal), report.goal_text(goal))
            yield f"| {' | '.join(cells)} | {report.verdict(goal)} |"


def _left_out(run: dict[str, Any]) -> Iterator[str]:
    for name, reason in run["left_out"].items():
        yield ""
        yield f"`{name}` was left out: {reason}."


def _contenders(run: dict[str, Any]) -> Iterator[str]:
    for comparison in run["comparisons"]:
        unit = comparison["unit"]
        yield ""
        taken = f" (taken {comparison['taken_at'][:10]})" if "taken_at" in comparison else ""
        yield f"**{comparison['name']}**{taken}: {comparison['work']}."
        yield ""
        latency = " p50 | p99 |" if any("p50" in each for each in comparison["contenders"]) else ""
        yield f"| contender | role | median | spread | rounds | {unit} | {unit}/s | peak MB |{latency}"
        yield f"| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |{' ---: | ---: |' if latency else ''}"
        for each in comparison["contenders"]:
            seconds = each["seconds"]
            cells = (
                each["name"],
                each["role"],
                report.duration(statistics.median(seconds)),
                f"{report.duration(min(seconds))} - {report.duration(max(seconds))}",
                str(len(seconds)),
                f"{each['units']:,}",
                report.per_second(each),
                f"{each['peak']:.0f}" if "peak" in each else "",
                *([report.duration(each[part]) if part in each else "" for part in ("p50", "p99")] if latency else []),
            )
            yield f"| {' | '.join(cells)} |"
        for each in comparison["contenders"]:
            if each["lacks"]:
                yield ""
                yield f"{each['name']} does less: {each['lacks']}."


def main() -> None:
    options = argparse.ArgumentParser(prog="benchmarks.page", description=__doc__)
    options.add_argument("--figures", type=Path, default=FIGURES, metavar="JSON")
    options.add_argument("--check", action="store_true", help="only fail if the pages aren't those of the figures")
    given = options.parse_args()
    run = results.read(given.figures)
    for page, text in ((PAGE, figures(run)), (README, brief(run))):
        old = page.read_text()
        new = written(old, text)
        if given.check and new != old:
            raise SystemExit(f"{page} isn't made from {given.figures}: make bench-docs")
        page.write_text(new)


if __name__ == "__main__":
    main()
