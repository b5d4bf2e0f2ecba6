"""Keyset cursors: the position at which a page starts or ends, as an opaque string for a URL.

A cursor is the base64 of: the version (1 byte), the checksum (9 bytes), and JSON (`[inclusive, [text, oid], …]`, with
one pair for each sort key).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import BindParameter, Select

from howdah._reads.sort_keys import SortKey
from howdah._reads.sort_values import DIALECT, SortValue, has_allowed_type
from howdah._sqlalchemy import without_options
from howdah.errors import InvalidCursor


class Position(NamedTuple):
    """The sort values of one row. The page starts after this row, or with it if `inclusive` is true."""

    values: list[SortValue]
    inclusive: bool = False


class ListDigest:
    """The digest of a list query, for all values of its parameters. Compiling the statement takes 0.1 ms."""

    def __init__(self, statement: Select[Any], keys: Sequence[SortKey]) -> None:
        # the columns and relationships that are loaded don't matter for a cursor
        bare = without_options(statement.with_only_columns(*(key.column for key in keys), maintain_column_froms=True))
        compiled: Any = bare.order_by(None).order_by(*(key.to_order_by() for key in keys)).compile(dialect=DIALECT)
        escaped = compiled.escaped_bind_names
        self.binds: Mapping[str, BindParameter[Any]] = {
            escaped.get(name, name): bind for bind, name in compiled.bind_names.items()
        }
        """The parameters of the statement by name."""
        self._text = str(compiled)

    def compute(self, values: Mapping[str, Any]) -> bytes:
        """The digest with these values, by the names or the keys of parameters, and the statement's own for others."""
        texts = sorted((name, _format_parameter(_find_value(name, bind, values))) for name, bind in self.binds.items())
        return hashlib.blake2b(repr((self._text, texts)).encode(), digest_size=9).digest()


def _find_value(name: str, bind: BindParameter[Any], values: Mapping[str, Any]) -> Any:
    return values[name] if name in values else values.get(bind.key, bind.effective_value)


class Cursors:
    """Writes and reads the cursors of one list query.

    A cursor is bound to the order, the filters and their values: to a `ListDigest`. The checksum detects mistakes. It
    uses no secret, so the contents of a cursor are checked before they become a part of a statement.
    """

    _VERSION: Final = 2  # version 1 held Python values

    def __init__(self, keys: Sequence[SortKey], compute_digest: Callable[[], bytes]) -> None:
        """`compute_digest` is that of a `ListDigest`. A list that has one page doesn't call it."""
        self.keys, self._compute_digest = keys, compute_digest

    @cached_property
    def _digest(self) -> bytes:
        return self._compute_digest()

    def encode(self, position: Position) -> str:
        """The cursor for this position."""
        payload = orjson.dumps([position.inclusive, *map(list, position.values)])
        return (
            base64.urlsafe_b64encode(bytes([self._VERSION]) + self._checksum(payload) + payload).rstrip(b"=").decode()
        )

    def decode(self, cursor: str) -> Position:
        """The position of a cursor. Raises `InvalidCursor` if it is damaged or was made for another list query."""
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            version, checksum, payload = raw[0], raw[1:10], raw[10:]
        except (ValueError, IndexError) as error:
            raise InvalidCursor(
                "the cursor can't be decoded: pass the `next` or `previous` of a page unchanged"
            ) from error
        if version != self._VERSION or checksum != self._checksum(payload):
            raise InvalidCursor(
                "the cursor is damaged, has another version, or belongs to a list query with another order or other "
                "filters: start from the first page"
            )
        try:
            inclusive, *values = orjson.loads(payload)
            position = Position([_check_value(*value) for value in values], inclusive is True)
            pairs = [*zip(self.keys, position.values, strict=True)]
        except (ValueError, TypeError) as error:
            raise InvalidCursor("the cursor doesn't hold one value for each sort key of the list query") from error
        if not all(has_allowed_type(value, key.kind) for key, value in pairs):
            raise InvalidCursor("the cursor has a value of another type than the sort key of the list query")
        return position

    def _checksum(self, payload: bytes) -> bytes:
        return hashlib.blake2b(payload, key=self._digest, digest_size=9).digest()


def _check_value(text: Any, oid: Any) -> SortValue:
    if not isinstance(text, str | None) or type(oid) not in (int, type(None)):
        raise TypeError("a sort value is a text or null, and an OID or null")
    return SortValue(text, oid)


def _format_parameter(value: Any) -> str:
    """A parameter as text. The values of an IN are sorted, because the order of a set differs between processes."""
    return repr(sorted(map(repr, value))) if isinstance(value, list | tuple | set | frozenset) else repr(value)
