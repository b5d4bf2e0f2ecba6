"""OpenTelemetry, if the application uses it. Each batch is a trace of its own, linked to the traces of its items."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from sqlalchemy import Dialect


class StatementSpans(Protocol):
    """The spans of the statements of one engine; `howdah.tracing` implements it."""

    def span(self, statement: str) -> AbstractContextManager[Any]: ...


spans_by_dialect: Final[WeakKeyDictionary[Dialect, StatementSpans]] = WeakKeyDictionary()
"""The engines that `howdah.tracing.trace_statements` traces. Each engine has a dialect of its own."""


def current_link() -> Any:
    """A link from a batch to the current span, or None without a span."""
    if not _is_in_use():
        return None
    trace = _trace()
    span = trace.get_current_span()
    if span is trace.INVALID_SPAN:
        return None
    context = span.get_span_context()
    return trace.Link(context) if context.is_valid else None


def batch_span(size: int, links: Iterable[Any]) -> AbstractContextManager[Any]:
    """The span of a batch of `size` items, with these links."""
    if not _is_in_use() or not _has_provider():
        return nullcontext()
    attributes = {"howdah.batch.size": size}
    # An exception isn't recorded, because its text may have the values of a row.
    return _tracer().start_as_current_span(  # type: ignore[no-any-return]
        "howdah batch", links=list(links), attributes=attributes, record_exception=False, set_status_on_exception=False
    )


def _is_in_use() -> bool:
    """Whether the application has imported OpenTelemetry. Otherwise no span is current, and none would be exported."""
    return "opentelemetry.trace" in sys.modules


def _has_provider() -> bool:
    """Whether spans may be exported. Without an exporter, a span would still cost 10 µs."""
    trace = _trace()
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@cache
def _trace() -> Any:
    """OpenTelemetry's module. An import statement in each call would take longer than the rest of the call."""
    from opentelemetry import trace

    return trace


@cache
def _tracer() -> Any:
    return _trace().get_tracer("howdah")
