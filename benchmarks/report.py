"""A comparison as a person reads it: the goals and their ratios first, then every contender's figures.

It is made of the JSON, so that the terminal, the documentation and the file say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def goal_text(goal: Mapping[str, Any]) -> str:
    return f"{bound(goal)}{_of(goal)}"


def bound(goal: Mapping[str, Any]) -> str:
    return f"{'≥' if goal['kind'] == 'times as fast' else '≤'} {goal['bound']:g}"


def measured(goal: Mapping[str, Any]) -> str:
    """The goal's contender and its figure, as a sentence."""
    figure = f"{goal['median']:.0f}" if goal["kind"] == "MB" else _number(goal["median"])
    return f"{goal['contender']}: **{figure}**{_of(goal)}"


def _of(goal: Mapping[str, Any]) -> str:
    against = f" {goal['against']}" if goal["against"] else ""
    return {
        "times as fast": f" × the speed of{against}",
        "of the time": f" × the time of{against}",
        "of the p50": f" × the p50 of{against}",
        "MB": " MB",
    }[goal["kind"]]


def ratio(goal: Mapping[str, Any]) -> str:
    if goal["kind"] == "MB":
        return f"{goal['median']:.0f} MB ({goal['least']:.0f}-{goal['most']:.0f})"
    return f"{_number(goal['median'])} ({_number(goal['least'])}-{_number(goal['most'])})"


def verdict(goal: Mapping[str, Any]) -> str:
    return "met" if goal["met"] else "not met"


def per_second(contender: Mapping[str, Any]) -> str:
    return f"{contender['per_second']:,.{0 if contender['per_second'] >= 100 else 2}f}"


def duration(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{seconds * 1000:.2f} ms"


def show(console: Console, comparison: Mapping[str, Any]) -> None:
    console.print()
    console.print(f"[bold]{comparison['name']}[/]: {comparison['work']}")
    if comparison["goals"]:
        goals = Table("", "ratio", "goal", "", box=SIMPLE_HEAD)
        for goal in comparison["goals"]:
            colour = "green" if goal["met"] else "red"
            goals.add_row(goal["contender"], ratio(goal), goal_text(goal), f"[{colour}]{verdict(goal)}[/]")
        console.print(goals)
    figures = Table("contender", "role", box=SIMPLE_HEAD)
    for heading in ("median", "spread", "rounds", comparison["unit"], f"{comparison['unit']}/s"):
        figures.add_column(heading, justify="right")
    peaks = any("peak" in each for each in comparison["contenders"])
    if peaks:
        figures.add_column("peak MB", justify="right")
    latencies = any("p50" in each for each in comparison["contenders"])
    if latencies:
        figures.add_column("p50", justify="right")
        figures.add_column("p99", justify="right")
    for each in comparison["contenders"]:
        seconds = each["seconds"]
        figures.add_row(
            each["name"],
            each["role"],
            duration(each["median"]),
            f"{duration(min(seconds))} - {duration(max(seconds))}",
            str(len(seconds)),
            f"{each['units']:,}",
            per_second(each),
            *([f"{each['peak']:.0f}" if "peak" in each else ""] if peaks else []),
            *([duration(each[part]) if part in each else "" for part in ("p50", "p99")] if latencies else []),
        )
    console.print(figures)
    for each in comparison["contenders"]:
        if each["lacks"]:
            console.print(f"  {each['name']} does less: {each['lacks']}")


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
