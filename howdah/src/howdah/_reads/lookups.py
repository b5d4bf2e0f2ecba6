"""Read the rows of a view by key: the statements, their parameters, and the JSON from their results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from howdah._keys import (
    build_key,
    build_key_condition,
    build_key_list_condition,
    build_requested_keys_join,
    get_key_attributes,
    has_exact_keys,
)
from howdah._reads.viewers import ViewerColumns


class JsonBytes(bytes):
    """A row's JSON in UTF-8. `version` is the row's version, or None if the model has none."""

    version: Any = None

    @property
    def etag(self) -> str:
        """The entity tag of these bytes (RFC 9110, section 8.8.3), with its quotes.

        If the model has a version, the tag begins with it (`"7-…"`), so that an `If-Match` can be compared with a
        locked row.
        """
        # 96 bits are enough to exclude that two bodies have the same tag by accident.
        digest = hashlib.blake2b(self, digest_size=12).hexdigest()
        return f'"{digest}"' if self.version is None else f'"{self.version}-{digest}"'


class KeyLookups:
    """The statement for one key, and the one for any number of keys.

    `columns` are a row's version and its JSON.
    """

    def __init__(
        self, model: type[Any], columns: Sequence[ColumnElement[Any]], criteria: Sequence[ColumnElement[bool]]
    ) -> None:
        # A class may be mapped to a join of tables, and the body may name only some of them. So FROM names the class.
        body = select(*columns).select_from(model).where(*criteria)
        has_key, self.bind_one = build_key_condition(model)
        self.one: Select[Any] = body.where(has_key)
        self._has_exact_keys = has_exact_keys(model)
        if self._has_exact_keys:
            has_any_key, self.bind_many = build_key_list_condition(model)
            self.many: Select[Any] = body.add_columns(*get_key_attributes(model)).where(has_any_key)
        else:
            position, same_row, self.bind_many = build_requested_keys_join(model)
            first = func.min(position).over(partition_by=get_key_attributes(model))
            self.many = body.add_columns(position, first).where(same_row)

    def get_bodies(self, rows: Sequence[Sequence[Any]], keys: Sequence[Any]) -> list[JsonBytes | None]:
        """The body for each key, or None, from the rows of `many`. Keys of the same row have the identical body."""
        if self._has_exact_keys:
            by_key = {build_key(key): make_body(version, text) for version, text, *key in rows}
            return [by_key.get(key) for key in keys]
        by_position: dict[int, JsonBytes] = {}
        by_row: dict[int, JsonBytes] = {}
        for version, text, position, first in rows:
            by_position[position] = by_row.setdefault(first, make_body(version, text))
        return [by_position.get(position) for position in range(1, len(keys) + 1)]


class ViewerLookup:
    """The statement for any number of keys, each with its own viewer."""

    def __init__(
        self,
        model: type[Any],
        columns: Sequence[ColumnElement[Any]],
        criteria: Sequence[ColumnElement[bool]],
        viewers: ViewerColumns,
    ) -> None:
        position, same_row, self._bind_keys = build_requested_keys_join(model, viewers.arrays)
        self._viewers = viewers
        self.statement: Select[Any] = select(*columns, position).select_from(model).where(*criteria, same_row)

    def bind(self, keys: Sequence[Any], viewers: Sequence[Sequence[Any]]) -> Mapping[str, Any]:
        """The parameters for these keys and for the viewer of each key."""
        return self._bind_keys(keys) | self._viewers.bind(viewers)

    @staticmethod
    def get_bodies(rows: Sequence[Sequence[Any]], count: int) -> list[JsonBytes | None]:
        """The body for each of the `count` keys as its own viewer sees it, or None."""
        by_position = {position: make_body(version, text) for version, text, position in rows}
        return [by_position.get(position) for position in range(1, count + 1)]


def make_body(version: Any, text: bytes) -> JsonBytes:
    body = JsonBytes(text)
    body.version = version
    return body
