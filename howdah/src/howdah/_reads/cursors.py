"""Keyset cursors: the position at which a page starts or ends, as an opaque string for a URL."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import Select

from howdah._reads.sort_keys import SortKey
from howdah._reads.sort_values import DIALECT, SortValue, is_readable
from howdah._sqlalchemy import without_options
from howdah.errors import InvalidCursor


class Position(NamedTuple):
    """The sort values of one row. The page starts after this row, or with it if `inclusive` is true."""

    values: list[SortValue]
    inclusive: bool = False


class Cursors:
    """Writes and reads the cursors of one list query.

    A cursor is bound to the order, the filters and their values. The seal is a checksum that detects mistakes. It uses
    no secret, so the contents of a cursor are checked before they become a part of a statement.
    """

    _VERSION: Final = 2

    def __init__(self, statement: Select[Any], keys: Sequence[SortKey]) -> None:
        self._keys = keys
        # the columns and relationships that are loaded don't matter for a cursor
        bare = without_options(statement.with_only_columns(*(key.column for key in keys), maintain_column_froms=True))
        compiled = bare.order_by(None).order_by(*(key.clause() for key in keys)).compile(dialect=DIALECT)
        listing = repr((str(compiled), sorted((name, _shown(value)) for name, value in compiled.params.items())))
        self._listing = hashlib.blake2b(listing.encode(), digest_size=9).digest()

    def encode(self, position: Position) -> str:
        payload = orjson.dumps([position.inclusive, *map(list, position.values)])
        return base64.urlsafe_b64encode(bytes([self._VERSION]) + self._seal(payload) + payload).rstrip(b"=").decode()

    def decode(self, cursor: str) -> Position:
        """Raises `InvalidCursor`."""
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            version, seal, payload = raw[0], raw[1:10], raw[10:]
        except (ValueError, IndexError) as error:
            raise InvalidCursor("the cursor can't be read") from error
        if version != self._VERSION or seal != self._seal(payload):
            raise InvalidCursor(
                "the cursor is damaged, of another version, or belongs to a listing with another order or other filters"
            )
        try:
            inclusive, *values = orjson.loads(payload)
            position = Position([_checked(*value) for value in values], inclusive is True)
            readable = [is_readable(value, key.kind) for key, value in zip(self._keys, position.values, strict=True)]
        except (ValueError, TypeError) as error:
            raise InvalidCursor("the cursor doesn't hold the listing's sort values") from error
        if not all(readable):
            raise InvalidCursor("the cursor has values of other types than the listing's")
        return position

    def _seal(self, payload: bytes) -> bytes:
        return hashlib.blake2b(payload, key=self._listing, digest_size=9).digest()


def _checked(text: Any, oid: Any) -> SortValue:
    if not isinstance(text, str | None) or type(oid) not in (int, type(None)):
        raise TypeError("a sort value is a text and the OID of its type")
    return SortValue(text, oid)


def _shown(value: Any) -> str:
    """A parameter as text, the same in every process: the values of an IN have no order."""
    return repr(sorted(map(repr, value))) if isinstance(value, list | tuple | set | frozenset) else repr(value)
