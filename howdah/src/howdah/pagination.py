"""Keyset pages: each page starts where the last one ended, however deep, whatever is inserted or deleted between.

The listing's order is made total by the primary key; a cursor holds the order values of one row, and the page after it
is `WHERE (order values) > (cursor)`. A cursor is bound to its listing: the order, the filters and their values.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import orjson
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Label,
    Numeric,
    Over,
    Select,
    TextClause,
    UnaryExpression,
    and_,
    false,
    func,
    inspect,
    literal,
    or_,
    select,
    tuple_,
    type_coerce,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import _label_reference, _textual_label_reference
from sqlalchemy.types import TypeEngine

from howdah.errors import InvalidCursor
from howdah.keys import key_attributes
from howdah.page import Page

MAX_LIMIT: Final = 1000


async def paginate(
    session: AsyncSession,
    statement: Select[Any],
    *,
    limit: int = 50,
    after: str | None = None,
    before: str | None = None,
    count: bool | int = False,
) -> Page[Any]:
    """One page of a `select(Model)`, in the order of its `order_by`, then of the primary key (see `totally_ordered`).

    At most `limit` rows (1 to 1,000) that follow the cursor `after`, or that come before `before`; both orders,
    `nulls_first()` and `nulls_last()` may be mixed. Rows inserted or deleted between two pages don't make others
    appear twice or not at all; a row whose place in the order changes meanwhile is where it is. With `count` the whole
    listing is counted, by a second statement; an integer caps how far.

    Joins must bring each object once: filter by `User.orders.any(...)`, and load collections with `selectinload`. A
    filter whose value differs from request to request, such as `now() - 1 day` made in Python, makes another listing.

    Raises `InvalidCursor` for a cursor that isn't this listing's, `ValueError` or `TypeError` for a listing that can't
    be paged or a limit out of bounds.
    """
    return await paginate_as(None, session, statement, limit=limit, after=after, before=before, count=count)


async def paginate_as(
    what: ColumnElement[Any] | None,
    session: AsyncSession | AsyncConnection,
    statement: Select[Any],
    *,
    limit: int,
    after: str | None,
    before: str | None,
    count: bool | int,
) -> Page[Any]:
    """As `paginate`, with an expression for each item in place of the object."""
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit must be from 1 to {MAX_LIMIT}, not {limit}")
    if after is not None and before is not None:
        raise ValueError("a page follows `after` or comes before `before`, not both")
    if count is not True and count < 0:
        raise ValueError(f"a count can't be capped at {count}")
    keys = _sort_keys(statement)
    cursors = _Cursors(statement, keys)
    backward = before is not None
    directed = [key.reversed() for key in keys] if backward else keys
    position = after if after is not None else before
    rows_wanted = statement.order_by(None)
    if what is not None:
        rows_wanted = rows_wanted.with_only_columns(what, maintain_column_froms=True)
    rows_wanted = rows_wanted.add_columns(*(key.column.label(None) for key in keys))
    if position is not None:
        follows = _follows(directed, cursors.decode(position))
        # what is behind an aggregate can only be told of the group
        rows_wanted = rows_wanted.having(follows) if statement._group_by_clauses else rows_wanted.where(follows)
    rows_wanted = rows_wanted.order_by(*(key.clause() for key in directed)).limit(limit + 1)
    found = (await session.execute(rows_wanted)).all()
    more = len(found) > limit
    rows = [tuple(row) for row in found[:limit]]
    if backward:
        rows.reverse()
    # Both are made even if they lead nowhere: an order that no cursor can hold shall be found out at the first page.
    first, last = (cursors.encode(rows[0][1:]), cursors.encode(rows[-1][1:])) if rows else (None, None)
    total, capped = (None, False) if count is False else await _capped_count(session, statement, count)
    # Behind the cursor lies at least the row that it was made from, or where that row was.
    return Page(
        items=[row[0] for row in rows],
        next=last if more or backward else None,
        previous=first if (more if backward else position is not None) else None,
        total=total,
        total_capped=capped,
    )


def entity_of(statement: Select[Any]) -> Any:
    """The mapped class, or the alias of one, that the statement selects; `ValueError` if it isn't that alone."""
    described = statement.column_descriptions
    entity = described[0].get("entity")
    if len(described) != 1 or entity is None or described[0]["expr"] is not entity:
        raise ValueError("a listing is a select(Model): one mapped class and nothing else")
    return entity


def refuse_own_limit(statement: Select[Any]) -> None:
    """Raise `ValueError` for a statement that says itself how many rows it wants: one limit would undo the other."""
    if statement._has_row_limiting_clause:
        raise ValueError("a listing's limit and offset are arguments, not part of its select()")


