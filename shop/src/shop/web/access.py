"""The rules of Shop: which roles may call a route, and which rows are a customer's own.

Each feature declares its rules in its module `rules`. The policies of row-level security repeat them in PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, TypeVar
from uuid import UUID

from sqlalchemy import Select, SQLColumnExpression

from howdah import NotFound
from howdah.fastapi import allow
from shop.identity.principals import Principal, Role

RowT = TypeVar("RowT", bound=tuple[Any, ...])


def everyone(scope: str) -> Any:
    """Every role may call the route. What a customer sees is limited by an `OwnRows`."""
    return allow(*Role, scope=scope)


def staff(scope: str) -> Any:
    """Operators and admins may call the route."""
    return allow(Role.OPERATOR, Role.ADMIN, scope=scope)


def admins() -> Any:
    """Admins may call the route, but not with an API key that has scopes."""
    return allow(Role.ADMIN)


class OwnRows:
    """The rows of a table that are a customer's own: their `owner` column is the id of the customer.

    Operators and admins see all rows. To a customer, a row of another user is missing: the error is `NotFound`.
    """

    def __init__(self, owner: SQLColumnExpression[UUID] | SQLColumnExpression[UUID | None]) -> None:
        self.owner: Final = owner

    def restrict(self, query: Select[RowT], principal: Principal) -> Select[RowT]:
        """The query, with only the principal's own rows."""
        return query if principal.is_staff else query.where(self.owner == principal.user_id)

    def check(self, principal: Principal, owner_id: UUID | None, model: type[Any], key: Hashable) -> None:
        """Raise `NotFound` for the row of another user."""
        if not principal.is_staff and owner_id != principal.user_id:
            raise NotFound(model, [key])
