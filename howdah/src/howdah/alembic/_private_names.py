"""All private names of Alembic. A test checks that they exist and work as expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.types import TypeEngine

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext


def render_type_by_alembic(type_: TypeEngine[Any], context: AutogenContext) -> str:
    """The source of a type. Alembic has no public function that renders the type inside another one."""
    from alembic.autogenerate.render import _repr_type

    return _repr_type(type_, context)
