"""The texts and tables of a comparison, made from its JSON. The terminal and the documentation show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

QUICK_NOTE: Final = (
    "Measured with --quick: small sizes, short windows, one round. These figures are not for publication."
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
    """One row per contender. The columns peak MB, p50, p99 and failure exist only if a contender has a value."""
    contenders, unit = comparison["contenders"], comparison["unit"]
    numeric = ["median", "min - max", "rounds", unit, f"{unit}/s"]
    optional = {"peak": "peak MB", "p50": "p50", "p99": "p99"}
    shown = {key: heading for key, heading in optional.items() if any(key in each for each in contenders)}
    has_failures = any(each["failure"] for each in contenders)
    rows = []
    for each in contenders:
        seconds = each["seconds"]
        rows.append(
            (
                each["name"],
                each["role"],
                duration(each["median"]) if seconds else "",
                f"{duration(min(seconds))} - {duration(max(seconds))}" if seconds else "",
                str(len(seconds)),
                f"{each['units']:,}",
                per_second(each) if seconds else "",
                *(_optional_cell(each, key) for key in shown),
                *([each["failure"] or ""] if has_failures else []),
            )
        )
    headings = ("contender", "role", *numeric, *shown.values(), *(["failure"] if has_failures else []))
    return TextTable(headings, rows, frozenset((*numeric, *shown.values())))


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
        return f"{goal['contender']}: {ratio(goal)}"
    figure = f"{goal['median']:.0f}" if goal["kind"] == "MB" else _number(goal["median"])
    return f"{goal['contender']}: **{figure}**{_of(goal)}"


def ratio(goal: Mapping[str, Any]) -> str:
    if goal["median"] is None:
        return f"{_NOT_MEASURED} ({goal['failure']})"
    if goal["kind"] == "MB":
        return f"{goal['median']:.0f} MB ({goal['minimum']:.0f} - {goal['maximum']:.0f})"
    return f"{_number(goal['median'])} ({_number(goal['minimum'])} - {_number(goal['maximum'])})"


def verdict(goal: Mapping[str, Any]) -> str:
    return {True: "met", False: "not met", None: _NOT_MEASURED}[goal["is_met"]]


def per_second(contender: Mapping[str, Any]) -> str:
    return f"{contender['per_second']:,.{0 if contender['per_second'] >= 100 else 2}f}"


def duration(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{seconds * 1000:.2f} ms"


def _of(goal: Mapping[str, Any]) -> str:
    against = f" {goal['against']}" if goal["against"] else ""
    return {
        "times as fast": f" × the speed of{against}",
        "of the time": f" × the time of{against}",
        "of the p50": f" × the p50 of{against}",
        "MB": " MB",
    }[goal["kind"]]


def _optional_cell(contender: Mapping[str, Any], key: str) -> str:
    if key not in contender:
        return ""
    return f"{contender[key]:.0f}" if key == "peak" else duration(contender[key])


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
