"""Sort keys: the order of a page, and the condition for the rows after a position in that order.

Three places in this module decide the order of NULLs, and they must agree:

- `parse_order` reads `nulls_first()` and `nulls_last()`. Without them PostgreSQL's default applies: NULLs come last in
  an ascending order, and first in a descending one.
- `SortKey.to_order_by` writes that order.
- `SortKey.is_after` is the condition for the rows after a NULL, and for the NULLs after a value.

A comparison with NULL is NULL in SQL, so a row with a NULL satisfies neither `>` nor `<`. ORDER BY treats all NULLs as
equal. `howdah._reads.nullability` decides which sort keys can be NULL at all.
"""

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

from howdah._reads.sort_values import SortValue, cast_text
from howdah._sqlalchemy import LABEL_REFERENCE, TEXT_REFERENCE


@dataclass(frozen=True, slots=True)
class SortKey:
    """One expression of the order, its direction, and the place of its NULLs.

    `nullable` is false only if the expression certainly can't be NULL. The condition for the next page is then simpler.
    """

    column: ColumnElement[Any]
    is_descending: bool
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

    def reverse(self) -> SortKey:
        """The same key in the opposite order, NULLs included."""
        return replace(self, is_descending=not self.is_descending, nulls_first=not self.nulls_first)

    def to_order_by(self) -> ColumnElement[Any]:
        """The clause for ORDER BY."""
        clause = self.column.desc() if self.is_descending else self.column.asc()
        if self.nulls_first == self.is_descending:
            return clause  # PostgreSQL's default, which is also the order of a plain index
        return clause.nulls_first() if self.nulls_first else clause.nulls_last()

    def is_equal(self, value: SortValue) -> ColumnElement[bool]:
        """The condition that a row has this value. NULL is equal to NULL."""
        return self.raw.is_(None) if value.is_null else self.raw == self.cast(value)

    def is_after(self, value: SortValue) -> ColumnElement[bool]:
        """The condition that a row sorts after this value, by this key alone."""
        return self._is_after_null() if value.is_null else self._is_after_value(value)

    def _is_after_null(self) -> ColumnElement[bool]:
        """If NULLs come first, every value is after them. If they come last, nothing is."""
        return self.raw.is_not(None) if self.nulls_first else false()

    def _is_after_value(self, value: SortValue) -> ColumnElement[bool]:
        """If NULLs come last, they are after every value."""
        bound = self.cast(value)
        is_beyond: ColumnElement[bool] = self.raw < bound if self.is_descending else self.raw > bound
        if self.nulls_first or not self.nullable:
            return is_beyond
        return or_(is_beyond, self.raw.is_(None))

    def cast(self, value: SortValue) -> ColumnElement[Any]:
        """The value as an SQL expression that can be compared with `raw`."""
        return cast_text(value, self.kind)


def parse_order(clause: ColumnElement[Any]) -> list[SortKey]:
    """The sort keys of one clause of ORDER BY. A composite attribute or a `Bundle` has several."""
    is_descending = False
    nulls_first: bool | None = None  # as long as no modifier is found
    while True:
        if isinstance(clause, LABEL_REFERENCE | Label):
            clause = clause.element
        elif isinstance(clause, UnaryExpression) and clause.modifier in _MODIFIERS:
            if clause.modifier in (operators.asc_op, operators.desc_op):
                is_descending = clause.modifier is operators.desc_op
            else:
                nulls_first = clause.modifier is operators.nulls_first_op
            clause = clause.element
        else:
            break
    if not isinstance(clause, _LISTS):
        # By default PostgreSQL sorts NULLs as if they were larger than all values.
        return [SortKey(clause, is_descending, is_descending if nulls_first is None else nulls_first)]
    if is_descending or nulls_first is not None:  # SQLAlchemy 2.0 writes `a, b DESC`, which reverses only b
        raise ValueError(
            f"one direction can't apply to several columns in ORDER BY: apply desc(), nulls_first() or nulls_last() to "
            f"each of {clause}"
        )
    return [key for each in clause.clauses for key in parse_order(each)]


