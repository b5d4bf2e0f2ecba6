"""The tables at the end of a run."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from soak.bad_day.timeline import Inflicted, Timeline
from soak.bad_day.traffic import Traffic
from soak.bad_day.violations import Violations

_WIDTH = 140
_EXAMPLE = 700


def print_report(timeline: Timeline, traffic: Traffic, violations: Violations) -> None:
    console = Console(width=_WIDTH, soft_wrap=True)
    console.print(_build_fault_table(timeline))
    console.print(_build_request_table(traffic))
    if violations:
        for kind, found in violations.found.items():
            print(f"VIOLATION {kind}, for example: {found.example[:_EXAMPLE]}")
        console.print(_build_violation_table(violations))
    else:
        console.print("no violations")


def _build_fault_table(timeline: Timeline) -> Table:
    """One row for each kind of fault, with the worst figures of all its times."""
    table = Table("fault", "times", "requests during", "5xx share", "slowest answer", "recovery", title="Faults")
    by_name: defaultdict[str, list[Inflicted]] = defaultdict(list)
    for each in timeline.inflicted:
        by_name[each.name].append(each)
    for name, times in sorted(by_name.items()):
        requests = sum(each.requests for each in times)
        share = sum(each.unavailable for each in times) / max(1, requests)
        recoveries = [each.recovery_seconds for each in times]
        measured = [seconds for seconds in recoveries if seconds is not None]
        table.add_row(
            name,
            str(len(times)),
            f"{requests:,}",
            f"{share:.1%}",
            f"{max(each.slowest for each in times):.1f} s",
            f"{max(measured):.1f} s" if len(measured) == len(times) else f"not in {recoveries.count(None)}",
        )
    return table


def _build_request_table(traffic: Traffic) -> Table:
    table = Table("request", "answers", "slowest", title="Requests")
    by_kind: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for (kind, outcome), count in sorted(traffic.outcomes.items()):
        by_kind[kind][outcome] = count
    for kind, outcomes in by_kind.items():
        answers = ", ".join(f"{outcome}: {count:,}" for outcome, count in outcomes.items())
        table.add_row(kind, answers, f"{traffic.slowest[kind]:.1f} s")
    return table


def _build_violation_table(violations: Violations) -> Table:
    table = Table("violation", "times", "first at", "during", title="Violations")
    for kind, found in violations.found.items():
        during = ", ".join(f"{name} ({count})" for name, count in found.faults.most_common(4))
        table.add_row(Text(kind), f"{found.count:,}", f"{found.first_at:.0f} s", during)
    return table
