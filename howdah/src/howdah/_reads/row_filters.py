"""Checks of a view's row filters. They are evaluated once, so they can't depend on the time or on a request."""

from __future__ import annotations

import contextvars
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import BindParameter, ColumnElement, inspect, literal, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import aliased
from sqlalchemy.sql import visitors

from howdah.errors import ViewCompileError

RowFilter = Callable[[Any], ColumnElement[bool]]

_REMEDY: Final = (
    "`where` is evaluated once, when the view is made, and then holds for every caller. For a time use an SQL "
    "expression, such as func.now(). `where` doesn't support values of a request, such as its user or tenant"
)
_DATE_CLOCKS: Final = frozenset({"now", "today", "utcnow"})
_TIME_CLOCKS: Final = frozenset({"gmtime", "localtime", "time", "time_ns"})

# A literal time in the code has no microseconds. A recent time with microseconds comes from a clock.
_RECENT_PERIOD: Final = timedelta(hours=1)

_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]


def check_row_filter(model: type[Any], row_filter: RowFilter) -> None:
    """Raise `ViewCompileError` for a row filter that depends on the time or on the context, if that can be detected.

    It is detected if the filter reads a clock or a context variable, or if two evaluations differ. A variable that
    changes later isn't detected.
    """

    def make_error(reason: str) -> ViewCompileError:
        return ViewCompileError(f"where[{model.__name__}]", f"{reason}. {_REMEDY}")

    inspect(model)  # raises NoInspectionAvailable for a class that isn't mapped
    entity: Any = aliased(model)
    criterion, volatile_inputs = _evaluate_watched(row_filter, entity)
    if volatile_inputs:
        raise make_error(f"it reads {volatile_inputs[0]}")
    if not isinstance(criterion, ColumnElement) and not hasattr(criterion, "__clause_element__"):
        raise make_error(f"it returns {criterion!r}, which isn't an SQL expression")
    try:
        # In an empty context a context variable has its default value, or raises LookupError.
        again = contextvars.Context().run(row_filter, entity)
        is_same = _compile(criterion) == _compile(again)
    except Exception as error:
        raise make_error(f"in an empty context it raises {type(error).__name__}") from error
    if not is_same:
        raise make_error("two evaluations return different criteria")
    for part in visitors.iterate(select(literal(1)).where(criterion)):
        if isinstance(part, BindParameter):
            if part.callable is not None or (part.required and part.value is None):
                raise make_error(f"its parameter {part.key!r} has no value yet")
            if _is_recent(part.value):
                raise make_error(f"its parameter {part.value} was taken from a clock")


def _evaluate_watched(row_filter: RowFilter, entity: Any) -> tuple[Any, list[str]]:
    """The criterion, and the context variables and clocks that were read to make it.

    A criterion doesn't show where its values came from, so the calls are watched. A profile function sees every call of
    a function that is written in C, and the functions of clocks and context variables are written in C.
    """
    volatile_inputs: list[str] = []

    def watch(_frame: Any, event: str, function: Any) -> None:
        volatile = _describe_volatile(function) if event == "c_call" else None
        if volatile is not None:
            volatile_inputs.append(volatile)

    previous = sys.getprofile()  # that of a profiler or a coverage tool
    sys.setprofile(watch)
    try:
        criterion = row_filter(entity)
    finally:
        sys.setprofile(previous)
    return criterion, volatile_inputs


def _describe_volatile(function: Any) -> str | None:
    """A text for a function that reads a context variable or a clock, otherwise None."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, contextvars.ContextVar):
        return f"the context variable {owner.name!r}" if name == "get" else None
    if isinstance(owner, type) and issubclass(owner, date):
        return "the clock" if name in _DATE_CLOCKS else None
    return "the clock" if owner is time and name in _TIME_CLOCKS else None


def _compile(criterion: Any) -> tuple[str, Mapping[str, Any]]:
    compiled = select(literal(1)).where(criterion).compile(dialect=_DIALECT)
    return str(compiled), compiled.params


def _is_recent(value: Any) -> bool:
    if not isinstance(value, datetime) or not value.microsecond:
        return False
    aware = value if value.tzinfo is not None else value.astimezone()
    now = datetime.now(UTC)
    return now - _RECENT_PERIOD < aware <= now
