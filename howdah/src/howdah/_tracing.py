"""OpenTelemetry, if it is installed: each batch is a trace of its own, with links to the traces of its items."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

try:
    from opentelemetry import trace
except ImportError:  # without the extra howdah[opentelemetry]

    def current_link() -> Any:
        """A link from a batch to the current span, or None without a span."""
        return None

    def batch_span(links: Iterable[Any]) -> AbstractContextManager[Any]:
        """The span of a batch, with these links."""
        return nullcontext()

else:
    _tracer = trace.get_tracer("howdah")

    def current_link() -> Any:
        """A link from a batch to the current span, or None without a span."""
        context = trace.get_current_span().get_span_context()
        return trace.Link(context) if context.is_valid else None

    def batch_span(links: Iterable[Any]) -> AbstractContextManager[Any]:
        """The span of a batch, with these links."""
        return _tracer.start_as_current_span("howdah batch", links=list(links))
