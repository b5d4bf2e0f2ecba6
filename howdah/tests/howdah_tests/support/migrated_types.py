"""Types of columns that a project defines itself."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import Numeric, TypeDecorator
from sqlalchemy.types import UserDefinedType


class Money(TypeDecorator[Decimal]):
    """A type that is stored as another one."""

    impl = Numeric(12, 2)
    cache_ok = True


class Tsquery(UserDefinedType[str]):
    """A type that SQLAlchemy compiles by its own method."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "tsquery"
