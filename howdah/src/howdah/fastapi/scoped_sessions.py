"""Sessions and readers of views for the database of a request, for example with the settings of a tenant."""

# Without `from __future__ import annotations`: FastAPI can't resolve an annotation that names an argument.

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi.params import Depends as DependsMarker
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase
from starlette.requests import HTTPConnection

from howdah.database import Database
from howdah.fastapi.resources import Resource
from howdah.fastapi.sessions import (
    _committing_dependencies,
    _open_committing_session,
    read_session_marker,
)
from howdah.views import JsonViewReader

ModelT = TypeVar("ModelT", bound=DeclarativeBase)
ViewerT = TypeVar("ViewerT")


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


def reader_from(
    reader: Resource[JsonViewReader[ModelT, ViewerT]], find: Callable[[HTTPConnection], Awaitable[Database]]
) -> Any:
    """The reader of a view for the database that `find` returns for a request: see `JsonViewReader.scoped`.

        async def get_tenant_database(connection: HTTPConnection) -> Database:
            tenant_id = find_principal(connection).tenant_id
            return (await get_database(connection)).with_settings({"app.tenant_id": tenant_id})

        ProjectReader = Annotated[JsonViewReader[Project], reader_from(project_reader, get_tenant_database)]

    `find` may also return another `Database` with the same tables, such as one with another role. It is called with the
    request and isn't a dependency, because FastAPI needs about 10 µs for each dependency.
    """
    return DependsMarker(_ScopedReader(reader, find))


class _ScopedReader(Resource[JsonViewReader[Any, Any]]):
    """A dependency: the opened resource, scoped to the database of the request."""

    def __init__(
        self,
        reader: Resource[JsonViewReader[Any, Any]],
        find: Callable[[HTTPConnection], Awaitable[Database]],
    ) -> None:
        self.__dict__.update(reader.__dict__)  # the same key, so that the application must open that resource
        self._find = find

    async def __call__(self, connection: HTTPConnection) -> JsonViewReader[Any, Any]:
        return self.find(connection).scoped(_check(await self._find(connection)))


def _check(database: object) -> Database:
    if not isinstance(database, Database):
        raise TypeError(f"the database of a request must be a Database, not a {type(database).__name__}")
    return database