def totally_ordered(statement: Select[Any]) -> Select[Any]:
    """The listing with its primary key as the last word of its order, where that isn't named already; in the direction
    of what comes before it, so that one index can serve both."""
    clauses = statement._order_by_clauses
    descending = bool(clauses) and _sort_key(clauses[-1]).descending
    known = [_sort_key(clause).column for clause in clauses]
    missing = (
        attribute.expression
        for attribute in key_attributes(entity_of(statement))
        if not any(attribute.expression.compare(column) for column in known)
    )
    return statement.order_by(*(column.desc() if descending else column for column in missing))


async def count_rows(
    session: AsyncSession | AsyncConnection, statement: Select[Any], *, at_most: int | None = None
) -> int:
    """How many rows the statement has, its own limit and DISTINCT minded; with `at_most` it stops counting there."""
    counted = statement.order_by(None).subquery()
    if at_most is not None:
        counted = select(literal(1)).select_from(counted).limit(literal(at_most, BigInteger)).subquery()
    return (await session.scalars(select(func.count()).select_from(counted))).one()


async def _capped_count(
    session: AsyncSession | AsyncConnection, statement: Select[Any], count: bool | int
) -> tuple[int, bool]:
    if count is True:
        return await count_rows(session, statement), False
    total = await count_rows(session, statement, at_most=count + 1)
    return min(total, count), total > count


@dataclass(frozen=True, slots=True)
class _SortKey:
    column: ColumnElement[Any]
    descending: bool
    nulls_first: bool
    nullable: bool = True

    def reversed(self) -> _SortKey:
        return replace(self, descending=not self.descending, nulls_first=not self.nulls_first)

    def clause(self) -> ColumnElement[Any]:
        clause = self.column.desc() if self.descending else self.column.asc()
        if self.nulls_first == self.descending:  # PostgreSQL's own default; saying it would hide a plain index
            return clause
        return clause.nulls_first() if self.nulls_first else clause.nulls_last()

    def equals(self, value: Any) -> ColumnElement[bool]:
        return self.column.is_(None) if value is None else self.column == self.literal(value)

    def after(self, value: Any) -> ColumnElement[bool]:
        """True for values that sort behind this one."""
        if value is None:
            return self.column.is_not(None) if self.nulls_first else false()
        bound = self.literal(value)
        behind: ColumnElement[bool] = self.column < bound if self.descending else self.column > bound
        if self.nulls_first or not self.nullable:
            return behind
        return or_(behind, self.column.is_(None))

    def literal(self, value: Any) -> ColumnElement[Any]:
        return literal(value, self.column.type)


def _follows(keys: Sequence[_SortKey], values: Sequence[Any]) -> ColumnElement[bool]:
    """(a, b, c) behind (x, y, z): a > x, or a = x and b > y, or both equal and c > z; each key in its own direction.

    PostgreSQL enters an index at a comparison of rows, not at alternatives: as many keys as lie in one direction, and
    can't be NULL, are compared as one row; that is all there is to say, or bounds what else is said.
    """
    side_by_side = 0
    for key in keys:
        if key.nullable or key.descending is not keys[0].descending:
            break
        side_by_side += 1
    bound = _behind_as_row(keys[:side_by_side], values[:side_by_side], or_equal=side_by_side < len(keys))
    if bound is not None and side_by_side == len(keys):
        return bound
    alternatives = []
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        equal = [k.equals(v) for k, v in zip(keys[:i], values[:i], strict=True)]
        alternatives.append(and_(*equal, key.after(value)))
    return or_(*alternatives) if bound is None else and_(bound, or_(*alternatives))


def _behind_as_row(keys: Sequence[_SortKey], values: Sequence[Any], *, or_equal: bool) -> ColumnElement[bool] | None:
    if not keys or None in values:
        return None
    row: ColumnElement[Any]
    if len(keys) == 1:
        row, bound = keys[0].column, keys[0].literal(values[0])
    else:
        row = tuple_(*(key.column for key in keys))
        bound = tuple_(*(key.literal(value) for key, value in zip(keys, values, strict=True)))
    if keys[0].descending:
        return row <= bound if or_equal else row < bound
    return row >= bound if or_equal else row > bound


def _sort_keys(statement: Select[Any]) -> list[_SortKey]:
    entity = entity_of(statement)
    refuse_own_limit(statement)
    if statement._distinct_on or getattr(statement, "_pre_columns_clause", None) is not None:  # 2.0, 2.1
        raise ValueError("DISTINCT ON can't be paged: which row it takes would depend on the page")
    keys = [_sort_key(clause) for clause in totally_ordered(statement)._order_by_clauses]
    for key in keys:
        if any(isinstance(part, _UNCOMPARABLE) for part in visitors.iterate(key.column)):
            raise ValueError(f"a page can't be ordered by text or a window function: {key.column}")
    # Only the listed class's own columns: another's may be NULL through an outer join.
    own = [getattr(entity, prop.key).expression for prop in inspect(entity).mapper.column_attrs]
    never_null = [column for column in own if not getattr(column, "nullable", True)]
    return [replace(key, nullable=not any(key.column.compare(column) for column in never_null)) for key in keys]


