"""The figures of a run as JSON: the environment, the seconds of every round, the goals, and the failures."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.comparison import Comparison, Figures, GoalResult, evaluate_goal

PACKAGES: Final = (
    *("howdah", "shop", "sqlalchemy", "asyncpg", "advanced-alchemy", "fastcrud", "sqlmodel", "fastapi", "uvicorn"),
    *("granian", "litestar", "pydantic", "polars"),
)
PUBLISHED: Final = Path("benchmarks/results")
"""The figures in the documentation are made from the files in this directory."""


class NotPublishable(Exception):
    """These figures must not become part of the published results."""


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one comparison, or the reason why it has none."""

    comparison: Comparison
    figures: Mapping[str, Figures]
    failure: str | None = None
    measured_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def goals(self) -> list[GoalResult]:
        goals = self.comparison.goals()
        if self.failure is not None:
            return [GoalResult(goal, failure=self.failure) for goal in goals]
        return [evaluate_goal(goal, self.figures) for goal in goals]


@dataclass(frozen=True, slots=True)
class Environment:
    """The server on which the figures were measured. `to_json` adds the machine and the versions."""

    postgresql: str
    settings: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "versions": {
                "python": platform.python_version(),
                "postgresql": self.postgresql,
                **{name: _version(name) for name in PACKAGES},
            },
            "settings": dict(self.settings),
        }


def to_json(
    environment: Environment, results: Sequence[Result], skipped: Mapping[str, str], *, is_quick: bool = False
) -> dict[str, Any]:
    return {
        "environment": environment.to_json(),
        "is_quick": is_quick,
        "comparisons": [_comparison(result) for result in results],
        "skipped": dict(skipped),
    }


def failures(run: Mapping[str, Any]) -> list[str]:
    """Each failed comparison and each failed contender of a run, with the reason."""
    found = []
    for comparison in run["comparisons"]:
        if comparison["failure"] is not None:
            found.append(f"{comparison['name']}: {comparison['failure']}")
        for contender in comparison["contenders"]:
            if contender["failure"] is not None:
                found.append(f"{comparison['name']}: {contender['name']}: {contender['failure']}")
    return found


def write(file: Path, run: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")


def read(file: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(file.read_text())
    return run


def read_publishable(file: Path) -> dict[str, Any]:
    """Raises `NotPublishable` for the figures of a quick run."""
    run = read(file)
    if run.get("is_quick"):
        raise NotPublishable(f"{file} was measured with --quick: measure again without it")
    return run


def check_quick_file(file: Path) -> None:
    """Raise `NotPublishable` if a quick run would write into the published results."""
    if file.resolve().is_relative_to(PUBLISHED.resolve()):
        raise NotPublishable(f"--json {file}: a quick run can't be published; choose a file outside of {PUBLISHED}")


def check_mergeable(file: Path, environment: Mapping[str, Any]) -> None:
    """Raise `NotPublishable` if the file has figures of another environment, or of a quick run."""
    if not file.exists():
        return
    old = read_publishable(file)["environment"]
    merged = old | {"versions": old["versions"] | environment["versions"]}
    if any(merged[name] != environment[name] for name in ("processor", "cores", "settings", "versions")):
        raise NotPublishable(
            f"--with {file}: its figures were measured on another machine or with other versions; run all comparisons"
        )


def merge(file: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Add the comparisons of the file to the run, except those that the run contains itself."""
    if not file.exists():
        return run
    if run["is_quick"]:
        raise NotPublishable(f"--with {file}: figures of a quick run can't be merged into others")
    check_mergeable(file, run["environment"])
    old = read(file)
    new = {each["name"]: each for each in run["comparisons"]}
    merged = [new.pop(each["name"], each) for each in old["comparisons"]]
    skipped = {name: why for name, why in old["skipped"].items() if name not in new} | run["skipped"]
    return {
        "environment": run["environment"],
        "is_quick": False,
        "comparisons": [*merged, *new.values()],
        "skipped": skipped,
    }


def _comparison(result: Result) -> dict[str, Any]:
    """The JSON of one comparison."""
    comparison = result.comparison
    return {
        "name": comparison.name,
        "description": comparison.description.format(size=f"{comparison.count:,}"),
        "unit": comparison.unit,
        "size": comparison.count,
        "failure": result.failure,
        "goals": [
            {
                "contender": each.goal.contender,
                "kind": each.goal.kind,
                "bound": each.goal.bound,
                "against": each.goal.against,
                "median": each.median,
                "minimum": min(each.values, default=None),
                "maximum": max(each.values, default=None),
                "is_met": each.is_met,
                "failure": each.failure,
            }
            for each in result.goals()
        ],
        "contenders": [
            {
                "name": name,
                "role": each.role,
                "units": each.units,
                "omission": each.omission,
                "failure": each.failure,
                "median": each.median,
                "per_second": each.per_second,
                "seconds": each.seconds,
                **({"megabytes": each.megabytes, "peak": statistics.median(each.megabytes)} if each.megabytes else {}),
                **_latency(each),
                **_cpu(each),
                **({"batch_size": statistics.median(each.batch_sizes)} if each.batch_sizes else {}),
            }
            for name, each in result.figures.items()
        ],
        "measured_at": result.measured_at,
    }


def _latency(figures: Figures) -> dict[str, Any]:
    if not figures.latencies:
        return {}
    p50s, p99s = zip(*figures.latencies, strict=True)
    return {"p50": statistics.median(p50s), "p99": statistics.median(p99s), "latencies": figures.latencies}


def _cpu(figures: Figures) -> dict[str, Any]:
    """The medians of the CPU time per unit, in seconds, by part."""
    if not figures.cpu:
        return {}
    seconds = {part: [each[part] for each in figures.cpu if part in each] for part in figures.cpu[0]}
    return {"cpu": {part: statistics.median(values) / figures.units for part, values in seconds.items()}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