def reject_unstable_order(keys: Sequence[SortKey]) -> None:
    """Raise `ValueError` for a sort key that can't be compared with a cursor, or that may change between two pages."""
    for key in keys:
        for part in visitors.iterate(key.column):
            if isinstance(part, _UNCOMPARABLE):
                raise ValueError(  # noqa: TRY004
                    f"a page can't be ordered by {key.column}: a text() or a window function can't be compared with "
                    "a cursor. Order by a column or an expression"
                )
            if isinstance(part, FunctionElement) and part.name.lower() in _VOLATILE:
                raise ValueError(
                    f"a page can't be ordered by {key.column}: {part.name}() has another value when the next page is "
                    "read. Order by a column, or by an expression of columns and fixed values"
                )


def is_after_position(keys: Sequence[SortKey], values: Sequence[SortValue], *, inclusive: bool) -> ColumnElement[bool]:
    """The condition for rows after these values. With `inclusive` the row with equal values is included.

    For (a, b, c) after (x, y, z) it is: a > x, or a = x and b > y, or a = x and b = y and c > z. Each key is compared
    in its own direction.

    PostgreSQL can use an index for a comparison of rows, but not for an OR. So the first keys that have the same
    direction and can't be NULL are compared as one row. If these are all keys, that is the whole condition. Otherwise
    the OR is added, and the comparison of rows limits the index scan.
    """
    width = _count_row_keys(keys, values)
    if width == len(keys):
        return _compare_as_row(keys, values, or_equal=inclusive)
    pairs = [*zip(keys, values, strict=True)]
    alternatives = [
        and_(*(each.is_equal(equal) for each, equal in pairs[:i]), key.is_after(value))
        for i, (key, value) in enumerate(pairs)
    ]
    if inclusive:
        alternatives.append(and_(*(key.is_equal(value) for key, value in pairs)))
    if width == 0:
        return or_(*alternatives)
    # The row comparison includes rows that are equal in the first keys, because a later key may put them after the
    # position.
    return and_(_compare_as_row(keys[:width], values[:width], or_equal=True), or_(*alternatives))


def _count_row_keys(keys: Sequence[SortKey], values: Sequence[SortValue]) -> int:
    """The number of leading keys that one row comparison covers: the same direction, and no NULL on either side."""
    count = 0
    for key, value in zip(keys, values, strict=True):
        if key.nullable or value.is_null or key.is_descending is not keys[0].is_descending:
            break
        count += 1
    return count


def _compare_as_row(keys: Sequence[SortKey], values: Sequence[SortValue], *, or_equal: bool) -> ColumnElement[bool]:
    """`(a, b) > (x, y)`, or with `<` if the keys are descending. A single key is compared without parentheses."""
    row: ColumnElement[Any]
    if len(keys) == 1:
        row, bound = keys[0].raw, keys[0].cast(values[0])
    else:
        row = tuple_(*(key.raw for key in keys))
        bound = tuple_(*(key.cast(value) for key, value in zip(keys, values, strict=True)))
    if keys[0].is_descending:
        return row <= bound if or_equal else row < bound
    return row >= bound if or_equal else row > bound


_UNCOMPARABLE: Final = (TextClause, TEXT_REFERENCE, Over)
# SQLAlchemy 2.1 applies the direction of a composite attribute to each column, in an `OrderByList`.
_LISTS: Final = (ClauseList, getattr(elements, "OrderByList", ClauseList))
_MODIFIERS: Final = frozenset({operators.asc_op, operators.desc_op, operators.nulls_first_op, operators.nulls_last_op})
# Their values differ between two statements, so a cursor made by one page is wrong for the next.
_VOLATILE: Final = frozenset(
    {
        *("random", "random_normal", "gen_random_uuid", "uuidv4", "uuidv7", "uuid_generate_v1", "uuid_generate_v4"),
        *("now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday"),
        *("current_timestamp", "current_date", "current_time", "localtime", "localtimestamp"),
        *("nextval", "currval", "lastval", "setval", "txid_current", "pg_current_xact_id"),
    }
)
