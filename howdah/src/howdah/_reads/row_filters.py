"""The row filters of a view, and their checks.

They are evaluated when the view is made, so they can't depend on the time. Values of a request come from the viewer.
"""

from __future__ import annotations

import contextvars
import inspect as python_inspect
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy import BinaryExpression, BindParameter, ColumnElement, and_, inspect, literal, select, true
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import aliased
from sqlalchemy.sql import visitors

from howdah._reads.viewers import (
    Viewer,
    ViewerAttributes,
    ViewerColumn,
    ViewerColumns,
    ViewerParameter,
    ViewerValue,
)
from howdah.errors import ViewCompileError

RowFilter = Callable[[Any], ColumnElement[bool]]
ViewerFilter = Callable[[Any, Any], ColumnElement[bool]]

_REMEDY: Final = (
    "`where` is evaluated once, when the view is made, and then holds for every caller. For a time use an SQL "
    "expression, such as func.now(). For a value of a request, such as its user or tenant, use the filter's second "
    "parameter, the viewer"
)
_DATE_CLOCKS: Final = frozenset({"now", "today", "utcnow"})
_TIME_CLOCKS: Final = frozenset({"gmtime", "localtime", "time", "time_ns"})

# A literal time in the code has no microseconds. A recent time with microseconds comes from a clock.
_RECENT_PERIOD: Final = timedelta(hours=1)

# Python calls this function for `if viewer.role == "admin"`.
_BOOL_OF_COMPARISON: Final = BinaryExpression.__bool__.__code__

_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]


class RowFilters:
    """The row filters of a view by class: functions of the entity, or of the entity and the viewer."""

    def __init__(self, where: Mapping[type[Any], RowFilter | ViewerFilter]) -> None:
        self._where = where
        self._needs_viewer = {model: _needs_viewer(model, row_filter) for model, row_filter in where.items()}
        self.viewer = ViewerAttributes() if any(self._needs_viewer.values()) else None
        """The attributes of the viewer, or None if no filter has a viewer."""
        for model in where:
            _check_row_filter(model, partial(self._evaluate_first, model))

    def get(self, entity: Any, columns: ViewerColumns | None) -> list[ColumnElement[bool]]:
        """The criteria for the entity's class and its base classes.

        The viewer's values are parameters. With `columns` they are columns of the table of requested keys.
        """
        return self._get(entity, columns, ViewerParameter if columns is None else ViewerColumn)

    def bind(self, entity: Any, viewer: Any) -> ColumnElement[bool]:
        """The criteria, with the values of this viewer. Raises the errors of `ViewerAttributes.read`."""
        assert self.viewer is not None
        values = self.viewer.read(viewer)
        criterion = and_(true(), *self._get(entity, None, ViewerValue))
        self.viewer.set_values(criterion, values)
        return criterion

    def _get(
        self, entity: Any, columns: ViewerColumns | None, element: type[ViewerParameter]
    ) -> list[ColumnElement[bool]]:
        mapper, criteria = inspect(entity).mapper, []
        for model in self._where:
            if mapper.isa(inspect(model)):
                criterion = self._evaluate(model, entity, element)
                criteria.append(criterion if self.viewer is None else self.viewer.finish(criterion, columns))
            elif inspect(model).isa(mapper):
                # The filter of a subclass can't apply to rows that are read as the base class.
                raise ViewCompileError(
                    f"where[{model.__name__}]",
                    f"its rows are read as {mapper.class_.__name__}, too: put the filter on that class",
                )
        return criteria

    def _evaluate_first(self, model: type[Any], entity: Any) -> Any:
        """The criterion, for the checks. The viewer's attributes in it are collected."""
        criterion = self._evaluate(model, entity, ViewerParameter)
        if self.viewer is None or not isinstance(criterion, ColumnElement):
            return criterion
        self.viewer.collect(criterion, f"where[{model.__name__}]")
        return self.viewer.finish(criterion, None)

    def _evaluate(self, model: type[Any], entity: Any, element: type[ViewerParameter]) -> Any:
        row_filter: Any = self._where[model]
        if not self._needs_viewer[model]:
            return row_filter(entity)
        criterion = row_filter(entity, Viewer(element))
        # `viewer.is_admin` alone is a criterion
        return criterion.__clause_element__() if hasattr(criterion, "__clause_element__") else criterion


def _needs_viewer(model: type[Any], row_filter: Any) -> bool:
    """Whether the filter has two parameters. Raises `ViewCompileError` if it has neither one nor two."""
    try:
        parameters = python_inspect.signature(row_filter).parameters.values()
    except (TypeError, ValueError):  # a function that is written in C
        return False
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    required = [each for each in positional if each.default is each.empty]
    for each in parameters:
        is_keyword_only = each.kind is each.KEYWORD_ONLY and each.default is each.empty
        if is_keyword_only or (each.name == "viewer" and each not in required):
            raise ViewCompileError(
                f"where[{model.__name__}]",
                f"its parameter {each.name!r} must be positional and have no default: write "
                "`lambda order, viewer: ...` for a filter that needs a viewer",
            )
    if len(required) > 2:
        raise ViewCompileError(
            f"where[{model.__name__}]", "it has more than two parameters: the class, and the viewer if it needs one"
        )
    return len(required) == 2


def _check_row_filter(model: type[Any], row_filter: RowFilter) -> None:
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
        raise make_error(volatile_inputs[0])
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
        if isinstance(part, BindParameter) and not isinstance(part, ViewerParameter):
            if part.callable is not None or (part.required and part.value is None):
                raise make_error(f"its parameter {part.key!r} has no value yet")
            if _is_recent(part.value):
                raise make_error(f"its parameter {part.value} was taken from a clock")


def _evaluate_watched(row_filter: RowFilter, entity: Any) -> tuple[Any, list[str]]:
    """The criterion, and a text for each call that its function must not make, such as a read of the clock.

    A criterion doesn't show where its values came from, so the calls are watched. A profile function sees every call of
    a function that is written in C, and the functions of clocks and context variables are written in C. It also sees
    calls of `bool()` on a comparison with the viewer, such as `if viewer.role == "admin"`, for which SQLAlchemy would
    return False.
    """
    volatile_inputs: list[str] = []

    def watch(frame: Any, event: str, function: Any) -> None:
        if event == "c_call":
            volatile = _describe_volatile(function)
            if volatile is not None:
                volatile_inputs.append(f"it reads {volatile}")
        elif event == "call" and frame.f_code is _BOOL_OF_COMPARISON and _is_decision_on_viewer(frame):
            volatile_inputs.append(
                "it uses a comparison with the viewer as a Python condition, but the viewer has no values yet: write "
                "or_(), and_() or case() instead of `if`, `or`, `and` and `in`"
            )

    previous = sys.getprofile()  # that of a profiler or a coverage tool
    sys.setprofile(watch)
    try:
        criterion = row_filter(entity)
    finally:
        sys.setprofile(previous)
    return criterion, volatile_inputs


def _is_decision_on_viewer(frame: Any) -> bool:
    """Whether the row filter's own code, and not SQLAlchemy's, calls `bool()` of a comparison with the viewer."""
    caller = frame.f_back
    is_internal = caller is None or caller.f_globals.get("__name__", "").partition(".")[0] == "sqlalchemy"
    return not is_internal and any(
        isinstance(part, ViewerParameter) for part in visitors.iterate(frame.f_locals["self"])
    )


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
