"""A page of rows, and how Pydantic validates and writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """Consecutive rows of a list query, in its order.

    `next` and `previous` are cursors for `after=` and `before=`. They are None at the ends of the list. `total` is None
    if `count` wasn't requested. `total_capped` is true if there are more rows than the cap in `count`.

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

    # Its return type is not annotated: Pydantic would make it the JSON schema, in place of the page's own.
    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        return without_missing_total(self.total, write(self))


def without_missing_total(total: int | None, written: Any) -> Any:
    """The members of a page, without `total` and `total_capped` if the rows were not counted."""
    if total is None and isinstance(written, dict):
        return {name: value for name, value in written.items() if name not in ("total", "total_capped")}
    return written
