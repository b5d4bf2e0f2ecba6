"""The casts of parameters, without the length or precision of their types.

SQLAlchemy casts a parameter to the type of the column that it is compared with or assigned to. A cast to
`NUMERIC(10, 2)` rounds the value, and a cast to `BIT(3)` or `CHAR` truncates it. So `price == Decimal("9.991")` would
find 9.99, and `price * Decimal("1.075")` would multiply by 1.08. PostgreSQL never does that to a parameter without a
cast: it compares and calculates with the whole value. When it stores a value in a column, it rounds a number, and
rejects a text or bit string that is too long.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import CHAR, Engine, String
from sqlalchemy.dialects.postgresql import DOMAIN

from howdah._arrays import remove_length


def use_exact_casts(engine: Engine) -> None:
    """Cast parameters without a length, in every statement of the engine. Call it before the first statement."""
    dialect: Any = engine.dialect
    dialect.statement_compiler = type("ExactCompiler", (_ExactCastsMixin, dialect.statement_compiler), {})


class _ExactCastsMixin:
    """Mixin of the compiler of statements."""

    def render_bind_cast(self, type_: Any, dbapi_type: Any, sqltext: str) -> str:
        if isinstance(dbapi_type, DOMAIN):
            # SQLAlchemy casts a domain only if it inserts several rows and has to return them in order. The column
            # checks the value.
            dbapi_type = dbapi_type.data_type
        if isinstance(dbapi_type, CHAR):
            dbapi_type = String()  # SQLAlchemy does the same for a CHAR with a length
        prefix = f"{sqltext}::"
        rendered: str = super().render_bind_cast(type_, dbapi_type, sqltext)  # type: ignore[misc]
        return prefix + remove_length(rendered.removeprefix(prefix))
