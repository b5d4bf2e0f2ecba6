"""Whether the value of an SQL expression can be NULL. The result is False only if NULL is certainly excluded.

Pages use this for sort keys, and views use it for required fields. `howdah._reads.sort_keys` decides how NULLs sort.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BinaryExpression,
    BindParameter,
    Case,
    Cast,
    Column,
    CompoundSelect,
    Exists,
    False_,
    FromClause,
    FunctionFilter,
    Label,
    Over,
    ScalarSelect,
    Select,
    SelectBase,
    String,
    Table,
    True_,
    TypeCoerce,
    UnaryExpression,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BooleanClauseList, ColumnClause, ExpressionClauseList, Grouping
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import AliasedReturnsRows, Join

from howdah._sqlalchemy import has_group_by, has_having, has_limit

# The result of these operators is NULL only if an operand is NULL.
_STRICT_OPERATORS: Final = frozenset(
    {operators.add, operators.sub, operators.mul, operators.truediv, operators.mod, operators.neg, operators.inv}
    | {operators.eq, operators.ne, operators.lt, operators.le, operators.gt, operators.ge, operators.concat_op}
    | {operators.like_op, operators.not_like_op, operators.ilike_op, operators.not_ilike_op}
    | {operators.in_op, operators.not_in_op, operators.and_, operators.or_}
)
_NEVER_NULL_OPERATORS: Final = frozenset(
    {operators.is_, operators.is_not, operators.is_distinct_from, operators.is_not_distinct_from}
)
_STRICT_FUNCTIONS: Final = frozenset(
    {"abs", "btrim", "ceil", "char_length", "floor", "left", "length", "lower", "ltrim", "octet_length", "replace"}
    | {"right", "round", "rtrim", "trim", "trunc", "upper"}
)
_NEVER_NULL_FUNCTIONS: Final = frozenset(
    {"count", "concat", "now", "current_date", "current_timestamp", "localtimestamp"}
    | {"dense_rank", "rank", "row_number"}
)
_AGGREGATES: Final = frozenset(
    {"array_agg", "avg", "bool_and", "bool_or", "count", "json_agg", "jsonb_agg", "max", "min", "string_agg", "sum"}
)


def can_be_null(expression: Any, sources: Sequence[FromClause]) -> bool:  # noqa: PLR0912
    """Whether an expression can be NULL in a row that is selected from these sources."""
    match expression:
        case ColumnClause():
            return _column_can_be_null(expression, sources)
        case FunctionFilter():
            return can_be_null(expression.func, sources)
        case Label() | Grouping() | Over():
            return can_be_null(expression.element, sources)
        case TypeCoerce():
            return can_be_null(expression.clause, sources)
        case Cast():  # a JSON null becomes NULL
            return isinstance(expression.clause.type, JSON) or can_be_null(expression.clause, sources)
        case BindParameter():
            values = expression.value if isinstance(expression.value, list | tuple) else [expression.value]
            return None in values
        case True_() | False_() | Exists():
            return False
        case Case():
            results = [*(result for _, result in expression.whens), expression.else_]
            return any(result is None or can_be_null(result, sources) for result in results)
        case FunctionElement():
            return _function_can_be_null(expression, sources)
        case BooleanClauseList() | ExpressionClauseList():
            strict = expression.operator in _STRICT_OPERATORS
            return not strict or any(can_be_null(each, sources) for each in expression.clauses)
        case BinaryExpression() if expression.operator in _NEVER_NULL_OPERATORS:
            return False
        case BinaryExpression() if expression.operator in _STRICT_OPERATORS:
            return can_be_null(expression.left, sources) or can_be_null(expression.right, sources)
        case UnaryExpression() if expression.operator in _STRICT_OPERATORS:
            return can_be_null(expression.element, sources)
        case ScalarSelect():
            return _subquery_can_be_null(expression.element)
    return True


def _function_can_be_null(function: Any, sources: Sequence[FromClause]) -> bool:
    arguments = [*function.clauses]
    name = getattr(function, "name", "").lower()
    if getattr(function, "packagenames", None):  # in a schema, so not a built-in function of the same name
        return True
    if name == "coalesce":
        return all(can_be_null(each, sources) for each in arguments)
    if name in _STRICT_FUNCTIONS:
        if name in {"lower", "upper"} and not all(isinstance(each.type, String) for each in arguments):
            return True  # lower() and upper() of a range, which may have no such bound
        return any(can_be_null(each, sources) for each in arguments)
    return name not in _NEVER_NULL_FUNCTIONS


def _subquery_can_be_null(select: Any) -> bool:
    """Whether a scalar subquery can be NULL.

    A subquery without a row is NULL. A SELECT of an aggregate without GROUP BY always has one row.
    """
    if not isinstance(select, Select) or len(select.selected_columns) != 1:
        return True
    if has_group_by(select) or has_having(select) or has_limit(select):
        return True
    (column,) = select.selected_columns
    return not _has_aggregate(column) or can_be_null(column, select.get_final_froms())


def _has_aggregate(expression: Any) -> bool:
    if isinstance(expression, FunctionElement) and getattr(expression, "name", "").lower() in _AGGREGATES:
        return True
    if isinstance(expression, Exists | Over | ScalarSelect | SelectBase):
        return False
    return any(_has_aggregate(each) for each in expression.get_children())


def _column_can_be_null(column: ColumnClause[Any], sources: Sequence[FromClause]) -> bool:
    """Whether a column can be NULL in a row of these sources, which may add NULLs by an outer join."""
    table = column.table
    for source in sources:
        for joined_table, is_outer in _iterate_tables(source):
            if joined_table == table:
                return is_outer or _column_of_table_can_be_null(column, table)
    for source in sources:
        outer_column: Any = source.corresponding_column(column)  # the source is a subquery on the table
        if outer_column is not None and outer_column.table != table:
            return _column_can_be_null(outer_column, [source])
    return _column_of_table_can_be_null(column, table)


def _column_of_table_can_be_null(column: ColumnClause[Any], table: Any) -> bool:
    """Whether a column can be NULL in the rows of its own table, alias or subquery."""
    if isinstance(table, Table):
        return not isinstance(column, Column) or bool(column.nullable)
    if not isinstance(table, AliasedReturnsRows) or column.key not in table.c:
        return True
    element = table.element
    if isinstance(element, FromClause) and not isinstance(element, Join):  # the table is an alias of it
        return column.key not in element.c or _column_of_table_can_be_null(element.c[column.key], element)
    position = table.c.keys().index(column.key)
    for part in _iterate_union(element):
        if not isinstance(part, Select) or len(part.selected_columns) != len(table.c):  # for example VALUES
            return True
        if can_be_null([*part.selected_columns][position], part.get_final_froms()):
            return True
    return False


def _iterate_union(element: Any) -> Iterator[Any]:
    """The parts of a UNION (or INTERSECT, EXCEPT), or the element itself if it isn't one."""
    if isinstance(element, CompoundSelect):
        for each in element.selects:
            yield from _iterate_union(each)
    else:
        yield element


def _iterate_tables(source: Any, *, is_outer: bool = False) -> Iterator[tuple[Any, bool]]:
    """The tables that a FROM element joins. The flag says whether an outer join can set the table's columns to NULL."""
    if isinstance(source, Join):
        yield from _iterate_tables(source.left, is_outer=is_outer or source.full)
        yield from _iterate_tables(source.right, is_outer=is_outer or source.full or source.isouter)
    else:
        yield source, is_outer
