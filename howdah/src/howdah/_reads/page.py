"""A page of rows, and how Pydantic validates and writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """Consecutive rows of a list query, in its order.

    `next` and `previous` are cursors for `after=` and `before=`. They are None at the ends of the list. `total` is the
    number of all rows of the list query, or None if `count` wasn't requested. If `count` is a number, `total` is at
    most that number, and `total_capped` is true if there are more rows.

    Pydantic validates the items of `Page[Schema]` like those of `list[Schema]`. It writes `total` and `total_capped`
    only if the rows were counted.
    """

    items: list[ItemT]
    next: str | None
    previous: str | None
    total: int | None = None
    total_capped: bool = False

    # By default Pydantic accepts an instance of a dataclass without validating its fields. Then validators of the items
    # would not run, and items would be written without the attributes that aren't loaded.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        revalidate_instances="always", json_schema_extra={"description": "One page of a list."}
    )

    # The return type is not annotated, because Pydantic would use it as the JSON schema instead of the page's fields.
    @model_serializer(mode="wrap")
    def _serialize(self, serialize: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        return omit_missing_total(self.total, serialize(self))


def omit_missing_total(total: int | None, serialized: Any) -> Any:
    """The members of a page, without `total` and `total_capped` if the rows were not counted."""
    if total is None and isinstance(serialized, dict):
        return {name: value for name, value in serialized.items() if name not in ("total", "total_capped")}
    return serialized
