"""Logs as readable text or as JSON, one entry per line, with structlog.

Call `configure_logging` once, before the server starts. Then use `structlog.get_logger()` or `logging`; the entries of
both have the request id that `howdah.fastapi.configure_app` binds, and the id of the current OpenTelemetry trace.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import asyncpg
import orjson
import structlog
from pydantic import ValidationError

from howdah._log_fields import AddContext, AddTimestamp, AddTraceId
from howdah._log_writer import LineWriter, open_standard_error

__all__ = ["configure_logging"]

# At INFO, Alembic logs each step of a migration, and the pool logs each time that it is closed.
_VERBOSE_LOGGERS: Final = ("alembic", "howdah._connections.pool")
# Uvicorn gives these loggers handlers of its own. Its access log repeats the request log, with addresses and queries.
_UVICORN_LOGGERS: Final = ("uvicorn", "uvicorn.error", "uvicorn.access")
_MAX_SHOWN_ERRORS: Final = 20
# An attribute of an exception whose entry is in the log.
_IS_LOGGED: Final = "howdah_is_logged"

# The processors for every entry.
_add_context: Final = AddContext()
_add_trace_id: Final = AddTraceId()
_add_timestamp: Final = AddTimestamp()


@dataclass(frozen=True, slots=True)
class _JsonOutput:
    """The writer that `configure_logging("json")` has opened, and structlog's configuration after that call."""

    writer: LineWriter
    config: Mapping[str, Any]


# The output of the last call of `configure_logging`, if it is JSON.
_json_output: Final[list[_JsonOutput]] = []


