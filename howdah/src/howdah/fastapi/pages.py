"""The query parameters of a list route, and the schema of its pages."""

from __future__ import annotations

from typing import Annotated, Generic, Self, TypedDict, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from howdah._reads.page import omit_missing_total
from howdah.fastapi.exact_types import DecimalDigits
from howdah.filters import Filters
from howdah.pagination import MAX_LIMIT

ItemT = TypeVar("ItemT")


class PageArguments(TypedDict):
    """The arguments of `paginate`, `AsyncRepository.page` and `JsonViewReader.page`."""

    limit: int
    after: str | None
    before: str | None


class PageParameters(Filters):
    """The query parameters of a list route, as `Annotated[PageParameters, Query()]`.

    Subclass it, and declare filters and the order with `Filter`, `Condition` and `Sort`. Then the page is
    `paginate(db, parameters.apply(select(Order)), **parameters.page_arguments)`. Unknown parameters are rejected.
    """

    limit: Annotated[int, DecimalDigits] = Field(
        default=50, ge=1, le=MAX_LIMIT, description="The maximum number of items"
    )
    after: str | None = Field(default=None, description="The `next` of the page before this one")
    before: str | None = Field(default=None, description="The `previous` of the page after this one; not with `after`")

    @model_validator(mode="after")
    def _check_one_direction(self) -> Self:
        if self.after is not None and self.before is not None:
            raise ValueError("after and before can't both be given: pass one of them")
        return self

    @property
    def page_arguments(self) -> PageArguments:
        """`limit`, `after` and `before`."""
        return {"limit": self.limit, "after": self.after, "before": self.before}


class PageOut(BaseModel, Generic[ItemT]):
    """The schema of a page: `response_model=PageOut[UserOut]`.

    It is for a route that returns a `howdah.Page` or the `page_response` of a view. Each item is validated like an item
    of `list[UserOut]`. `total` and `total_capped` are written only if the rows were counted. A subclass can add
    members.
    """

    model_config = ConfigDict(from_attributes=True)

    items: list[ItemT]
    next: str | None = Field(description="The cursor for `after`; null on the last page")
    previous: str | None = Field(description="The cursor for `before`; null on the first page")
    total: int | None = Field(default=None, description="The number of all items; only if they were counted")
    total_capped: bool = Field(
        default=False, description="Whether there are more items than `total`; only if they were counted"
    )

    # The return type is not annotated, because Pydantic would use it as the JSON schema instead of the page's fields.
    @model_serializer(mode="wrap")
    def _serialize(self, serialize: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        return omit_missing_total(self.total, serialize(self))
