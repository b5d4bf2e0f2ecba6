"""Sort keys: the order of a page, and the condition for the rows after a position in that order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Label,
    Over,
    TextClause,
    UnaryExpression,
    and_,
    false,
    or_,
    tuple_,
    type_coerce,
)
from sqlalchemy.sql import elements, operators, visitors
from sqlalchemy.sql.elements import ClauseList
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeEngine

from howdah._reads.sort_values import SortValue, as_stored
from howdah._sqlalchemy import LABEL_REFERENCE, TEXT_REFERENCE


@dataclass(frozen=True, slots=True)
class SortKey:
    """One expression of the order, and its direction."""

    column: ColumnElement[Any]
    descending: bool
    nulls_first: bool
    nullable: bool = True

    @property
    def kind(self) -> TypeEngine[Any]:
        """The type in the mapping."""
        return self.column.type

    @property
    def raw(self) -> ColumnElement[Any]:
        """The column without its mapped type, whose operators and conversions must not apply."""
        return type_coerce(self.column, NullType())

    def reversed(self) -> SortKey:
        return replace(self, descending=not self.descending, nulls_first=not self.nulls_first)

    def clause(self) -> ColumnElement[Any]:
        clause = self.column.desc() if self.descending else self.column.asc()
        if self.nulls_first == self.descending:  # PostgreSQL's own default; saying it would hide a plain index
            return clause
        return clause.nulls_first() if self.nulls_first else clause.nulls_last()

    def equals(self, value: SortValue) -> ColumnElement[bool]:
        return self.raw.is_(None) if value.text is None else self.raw == self.stored(value)

    def after(self, value: SortValue) -> ColumnElement[bool]:
        """True for values that sort after this one."""
        if value.text is None:
            return self.raw.is_not(None) if self.nulls_first else false()
        bound = self.stored(value)
        behind: ColumnElement[bool] = self.raw < bound if self.descending else self.raw > bound
        if self.nulls_first or not self.nullable:
            return behind
        return or_(behind, self.raw.is_(None))

    def stored(self, value: SortValue) -> ColumnElement[Any]:
        return as_stored(value, self.kind)


def parse_order(clause: ColumnElement[Any]) -> list[SortKey]:
    """The sort keys of one clause of ORDER BY. A composite attribute or a `Bundle` has several."""
    descending, nulls_first = False, None
    while True:
        if isinstance(clause, LABEL_REFERENCE | Label):
            clause = clause.element
        elif isinstance(clause, UnaryExpression) and clause.modifier in _MODIFIERS:
            if clause.modifier in (operators.asc_op, operators.desc_op):
                descending = clause.modifier is operators.desc_op
            else:
                nulls_first = clause.modifier is operators.nulls_first_op
            clause = clause.element
        else:
            break
    if not isinstance(clause, _LISTS):
        return [SortKey(clause, descending, descending if nulls_first is None else nulls_first)]
    if descending or nulls_first is not None:  # SQLAlchemy 2.0 writes `a, b DESC`, which reverses only b
        raise ValueError(f"a direction can't be given for several columns at once: order by each of {clause}")
    return [key for each in clause.clauses for key in parse_order(each)]


def refuse_unstable(keys: Sequence[SortKey]) -> None:
    """Raise `ValueError` for an order that a later page can't compare with, or that may change between two pages."""
    for key in keys:
        for part in visitors.iterate(key.column):
            if isinstance(part, _UNCOMPARABLE):
                raise ValueError(f"a page can't be ordered by text or a window function: {key.column}")  # noqa: TRY004
            if isinstance(part, FunctionElement) and part.name.lower() in _VOLATILE:
                raise ValueError(
                    f"a page can't be ordered by {key.column}: {part.name}() has another value when the next page is "
                    "read. Order by a column, or by an expression of columns and fixed values"
                )


def follows(keys: Sequence[SortKey], values: Sequence[SortValue], *, inclusive: bool) -> ColumnElement[bool]:
    """The condition for rows after these values.

    For (a, b, c) after (x, y, z) it is: a > x, or a = x and b > y, or a = x and b = y and c > z. Each key is compared
    in its own direction. With `inclusive` the row with equal values is included.

    PostgreSQL can use an index for a comparison of rows, but not for an OR. So the first keys that have the same
    direction and can't be NULL are compared as one row. If these are all keys, that is the whole condition. Otherwise
    it limits the index scan, and the OR is added.
    """
    side_by_side = 0
    for key, value in zip(keys, values, strict=True):
        if key.nullable or value.text is None or key.descending is not keys[0].descending:
            break
        side_by_side += 1
    all_alike = side_by_side == len(keys)
    bound = _behind_as_row(keys[:side_by_side], values[:side_by_side], or_equal=inclusive or not all_alike)
    if bound is not None and all_alike:
        return bound
    alternatives = []
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        equal = [k.equals(v) for k, v in zip(keys[:i], values[:i], strict=True)]
        alternatives.append(and_(*equal, key.after(value)))
    if inclusive:
        alternatives.append(and_(*(key.equals(value) for key, value in zip(keys, values, strict=True))))
    return or_(*alternatives) if bound is None else and_(bound, or_(*alternatives))


def _behind_as_row(
    keys: Sequence[SortKey], values: Sequence[SortValue], *, or_equal: bool
) -> ColumnElement[bool] | None:
    if not keys:
        return None
    row: ColumnElement[Any]
    if len(keys) == 1:
        row, bound = keys[0].raw, keys[0].stored(values[0])
    else:
        row = tuple_(*(key.raw for key in keys))
        bound = tuple_(*(key.stored(value) for key, value in zip(keys, values, strict=True)))
    if keys[0].descending:
        return row <= bound if or_equal else row < bound
    return row >= bound if or_equal else row > bound


_UNCOMPARABLE: Final = (TextClause, TEXT_REFERENCE, Over)
# SQLAlchemy 2.1 applies the direction of a composite attribute to each column, in an `OrderByList`.
_LISTS: Final = (ClauseList, getattr(elements, "OrderByList", ClauseList))
_MODIFIERS: Final = frozenset({operators.asc_op, operators.desc_op, operators.nulls_first_op, operators.nulls_last_op})
_VOLATILE: Final = frozenset(
    {
        *("random", "random_normal", "gen_random_uuid", "uuidv4", "uuidv7", "uuid_generate_v1", "uuid_generate_v4"),
        *("now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday"),
        *("current_timestamp", "current_date", "current_time", "localtime", "localtimestamp"),
        *("nextval", "currval", "lastval", "setval", "txid_current", "pg_current_xact_id"),
    }
)
