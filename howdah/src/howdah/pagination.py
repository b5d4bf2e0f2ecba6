"""Keyset pages: each page starts where the last one ended, however deep, whatever is inserted or deleted between.

The listing's order is made total by the primary key; a cursor holds the order values of one row, and the page after it
is `WHERE (order values) > (cursor)`. A cursor is bound to its listing: the order, the filters and their values.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

import orjson
from sqlalchemy import ColumnElement, Select, UnaryExpression, and_, false, func, literal, or_, select
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import operators
from sqlalchemy.types import TypeEngine

from howdah.errors import InvalidCursor
from howdah.keys import key_attributes

ItemT = TypeVar("ItemT")

MAX_LIMIT: Final = 1000


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """Some rows of a listing, in its order.

    `next` and `previous` are cursors for `after=` and `before=`, None where the listing was seen to end. `total` is
    None unless it was asked for; `total_capped` says that there are more than the cap that was given.
    """

    items: list[ItemT]
    next: str | None
    previous: str | None
    total: int | None = None
    total_capped: bool = False


async def paginate(
    session: AsyncSession,
    statement: Select[Any],
    *,
    limit: int = 50,
    after: str | None = None,
    before: str | None = None,
    count: bool | int = False,
) -> Page[Any]:
    """One page of a `select(Model)`, in the order of its `order_by` with the primary key as the last word.

    At most `limit` rows (1 to 1,000) that follow the cursor `after`, or that come before `before`; both orders,
    `nulls_first()` and `nulls_last()` may be mixed. Rows inserted or deleted between two pages don't make others
    appear twice or not at all. With `count` the whole listing is counted, by a second statement; an integer caps how
    far. Raises `InvalidCursor` for a cursor that isn't this listing's, `ValueError` for a limit out of bounds.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit must be from 1 to {MAX_LIMIT}, not {limit}")
    if after is not None and before is not None:
        raise ValueError("a page follows `after` or comes before `before`, not both")
    keys = _sort_keys(statement)
    cursors = _Cursors(statement, keys)
    backward = before is not None
    directed = [key.reversed() for key in keys] if backward else keys
    position = after if after is not None else before
    rows_wanted = statement.order_by(None).add_columns(*(key.column for key in keys))
    if position is not None:
        rows_wanted = rows_wanted.where(_follows(directed, cursors.decode(position)))
    rows_wanted = rows_wanted.order_by(*(key.clause() for key in directed)).limit(limit + 1)
    found = (await session.execute(rows_wanted)).all()
    more = len(found) > limit
    rows = [tuple(row) for row in found[:limit]]
    if backward:
        rows.reverse()
    # Behind the cursor lies at least the row that it was made from, or where that row was.
    has_next = more if not backward else True
    has_previous = more if backward else position is not None
    total, capped = await _count(session, statement, count)
    return Page(
        items=[row[0] for row in rows],
        next=cursors.encode(rows[-1][1:]) if rows and has_next else None,
        previous=cursors.encode(rows[0][1:]) if rows and has_previous else None,
        total=total,
        total_capped=capped,
    )


@dataclass(frozen=True, slots=True)
class _SortKey:
    column: ColumnElement[Any]
    descending: bool
    nulls_first: bool

    def reversed(self) -> _SortKey:
        return _SortKey(self.column, not self.descending, not self.nulls_first)

    def clause(self) -> ColumnElement[Any]:
        clause = self.column.desc() if self.descending else self.column.asc()
        if self.nulls_first == self.descending:  # PostgreSQL's own default; saying it would hide a plain index
            return clause
        return clause.nulls_first() if self.nulls_first else clause.nulls_last()

    def equals(self, value: Any) -> ColumnElement[bool]:
        return self.column.is_(None) if value is None else self.column == self._literal(value)

    def after(self, value: Any) -> ColumnElement[bool]:
        """True for values that sort behind this one."""
        if value is None:
            return self.column.is_not(None) if self.nulls_first else false()
        bound = self._literal(value)
        behind: ColumnElement[bool] = self.column < bound if self.descending else self.column > bound
        if self.nulls_first or not getattr(self.column, "nullable", True):
            return behind
        return or_(behind, self.column.is_(None))

    def _literal(self, value: Any) -> ColumnElement[Any]:
        return literal(value, self.column.type)


