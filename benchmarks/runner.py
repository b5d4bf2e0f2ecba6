"""Run comparisons one after the other, show them, and write their figures to a file.

A comparison that fails is reported, and the next one runs. The file is written after each comparison, so that an
interrupted run keeps its figures.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from benchmarks import report, results
from benchmarks.comparison import Comparison, ContenderFailed, Figures, failure_text, measure

if TYPE_CHECKING:
    from benchmarks.postgres import Connections

SET_UP_SECONDS: Final = 300.0
"""The time limit of `set_up` at the comparison's own size. For larger sizes the limit is proportionally longer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    sizes: Mapping[str, int] | Sequence[int] = ()
    """One size for some comparisons, by name, or several sizes for all comparisons. By default each has its own."""
    rounds: int = 5
    is_quick: bool = False
    file: Path | None = None
    merge_with: Path | None = None

    def sizes_of(self, kind: type[Comparison]) -> Sequence[int]:
        own = kind.quick_size if self.is_quick else kind.size
        if isinstance(self.sizes, Mapping):
            return [self.sizes.get(kind.name, own)]
        return self.sizes or [own]


class Display(Protocol):
    def print_line(self, text: str) -> None: ...

    def print_comparison(self, comparison: Mapping[str, Any]) -> None: ...

    def progress(self, name: str) -> AbstractContextManager[Callable[[str], None]]: ...


async def run_comparisons(
    connections: Connections,
    environment: results.Environment,
    kinds: Sequence[type[Comparison]],
    options: Options,
    display: Display,
) -> bool:
    """Run the comparisons. Returns false if a comparison or a contender failed. A goal that isn't met is no failure."""
    if options.merge_with is not None:
        results.check_mergeable(options.merge_with, environment.to_json())
    display.print_line("Ratios are medians over the rounds, with the minimum and the maximum in brackets.")
    if options.is_quick:
        display.print_line(report.QUICK_NOTE)
    finished: list[results.Result] = []
    skipped: dict[str, str] = {}
    run = results.to_json(environment, finished, skipped, is_quick=options.is_quick)
    for kind in kinds:
        for size in options.sizes_of(kind):
            comparison = kind(connections, size, rounds=options.rounds, is_quick=options.is_quick)
            reason = await comparison.skip_reason()
            if reason is not None:
                skipped[kind.name] = reason
                display.print_line(f"\n{kind.name} is skipped: {reason}")
                break
            finished.append(await _run_comparison(comparison, display))
            run = results.to_json(environment, finished, skipped, is_quick=options.is_quick)
            display.print_comparison(run["comparisons"][-1])
            if options.file is not None:
                merged = run if options.merge_with is None else results.merge(options.merge_with, run)
                results.write(options.file, merged)
    return _print_summary(run, display)


async def _run_comparison(comparison: Comparison, display: Display) -> results.Result:
    """Run all rounds of a comparison. An error becomes the failure of the result."""
    from benchmarks.table_data import empty_tables

    figures: Mapping[str, Figures] = {}
    failure = None
    limit = SET_UP_SECONDS * max(1.0, comparison.count / comparison.size)
    scope = asyncio.timeout(limit)
    with display.progress(comparison.name) as show_progress:
        try:
            try:
                async with scope:
                    await empty_tables(comparison.connections.driver)
                    await comparison.set_up()
            except TimeoutError as error:
                if not scope.expired():
                    raise
                raise ContenderFailed(f"its data was not inserted within {limit:g} s") from error
            rounds = 1 if comparison.is_quick else comparison.rounds()
            figures = await measure(comparison, rounds=rounds, show_progress=show_progress)
        except Exception as error:
            _log.info("%s failed", comparison.name, exc_info=error)
            failure = failure_text(error)
        finally:
            await _tear_down(comparison, display, has_failed=failure is not None)
    return results.Result(comparison, figures, failure)


async def _tear_down(comparison: Comparison, display: Display, *, has_failed: bool) -> None:
    """Stop what the comparison has started, so that the next one runs alone. An error here affects no figures."""
    try:
        await comparison.tear_down()
        if has_failed:
            await comparison.connections.recover()
    except Exception as error:
        _log.info("stopping %s failed", comparison.name, exc_info=error)
        display.print_line(f"{comparison.name}: tear_down failed: {failure_text(error)}")


def _print_summary(run: Mapping[str, Any], display: Display) -> bool:
    """Print the number of goals that were met, and the failures. Returns whether there were no failures."""
    goals = [goal for comparison in run["comparisons"] for goal in comparison["goals"]]
    met = sum(goal["is_met"] is True for goal in goals)
    missing = sum(goal["is_met"] is None for goal in goals)
    display.print_line(f"\n{met} of {len(goals)} goals met{f', {missing} not measured' if missing else ''}")
    failures = results.failures(run)
    if failures:
        display.print_line(f"\n{len(failures)} failed (--verbose shows the tracebacks):")
        for failure in failures:
            display.print_line(f"  {failure}")
    if run["is_quick"]:
        display.print_line(f"\n{report.QUICK_NOTE}")
    return not failures
