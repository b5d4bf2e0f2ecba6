"""The metrics of several processes, as one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Protocol

# The types of metrics whose values only grow. They stay valid when their process has ended.
_CUMULATIVE: Final = frozenset({"counter", "histogram", "summary"})
_START_TIME: Final = "process_start_time_seconds"


class Family(NamedTuple):
    """One metric with its samples: the name of each, its labels, and its value."""

    name: str
    kind: str
    help: str
    samples: list[tuple[str, dict[str, str], float]]


Metrics = list[Family]


class MetricsSource(Protocol):
    """Reads the metrics of this process. The application puts it into the lifespan's state."""

    def read(self) -> Metrics: ...


def encode_metrics(metrics: Metrics) -> bytes:
    return json.dumps(metrics, separators=(",", ":")).encode()  # unlike orjson, it keeps NaN and infinities


def decode_metrics(text: bytes) -> Metrics:
    return [Family(name, kind, help, samples) for name, kind, help, samples in json.loads(text)]


def sum_metrics(parts: Iterable[Metrics]) -> Metrics:
    """The metrics of all processes as those of one service.

    Counters, histograms and gauges are added. A timestamp is the latest one, a start time the first one, and a metric
    with constant values, such as `python_info`, stays as it is.
    """
    families: dict[str, tuple[Family, dict[Any, float]]] = {}
    for metrics in parts:
        for family in metrics:
            _, values = families.setdefault(family.name, (family, {}))
            for name, labels, value in family.samples:
                key = name, *labels.items()
                known = values.get(key)
                values[key] = value if known is None else _combine(name, family.kind, known, value)
    return [
        family._replace(samples=[(name, dict(labels), value) for (name, *labels), value in values.items()])
        for family, values in families.values()
    ]


def keep_cumulative(metrics: Metrics) -> Metrics:
    """The metrics without gauges, whose values end with their process."""
    return [family for family in metrics if family.kind in _CUMULATIVE]


def _combine(name: str, kind: str, first: float, second: float) -> float:
    if name == _START_TIME or (name.endswith("_created") and kind in _CUMULATIVE):
        return min(first, second)
    if kind in ("info", "stateset") or name.endswith(("_info", "_timestamp_seconds")):
        return max(first, second)
    return first + second
