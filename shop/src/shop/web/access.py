"""The rules of Shop: which roles may call a route, and which rows are a customer's own.

Each feature declares its rules in its module `rules`. The policies of row-level security repeat them in PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Select, SQLColumnExpression

from howdah import NotFound
from howdah.fastapi import NotAllowed, allow
from shop.identity.principals import Principal, Role

QueryT = TypeVar("QueryT", bound=Select[Any])


def everyone(scope: str) -> Any:
    """Every role may call the route. What a customer sees is limited by an `OwnRows`."""
    return allow(*Role, scope=scope)


def staff(scope: str) -> Any:
    """Operators and admins may call the route."""
    return allow(Role.OPERATOR, Role.ADMIN, scope=scope)


def admins() -> Any:
    """Admins may call the route, but not with an API key that has scopes."""
    return allow(Role.ADMIN)


class Permission:
    """A right of some roles within a route that other roles may call, too, for example to change a certain field."""

    def __init__(self, *roles: Role, to: str) -> None:
        self.roles = frozenset(roles)
        self._action: Final = to

    def check(self, principal: Principal) -> None:
        """Raise `NotAllowed` (403) for another role."""
        if principal.role not in self.roles:
            raise NotAllowed(f"the role {principal.role} may not {self._action}")


class SecondScope:
    """A second scope that an API key needs, because the route reads or changes rows of two features."""

    def __init__(self, scope: str) -> None:
        self.scope: Final = scope

    def check(self, principal: Principal) -> None:
        """Raise `NotAllowed` (403) for an API key without the scope."""
        if principal.scopes is not None and self.scope not in principal.scopes:
            raise NotAllowed(f"the API key needs the scope {self.scope}, too")


@dataclass(frozen=True, slots=True)
class Viewer:
    """The viewer of a view whose row filter shows customers only their own rows."""

    customer_id: UUID | None
    sees_all: bool


class OwnRule:
    """A rule that limits customers to what is their own. It doesn't limit operators and admins."""

    def find_customer(self, principal: Principal) -> UUID | None:
        """The customer to whom the principal is limited, or None."""
        return principal.customer_id


class OwnRows(OwnRule):
    """The rows of a table that are a customer's own: their `owner` column is the id of the customer.

    Operators and admins see all rows. For a customer, a row of another user is `NotFound`. All methods call
    `find_customer`, so that a test can disable the rule in one place.
    """

    def __init__(self, owner: SQLColumnExpression[UUID] | SQLColumnExpression[UUID | None]) -> None:
        self.owner: Final = owner

    def restrict(self, query: QueryT, principal: Principal) -> QueryT:
        """The query, with only the principal's own rows."""
        customer_id = self.find_customer(principal)
        return query if customer_id is None else query.where(self.owner == customer_id)

    def check(self, principal: Principal, owner_id: UUID | None, model: type[Any], key: Hashable) -> None:
        """Raise `NotFound` for the row of another user."""
        customer_id = self.find_customer(principal)
        if customer_id is not None and owner_id != customer_id:
            raise NotFound(model, [key])

    def criterion(self, principal: Principal) -> ColumnElement[bool] | None:
        """The condition of the principal's own rows, for `where` of `lock_one`. None if it sees all rows."""
        customer_id = self.find_customer(principal)
        return None if customer_id is None else self.owner == customer_id

    def viewer(self, principal: Principal) -> Viewer:
        """The viewer of a view. Reads by key of several viewers share a statement."""
        customer_id = self.find_customer(principal)
        return Viewer(customer_id, sees_all=customer_id is None)
