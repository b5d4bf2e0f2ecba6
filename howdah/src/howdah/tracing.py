"""OpenTelemetry, where it is installed: a shared trip is a trace of its own, linked to those of all who are on it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

try:
    from opentelemetry import trace
except ImportError:  # howdah[opentelemetry] isn't asked for

    def current_link() -> Any:
        """What links a trip to the span that is current here, or None."""
        return None

    def batch_span(links: Iterable[Any]) -> AbstractContextManager[Any]:
        """The span of a trip with these links."""
        return nullcontext()

else:
    _tracer = trace.get_tracer("howdah")

    def current_link() -> Any:
        """What links a trip to the span that is current here, or None."""
        context = trace.get_current_span().get_span_context()
        return trace.Link(context) if context.is_valid else None

    def batch_span(links: Iterable[Any]) -> AbstractContextManager[Any]:
        """The span of a trip with these links."""
        return _tracer.start_as_current_span("howdah trip", links=list(links))
