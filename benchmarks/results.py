"""The figures of a run as JSON: where they were taken, every round's seconds, and what came of the goals."""

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

from benchmarks.comparison import Comparison, Figures, Outcome, outcome

PACKAGES: Final = (
    *("howdah", "shop", "sqlalchemy", "asyncpg", "advanced-alchemy", "fastcrud", "sqlmodel", "fastapi", "uvicorn"),
    *("granian", "pydantic", "polars"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What one comparison came to."""

    comparison: Comparison
    figures: Mapping[str, Figures]
    taken_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def outcomes(self) -> list[Outcome]:
        return [outcome(goal, self.figures) for goal in self.comparison.goals()]


@dataclass(frozen=True, slots=True)
class Place:
    """The machine, the server and the versions that figures are true of."""

    postgresql: str
    settings: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {
            "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
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


def as_dict(place: Place, results: Sequence[Result], left_out: Mapping[str, str]) -> dict[str, Any]:
    return {
        "place": place.as_dict(),
        "comparisons": [{**_comparison(result), "taken_at": result.taken_at} for result in results],
        "left_out": dict(left_out),
    }


def write(file: Path, run: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")


def with_others_of(file: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The run, and of the one in the file what this one hasn't taken anew."""
    if not file.exists():
        return run
    old = read(file)
    place = old["place"] | {"versions": old["place"]["versions"] | run["place"]["versions"]}
    if any(place[name] != run["place"][name] for name in ("processor", "cores", "settings", "versions")):
        raise ValueError(f"the figures in {file} are of another place, or of other versions: take all of them anew")
    new = {each["name"]: each for each in run["comparisons"]}
    kept = [new.pop(each["name"], each) for each in old["comparisons"]]
    left_out = {name: why for name, why in old["left_out"].items() if name not in new} | run["left_out"]
    return {"place": run["place"], "comparisons": [*kept, *new.values()], "left_out": left_out}


def read(file: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(file.read_text())
    return run


def _comparison(result: Result) -> dict[str, Any]:
    comparison = result.comparison
    return {
        "name": comparison.name,
        "work": comparison.work.format(size=f"{comparison.count:,}"),
        "unit": comparison.unit,
        "size": comparison.count,
        "goals": [
            {
                "contender": each.goal.contender,
                "kind": each.goal.kind,
                "bound": each.goal.bound,
                "against": each.goal.against,
                "median": each.median,
                "least": each.least,
                "most": each.most,
                "met": each.met,
            }
            for each in result.outcomes()
        ],
        "contenders": [
            {
                "name": name,
                "role": each.role,
                "units": each.units,
                "lacks": each.lacks,
                "median": each.median,
                "per_second": 1 / each.per_unit,
                "seconds": each.seconds,
                **({"megabytes": each.megabytes, "peak": statistics.median(each.megabytes)} if each.megabytes else {}),
                **_latency(each),
            }
            for name, each in result.figures.items()
        ],
    }


def _latency(figures: Figures) -> dict[str, Any]:
    if not figures.latencies:
        return {}
    p50s, p99s = zip(*figures.latencies, strict=True)
    return {"p50": statistics.median(p50s), "p99": statistics.median(p99s), "latencies": figures.latencies}


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