def _follows(keys: Sequence[_SortKey], values: Sequence[Any]) -> ColumnElement[bool]:
    """(a, b, c) behind (x, y, z): a > x, or a = x and b > y, or both equal and c > z; each key in its own direction."""
    alternatives = []
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        equal = [k.equals(v) for k, v in zip(keys[:i], values[:i], strict=True)]
        alternatives.append(and_(*equal, key.after(value)))
    return or_(*alternatives)


def _sort_keys(statement: Select[Any]) -> list[_SortKey]:
    entity = statement.column_descriptions[0]["entity"]
    if entity is None or len(statement.column_descriptions) != 1:
        raise ValueError("a page is of select(Model): one mapped class")
    keys = [_sort_key(clause) for clause in statement._order_by_clauses]
    known = [key.column for key in keys]
    for attribute in key_attributes(entity):
        column = attribute.expression
        if not any(column.compare(other) for other in known):
            keys.append(_SortKey(column, descending=False, nulls_first=False))
    return keys


def _sort_key(clause: ColumnElement[Any]) -> _SortKey:
    descending, nulls_first = False, None
    while isinstance(clause, UnaryExpression) and clause.modifier in _MODIFIERS:
        if clause.modifier in (operators.asc_op, operators.desc_op):
            descending = clause.modifier is operators.desc_op
        else:
            nulls_first = clause.modifier is operators.nulls_first_op
        clause = clause.element
    return _SortKey(clause, descending, descending if nulls_first is None else nulls_first)


_MODIFIERS: Final = frozenset({operators.asc_op, operators.desc_op, operators.nulls_first_op, operators.nulls_last_op})


async def _count(session: AsyncSession, statement: Select[Any], count: bool | int) -> tuple[int | None, bool]:
    if count is False:
        return None, False
    listing = statement.order_by(None).with_only_columns(literal(1), maintain_column_froms=True)
    if count is not True:
        listing = listing.limit(count + 1)
    total = await session.scalar(select(func.count()).select_from(listing.subquery())) or 0
    if count is not True and total > count:
        return count, True
    return total, False


class _Cursors:
    """Writes and reads the cursors of one listing."""

    _VERSION: Final = 1

    def __init__(self, statement: Select[Any], keys: Sequence[_SortKey]) -> None:
        self._types = [key.column.type for key in keys]
        compiled = statement.order_by(None).order_by(*(key.clause() for key in keys)).compile(dialect=_DIALECT)
        listing = repr((str(compiled), sorted((name, repr(value)) for name, value in compiled.params.items())))
        self._listing = hashlib.blake2b(listing.encode(), digest_size=9).digest()

    def encode(self, values: Sequence[Any]) -> str:
        payload = orjson.dumps([_to_json(value) for value in values])
        return base64.urlsafe_b64encode(bytes([self._VERSION]) + self._seal(payload) + payload).rstrip(b"=").decode()

    def decode(self, cursor: str) -> list[Any]:
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            version, seal, payload = raw[0], raw[1:10], raw[10:]
            if version != self._VERSION or seal != self._seal(payload):
                raise InvalidCursor(
                    "the cursor is damaged, or belongs to a listing with another order or other filters"
                )
            pairs = orjson.loads(payload)
            return [_from_json(tag, value, kind) for (tag, value), kind in zip(pairs, self._types, strict=True)]
        except (binascii.Error, ValueError, IndexError, KeyError, TypeError, ArithmeticError) as error:
            if isinstance(error, InvalidCursor):
                raise
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
    "n": (Decimal, str, Decimal),
    "x": (bytes, bytes.hex, bytes.fromhex),
}


def _to_json(value: Any) -> tuple[str, Any]:
    if value is None:
        return "0", None
    if isinstance(value, Enum):
        return "e", value.name
    for tag, (kind, write, _) in _BY_TAG.items():
        if isinstance(value, kind):
            return tag, write(value)
    raise TypeError(f"a listing can't be ordered by {type(value).__name__} values yet")


def _from_json(tag: str, value: Any, column_type: TypeEngine[Any]) -> Any:
    if tag == "0":
        return None
    if tag == "e":
        assert isinstance(column_type, EnumType)
        assert column_type.enum_class is not None
        return column_type.enum_class[value]
    return _BY_TAG[tag][2](value)
