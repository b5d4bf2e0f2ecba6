"""OpenTelemetry spans for the statements of a database, COPY included.

def open_database() -> Database:
    return trace_statements(Database(url))

Batches of a `Coalescer` or a view have spans without this module, as soon as the application imports OpenTelemetry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry import trace
from sqlalchemy import Engine, event

from howdah._tracing import spans_by_dialect
from howdah.database import Database

__all__ = ["trace_statements"]

# The operation, and the table of a statement that changes rows. The name of a SELECT has no table, because it may read
# many.
_SUMMARY: Final = re.compile(
    r'\s*(?:(INSERT)\s+INTO|(DELETE)\s+FROM|(UPDATE|COPY))\s+([\w."]+)|\s*(\w+)', re.IGNORECASE
)

_DEFAULT_PORT: Final = 5432
_INSTRUMENTATION: Final = "opentelemetry.instrumentation.sqlalchemy"


def trace_statements(database: Database) -> Database:
    """Make a span for each statement that is sent for this database from now on, and return the database.

    The spans follow OpenTelemetry's semantic conventions for PostgreSQL. They have the statement with placeholders, and
    neither parameters nor the texts of errors. A COPY has a span, too, and so have savepoints. BEGIN, COMMIT and the
    ping of a connection have none.

    It does nothing if `opentelemetry-instrumentation-sqlalchemy` traces the engine already, or if it was called for the
    database before.
    """
    engine = database.engine.sync_engine
    if engine.dialect in spans_by_dialect or any(
        _is_instrumentation(each) for each in engine.dispatch.before_cursor_execute
    ):
        return database
    spans = _StatementSpans(engine)
    event.listen(engine, "before_cursor_execute", spans.start)
    event.listen(engine, "after_cursor_execute", spans.end)
    event.listen(engine, "handle_error", spans.end_with_error)
    spans_by_dialect[engine.dialect] = spans
    return database


def _is_instrumentation(listener: Any) -> bool:
    return str(getattr(listener, "__module__", "")).startswith(_INSTRUMENTATION)


class _StatementSpans:
    """The listeners that start and end the spans of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._tracer = trace.get_tracer("howdah")
        self._attributes: dict[str, Any] = {"db.system.name": "postgresql"}
        url = engine.url
        host = url.host or url.query.get("host")
        if url.database is not None:
            self._attributes["db.namespace"] = url.database
        if isinstance(host, str):
            self._attributes["server.address"] = host
            if url.port not in (None, _DEFAULT_PORT):
                self._attributes["server.port"] = url.port

    def start(
        self, _connection: Any, _cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        """Start the span of a statement: a listener for `before_cursor_execute`."""
        context.howdah_span = self._start(statement, len(parameters) if executemany else 1)

    def end(self, _connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool) -> None:
        """End the span: a listener for `after_cursor_execute`."""
        context.howdah_span.end()

    def end_with_error(self, error: Any) -> None:
        """End the span of a failed or cancelled statement: a listener for `handle_error`."""
        span = getattr(error.execution_context, "howdah_span", None)
        if span is not None:
            _end_with_error(span, error.original_exception)

    @contextmanager
    def span(self, statement: str) -> Iterator[None]:
        """The span of a statement that doesn't go through SQLAlchemy."""
        span = self._start(statement, 1)
        try:
            yield
        except BaseException as error:
            _end_with_error(span, error)
            raise
        span.end()

    def _start(self, statement: str, count: int) -> trace.Span:
        """A span of the statement, which has `count` sets of parameters."""
        summary = _summarize(statement) if count == 1 else f"BATCH {_summarize(statement)}"
        attributes = {**self._attributes, "db.query.summary": summary, "db.query.text": statement}
        if count > 1:
            attributes["db.operation.batch.size"] = count
        return self._tracer.start_span(summary, kind=trace.SpanKind.CLIENT, attributes=attributes)


def _end_with_error(span: trace.Span, error: BaseException) -> None:
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is not None:
        span.set_attribute("db.response.status_code", sqlstate)
    span.set_attribute("error.type", sqlstate or type(error).__qualname__)
    span.set_status(trace.StatusCode.ERROR)  # without a text, which may have the values of a row
    span.end()


def _summarize(statement: str) -> str:
    """The operation, and the table if there is only one: `INSERT users`, `SELECT`."""
    found = _SUMMARY.match(statement)
    if found is None:
        return "postgresql"
    insert, delete, other, table, operation = found.groups()
    if operation is not None:
        return str(operation).upper()
    return f"{(insert or delete or other).upper()} {table.replace(chr(34), '')}"
