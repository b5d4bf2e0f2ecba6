"""FastAPI dependencies of the routes of every feature."""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of local names as texts.

from typing import Annotated, Any, Final

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from howdah import Database, JsonViewReader
from howdah.fastapi import (
    Resource,
    find_named_database,
    get_database,
    reader_from,
    require_principal,
    session_from,
)
from shop.identity.principals import Principal
from shop.roles import CUSTOMER_ROLE, USER_SETTING

SYSTEM_DATABASE: Final = "system"
"""The `Database` of the ledger, of sign-ins and of periodic jobs. A route checks its rows before a client gets them."""

STAFF_DATABASE: Final = "staff"
"""The `Database` of operators and admins. Its connections have their role, so that a read is one round trip."""


CurrentPrincipal = Annotated[Principal, Depends(require_principal)]


async def get_principal_database(connection: HTTPConnection) -> Database:
    """The database as the principal sees it: a customer sees only their own rows, by row-level security.

    The role decides what the principal may do: see `shop.policies` and the grants of the models.
    """
    principal: Principal = await require_principal(connection)
    if principal.is_staff:
        return find_named_database(connection, STAFF_DATABASE)
    return (await get_database(connection)).with_settings({USER_SETTING: principal.user_id}, role=CUSTOMER_ROLE)


PrincipalDatabase = Annotated[Database, Depends(get_principal_database)]

principal_session: Final = session_from(get_principal_database)

PrincipalSession = Annotated[AsyncSession, principal_session]
"""A session of `PrincipalDatabase`. It is committed before the response is sent."""

PrincipalReadSession = Annotated[AsyncSession, session_from(get_principal_database, read_only=True)]
"""A read-only session of `PrincipalDatabase`."""


def principal_reader(reader: Resource[JsonViewReader[Any]]) -> Any:
    """A dependency: the reader of a view, which reads `PrincipalDatabase`."""
    return reader_from(reader, get_principal_database)
