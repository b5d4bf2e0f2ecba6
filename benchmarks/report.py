"""Create the texts and tables of a comparison from its JSON. The terminal and the documentation show the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

QUICK_NOTE: Final = (
    "Measured with --quick: small sizes, short windows, one round. The goals are set for the full sizes. "
    "These figures are not for publication."
)

_NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True)
class TextTable:
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[str] = frozenset()
    """Headings of the columns that are aligned to the right."""


def goals_table(comparison: Mapping[str, Any]) -> TextTable:
    rows = [(goal["contender"], ratio(goal), goal_text(goal), verdict(goal)) for goal in comparison["goals"]]
    return TextTable(("contender", "ratio (min - max)", "goal", "result"), rows)


def contenders_table(comparison: Mapping[str, Any]) -> TextTable:
    """One row per contender. The column of the units is left out if all are 1. The columns of the peak, the
    latencies, the CPU time, the batches and the failures are left out if they are empty."""
    contenders, unit = comparison["contenders"], comparison["unit"]
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "contender": lambda each: each["name"],
        "role": lambda each: each["role"],
        "median": lambda each: duration(each["median"]) if each["seconds"] else "",
        "min - max": _spread,
        "rounds": lambda each: str(len(each["seconds"])),
        unit: lambda each: f"{each['units']:,}",
        f"{unit}/s": lambda each: per_second(each) if each["seconds"] else "",
        "peak MB": lambda each: f"{each['peak']:.0f}" if "peak" in each else "",
        "p50": lambda each: duration(each["p50"]) if "p50" in each else "",
        "p99": lambda each: duration(each["p99"]) if "p99" in each else "",
        "service CPU": partial(_cpu, "service"),
        "database CPU": partial(_cpu, "database"),
        "wrk CPU": partial(_cpu, "wrk"),
        "batch": lambda each: f"{each['batch_size']:.1f}" if "batch_size" in each else "",
        "failure": lambda each: each["failure"] or "",
    }
    if all(each["units"] == 1 for each in contenders):
        del columns[unit]
    for heading in list(columns)[list(columns).index(f"{unit}/s") + 1 :]:
        if not any(columns[heading](each) for each in contenders):
            del columns[heading]
    rows = [[text_of(each) for text_of in columns.values()] for each in contenders]
    return TextTable(list(columns), rows, frozenset(columns) - {"contender", "role", "failure"})


def notes(comparison: Mapping[str, Any]) -> list[str]:
    """Sentences below the tables: contenders that do less work than the others."""
    return [f"{each['name']} does less: {each['omission']}." for each in comparison["contenders"] if each["omission"]]


def goal_text(goal: Mapping[str, Any]) -> str:
    return f"{bound(goal)}{_of(goal)}"


def bound(goal: Mapping[str, Any]) -> str:
    return f"{'≥' if goal['kind'] == 'times as fast' else '≤'} {goal['bound']:g}"


def goal_sentence(goal: Mapping[str, Any]) -> str:
    """The goal's contender and its figure, in Markdown."""
    if goal["median"] is None:
        return f"{goal['contender']}: {_NOT_MEASURED} ({goal['failure']})"
    figure = f"{goal['median']:.0f}" if goal["kind"] == "MB" else _number(goal["median"])
    return f"{goal['contender']}: **{figure}**{_of(goal)}"


def ratio(goal: Mapping[str, Any]) -> str:
    """The measured ratio, or the reason why there is none."""
    if goal["median"] is None:
        return str(goal["failure"])
    if goal["kind"] == "MB":
        return f"{goal['median']:.0f} MB ({goal['minimum']:.0f} - {goal['maximum']:.0f})"
    unit = " µs" if goal["kind"] == "µs" else ""
    return f"{_number(goal['median'])}{unit} ({_number(goal['minimum'])} - {_number(goal['maximum'])})"


def verdict(goal: Mapping[str, Any]) -> str:
    return {True: "met", False: "not met", None: _NOT_MEASURED}[goal["is_met"]]


def per_second(contender: Mapping[str, Any]) -> str:
    return f"{contender['per_second']:,.{0 if contender['per_second'] >= 100 else 2}f}"


def duration(seconds: float) -> str:
    if seconds >= 0.1:
        return f"{seconds:.3f} s"
    return f"{seconds * 1000:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} µs"


def _of(goal: Mapping[str, Any]) -> str:
    against = f" {goal['against']}" if goal["against"] else ""
    return {
        "times as fast": f" × the speed of{against}",
        "of the time": f" × the time of{against}",
        "of the p50": f" × the p50 of{against}",
        "MB": " MB",
        "µs": " µs",
    }[goal["kind"]]


def _spread(contender: Mapping[str, Any]) -> str:
    seconds = contender["seconds"]
    return f"{duration(min(seconds))} - {duration(max(seconds))}" if seconds else ""


def _cpu(part: str, contender: Mapping[str, Any]) -> str:
    """The CPU time of this part per unit, and its share of one core."""
    seconds = contender.get("cpu", {}).get(part)
    if seconds is None:
        return ""
    return f"{seconds * 1e6:.0f} µs ({seconds * contender['per_second']:.0%})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