def _sort_key(clause: ColumnElement[Any]) -> _SortKey:
    descending, nulls_first = False, None
    while True:
        if isinstance(clause, _label_reference | Label):
            clause = clause.element
        elif isinstance(clause, UnaryExpression) and clause.modifier in _MODIFIERS:
            if clause.modifier in (operators.asc_op, operators.desc_op):
                descending = clause.modifier is operators.desc_op
            else:
                nulls_first = clause.modifier is operators.nulls_first_op
            clause = clause.element
        else:
            break
    kind = getattr(clause, "type", None)
    if isinstance(kind, Numeric) and not isinstance(kind, Float) and not kind.asdecimal:
        clause = type_coerce(clause, Numeric())  # a float loses digits
    return _SortKey(clause, descending, descending if nulls_first is None else nulls_first)


_UNCOMPARABLE: Final = (TextClause, _textual_label_reference, Over)
_MODIFIERS: Final = frozenset({operators.asc_op, operators.desc_op, operators.nulls_first_op, operators.nulls_last_op})


class _Cursors:
    """Writes and reads the cursors of one listing."""

    _VERSION: Final = 1

    def __init__(self, statement: Select[Any], keys: Sequence[_SortKey]) -> None:
        self._types = [key.column.type for key in keys]
        # what a listing loads doesn't make it another one
        bare = statement.with_only_columns(*(key.column for key in keys), maintain_column_froms=True)
        bare._with_options = ()
        compiled = bare.order_by(None).order_by(*(key.clause() for key in keys)).compile(dialect=_DIALECT)
        listing = repr((str(compiled), sorted((name, _shown(value)) for name, value in compiled.params.items())))
        self._listing = hashlib.blake2b(listing.encode(), digest_size=9).digest()

    def encode(self, values: Sequence[Any]) -> str:
        pairs = [_to_json(value, kind) for value, kind in zip(values, self._types, strict=True)]
        payload = orjson.dumps(pairs)
        return base64.urlsafe_b64encode(bytes([self._VERSION]) + self._seal(payload) + payload).rstrip(b"=").decode()

    def decode(self, cursor: str) -> list[Any]:
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            version, seal, payload = raw[0], raw[1:10], raw[10:]
            if version != self._VERSION or seal != self._seal(payload):
                raise InvalidCursor(
                    "the cursor is damaged, or belongs to a listing with another order or other filters"
                )
            pairs = orjson.loads(payload)
            return [_from_json(tag, value, kind) for (tag, value), kind in zip(pairs, self._types, strict=True)]
        except InvalidCursor:
            raise
        except (ValueError, IndexError, KeyError, TypeError, ArithmeticError) as error:
            raise InvalidCursor("the cursor can't be read") from error

    def _seal(self, payload: bytes) -> bytes:
        return hashlib.blake2b(payload, key=self._listing, digest_size=9).digest()


_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]

_BY_TAG: Final[dict[str, tuple[type[Any], Callable[[Any], Any], Callable[[Any], Any]]]] = {
    "b": (bool, bool, bool),
    "i": (int, str, int),
    "f": (float, repr, float),
    "s": (str, str, str),
    "u": (UUID, str, UUID),
    "t": (datetime, datetime.isoformat, datetime.fromisoformat),
    "d": (date, date.isoformat, date.fromisoformat),
    "h": (time, time.isoformat, time.fromisoformat),
    "n": (Decimal, str, Decimal),
    "x": (bytes, bytes.hex, bytes.fromhex),
}


def _shown(value: Any) -> str:
    """A parameter as text, the same in every process: the values of an IN have no order."""
    return repr(sorted(map(repr, value))) if isinstance(value, list | tuple | set | frozenset) else repr(value)


def _to_json(value: Any, column_type: TypeEngine[Any]) -> tuple[str, Any]:
    if value is None:
        return "0", None
    if isinstance(value, Enum):
        if isinstance(column_type, EnumType) and column_type.enum_class is type(value):
            return "e", value.name
    else:
        for tag, (kind, write, _) in _BY_TAG.items():
            if isinstance(value, kind):
                return tag, write(value)
    raise TypeError(f"a listing can't be ordered by {type(value).__name__} values of {column_type!r}")


def _from_json(tag: str, value: Any, column_type: TypeEngine[Any]) -> Any:
    if tag == "0":
        return None
    if tag == "e":
        if not isinstance(column_type, EnumType) or column_type.enum_class is None:
            raise TypeError(f"{column_type!r} has no members")
        return column_type.enum_class[value]
    return _BY_TAG[tag][2](value)
