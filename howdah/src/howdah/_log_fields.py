"""Processors of structlog that add fields to every log entry.

They must be fast, because each request writes an entry.
"""

from __future__ import annotations

import sys
import time
from collections.abc import MutableMapping
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime
from typing import Any, Final

import structlog

_CONTEXT_PREFIX: Final = structlog.contextvars.STRUCTLOG_KEY_PREFIX
# A program usually has a few variables. If it created new ones for each request, their names would fill the memory.
_MAX_VARIABLES: Final = 1_000


class AddContext:
    """Adds the values that are bound in `structlog.contextvars`. structlog's own processor takes longer."""

    def __init__(self) -> None:
        self._names: dict[ContextVar[Any], str] = {}
        """The name of each variable of structlog in an entry. Empty for other variables."""

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        self.add(event)
        return event

    def add(self, event: MutableMapping[str, Any]) -> bool:
        """Add the values. Returns whether variables of other libraries are set, such as that of OpenTelemetry."""
        names, has_others = self._names, False
        for variable, value in copy_context().items():
            name = names.get(variable)
            if name is None:
                name = self._find_name(variable)
            if not name:
                has_others = True
            elif value is not Ellipsis:
                event.setdefault(name, value)
        return has_others

    def _find_name(self, variable: ContextVar[Any]) -> str:
        if len(self._names) >= _MAX_VARIABLES:
            self._names.clear()
        name = variable.name
        found = name.removeprefix(_CONTEXT_PREFIX) if name.startswith(_CONTEXT_PREFIX) else ""
        self._names[variable] = found
        return found


class AddTraceId:
    """Adds the ids of the current span of OpenTelemetry, so that the entries of a trace can be found."""

    def __init__(self) -> None:
        self._trace: Any = None
        self.has_context_variable = False
        """Whether OpenTelemetry keeps the current span in a context variable. False before the first entry.

        If so, no span is current in a context without variables.
        """

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        trace = self._trace
        if trace is None:
            if "opentelemetry.trace" not in sys.modules:  # no span is current
                return event
            from opentelemetry import trace  # once, because this statement takes longer than the rest

            self._trace = trace
            self.has_context_variable = _has_context_variable()
        span = trace.get_current_span()
        if span is not trace.INVALID_SPAN:
            context = span.get_span_context()
            if context.is_valid:
                event["trace_id"] = trace.format_trace_id(context.trace_id)
                event["span_id"] = trace.format_span_id(context.span_id)
        return event


def _has_context_variable() -> bool:
    """Whether OpenTelemetry keeps its current context in a context variable. Its users can configure something else."""
    from opentelemetry.context import attach, detach, set_value

    def attach_and_check() -> bool:
        token = attach(set_value("howdah", True))
        try:
            return bool(copy_context())
        finally:
            detach(token)  # otherwise the context would stay current, if it isn't in a context variable

    return Context().run(attach_and_check)  # an empty context, so that only `attach` can set a variable


class AddTimestamp:
    """Adds the time in UTC, such as `2030-01-31T12:00:00.123456Z`. The text of a second is formatted once."""

    def __init__(self) -> None:
        self._second = 0, "1970-01-01T00:00:00"  # replaced as a whole, because several threads log

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        now = time.time()
        second = int(now)
        known, text = self._second
        if known != second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second, text
        event["timestamp"] = "%s.%06dZ" % (text, (now - second) * 1_000_000)  # noqa: UP031  # faster than an f-string
        return event
