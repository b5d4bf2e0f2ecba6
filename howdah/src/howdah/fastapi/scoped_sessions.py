"""Sessions of the database that a dependency returns, for example with the settings of a tenant."""

# Without `from __future__ import annotations`: FastAPI can't resolve an annotation that names an argument.

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi.params import Depends as DependsMarker
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from howdah.database import Database
from howdah.fastapi.sessions import (
    _committing_dependencies,
    _open_committing_session,
    read_session_marker,
)


def session_from(find: Callable[..., Any], *, read_only: bool = False) -> Any:
    """`DbSession` for the database that the dependency `find` returns, for example with the settings of a tenant.

        async def get_tenant_database(
            tenant_id: Annotated[UUID, Depends(get_tenant_id)], database: Annotated[Database, Depends(get_database)]
        ) -> Database:
            return database.with_settings({"app.tenant_id": tenant_id})

        TenantDb = Annotated[AsyncSession, session_from(get_tenant_database)]

    The session is committed before the response is sent. With `read_only` it is a `ReadDbSession`. If the dependency
    raises, the route doesn't run, and nothing is sent to the database.
    """
    found = DependsMarker(find)

    async def get_session(
        connection: HTTPConnection, database: Annotated[Database, found]
    ) -> AsyncIterator[AsyncSession]:
        async with _open_committing_session(connection, _check(database)) as session:
            yield session

    async def open_read_session(database: Annotated[Database, found]) -> AsyncIterator[AsyncSession]:
        async with _check(database).session(read_only=True) as session:
            yield session

    if read_only:
        return read_session_marker(open_read_session)
    _committing_dependencies.add(get_session)
    return DependsMarker(get_session, scope="function")


def _check(database: object) -> Database:
    if not isinstance(database, Database):
        raise TypeError(f"the dependency of session_from() must return a Database, not a {type(database).__name__}")
    return database