def configure_logging(log_format: Literal["auto", "json", "console"] = "auto") -> None:
    """Write all logs to standard error: readable text (`console`), or one JSON object per line (`json`).

    `auto` is `console` on a terminal and `json` elsewhere. Entries below INFO are left out. Tracebacks don't show local
    variables, the DETAIL of PostgreSQL's errors, or invalid values, which may be personal data. Uvicorn's log has the
    same form, and its access log is off. Warnings, and errors that nothing catches, are entries of the log, too.

    A log that nobody reads doesn't block the caller. A thread writes the lines. It has a queue of 20,000 lines (16 MB).
    When the queue is full, lines are dropped and counted (`howdah_log_lines_dropped_total`), and a later entry says how
    many. The end of the process waits at most a second for the last lines.
    """
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        _add_context,
        _add_trace_id,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        _add_timestamp,
        structlog.processors.ExceptionRenderer(lambda exc_info: format_exception(exc_info[1])),
    ]
    rendered: Any = (
        # the entry's exception is a text already
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if is_console
        else structlog.processors.JSONRenderer(_as_json)
    )

    def describe_dropped(lines: int) -> bytes:
        """An entry of the log, made in the thread that writes."""
        event = {
            "event": "log lines were dropped, because the log wasn't read in time",
            "lines": lines,
            "logger": "howdah.logs",
            "level": "warning",
        }
        _add_timestamp(None, "warning", event)
        return _encode(rendered(None, "warning", event))

    writer = open_standard_error(describe_dropped)
    unwrapped = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = _LineHandler(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[unwrapped, rendered])
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _UVICORN_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
    logging.getLogger("uvicorn.error").addFilter(_is_new)
    _log_what_python_prints()
    structlog.configure(cache_logger_on_first_use=True)
    if is_console:
        structlog.configure(
            processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
    else:  # directly to the writer, because that takes a quarter of the time of `logging`
        structlog.configure(
            processors=[*shared, structlog.processors.JSONRenderer(_dump)],
            logger_factory=lambda name=None: _LineLogger(writer, name),
        )
    config = structlog.get_config()
    config["processors"] = [*config["processors"]]  # a copy, because an application may change the list
    _json_output[:] = [] if is_console else [_JsonOutput(writer, config)]


def write_info(logger: str, entry: dict[str, Any]) -> bool:
    """Write an entry of the level INFO without structlog, which takes three times as long. `entry` is changed.

    The entry is the same as that of structlog. If structlog's configuration isn't that of `configure_logging("json")`,
    for example because the application has added a processor, nothing is written, and the result is false.
    """
    if not _json_output:
        return False
    output = _json_output[0]
    if structlog.get_config() != output.config:
        return False
    if _add_context.add(entry) or not _add_trace_id.has_context_variable:
        _add_trace_id(None, "info", entry)
    entry["logger"] = logger
    entry["level"] = "info"
    _add_timestamp(None, "info", entry)
    output.writer.write(_dump(entry) + b"\n")
    return True


class _LineLogger:
    """What structlog wraps: each entry is bytes, and becomes a line."""

    def __init__(self, writer: LineWriter, name: str | None) -> None:
        self._writer = writer
        self.name = name  # structlog's `add_logger_name` reads it

    def msg(self, entry: bytes) -> None:
        self._writer.write(entry + b"\n")

    debug = info = warning = error = critical = msg
    log = warn = err = fatal = exception = failure = msg


class _LineHandler(logging.Handler):
    """The entries of `logging`, as lines of the same writer."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # a wrong format, such as logger.info("%d", "text")
            # `handleError` would print to standard error, which may block
            line = _as_json(
                {"event": f"a log entry can't be formatted: {record.msg!r}", "logger": record.name, "level": "error"}
                | {"exception": format_exception(error)}
            )
        self._writer.write(_encode(line))


def _encode(line: str) -> bytes:
    return (line + "\n").encode(errors="backslashreplace")


def _log_what_python_prints() -> None:
    """Log warnings and errors that nothing catches. Python prints them to standard error, which may block."""
    logging.captureWarnings(True)

    def log_uncaught(kind: type[BaseException], error: BaseException | None, trace: Any, thread: str = "main") -> None:
        if error is None or not issubclass(kind, Exception):
            sys.__excepthook__(kind, error or kind(), trace)  # Ctrl-C
            return
        logging.getLogger("howdah.logs").critical("an error ended the thread %s", thread, exc_info=error)

    def log_of_thread(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_type is not SystemExit:
            name = ended.thread.name if ended.thread is not None else "?"
            log_uncaught(ended.exc_type, ended.exc_value, ended.exc_traceback, name)

    def log_unraisable(ignored: Any) -> None:
        message = ignored.err_msg or "an error was ignored"
        logging.getLogger("howdah.logs").error("%s: %r", message, ignored.object, exc_info=ignored.exc_value)

    sys.excepthook = log_uncaught
    threading.excepthook = log_of_thread
    sys.unraisablehook = log_unraisable


def mark_as_logged(error: BaseException) -> None:
    """Keep uvicorn from logging the error again. It must be raised, so that uvicorn closes the connection."""
    setattr(error, _IS_LOGGED, True)


def _is_new(record: logging.LogRecord) -> bool:
    return not (record.exc_info and getattr(record.exc_info[1], _IS_LOGGED, False))


def format_exception(error: BaseException) -> str:
    """The traceback, without local variables, and without the values that PostgreSQL and Pydantic have rejected.

    The DETAIL of PostgreSQL has the values of a row, for example `Key (email)=(ada@example.org) already exists.`. The
    text of a validation error of Pydantic or FastAPI has the invalid values.
    """
    text = "".join(traceback.format_exception(error))
    for each in _iterate_chain(error):
        if isinstance(each, asyncpg.PostgresError) and each.detail:
            text = _replace_lines(text, each.detail, "(not logged)")
        elif _is_validation_error(each):
            text = _replace_lines(text, str(each), _describe_validation_error(each))
    return text.rstrip("\n")


def _replace_lines(text: str, old: str, new: str) -> str:
    """Replace a part of a traceback. In an exception group, each line of the part is indented with a bar."""
    pattern = "[ |]*".join(re.escape(line) for line in old.splitlines(keepends=True))
    return re.sub(pattern, lambda _: new, text)


def _is_validation_error(error: BaseException) -> bool:
    fastapi = sys.modules.get("fastapi.exceptions")
    return isinstance(error, ValidationError) or (
        fastapi is not None and isinstance(error, fastapi.ValidationException)
    )


def _describe_validation_error(error: Any) -> str:
    """The places of the errors and their types."""
    shown = (f"{'.'.join(map(str, each['loc']))}: {each['type']}" for each in error.errors()[:_MAX_SHOWN_ERRORS])
    return f"{'; '.join(shown)} (the values are not logged)"


def _iterate_chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and contexts, and the errors of groups, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def _as_json(event: Any, **_options: Any) -> str:
    return _dump(event).decode()


def _dump(event: Any, **_options: Any) -> bytes:
    """The entry as JSON. A member that JSON can't hold becomes a text, because logging must not raise."""
    try:
        return orjson.dumps(event, default=str)
    except TypeError:
        return orjson.dumps({_to_text(name): _to_member(value) for name, value in event.items()})


def _to_member(value: Any) -> Any:
    """The value, or its `repr` if orjson rejects it: a large integer, half of a surrogate pair, an unusual key."""
    try:
        return orjson.Fragment(orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS))
    except TypeError:
        return _to_text(value)


def _to_text(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}: {type(error).__name__}>"
    return text.encode(errors="backslashreplace").decode()
