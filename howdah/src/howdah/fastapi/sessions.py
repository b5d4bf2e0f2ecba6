"""Sessions for routes, and the dependency that finds their database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any
from weakref import WeakSet, WeakValueDictionary

from fastapi import Depends
from fastapi.dependencies.models import Dependant
from fastapi.params import Depends as DependsMarker
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from howdah._connections.sessions import is_streaming
from howdah.database import Database
from howdah.fastapi.in_progress import protect
from howdah.fastapi.resources import Resource, find_named_database


def database_from_state(connection: HTTPConnection) -> Database:
    """The application's `Database`, from `configure_app` or from a lifespan that yielded `{"database": …}`.

    Raises `RuntimeError` if there is none.
    """
    database = connection.scope.get("state", {}).get("database")  # without `connection.state`, which takes longer
    if not isinstance(database, Database):
        raise RuntimeError(  # noqa: TRY004  # the application is set up wrongly
            "the application has no open database: call configure_app(app, database=...), or yield "
            '{"database": Database(...)} from its lifespan, and start the application with its lifespan'
        )
    return database


async def get_database(connection: HTTPConnection) -> Database:
    """`database_from_state` as a dependency; the sessions below use it.

    Tests replace it: `app.dependency_overrides[get_database] = lambda: database`.
    """
    return database_from_state(connection)


async def get_db(
    connection: HTTPConnection, database: Annotated[Database, Depends(get_database)]
) -> AsyncIterator[AsyncSession]:
    """A session for one request. It is committed after the route has returned and before the response is sent.

    So the client gets an error response if the commit fails. An exception, a disconnected client or a cancelled task
    rolls the session back.

    Declare it as `DbSession`. Without `scope="function"` FastAPI would commit after it has sent the response. A route
    without that scope raises `RuntimeError` at its first request.

    A response that streams from the database needs `ReadDbSession`, because this session is already closed when the
    response is sent. On a WebSocket this session would be one transaction for all messages. Use the `Database` there
    (`get_database`), and open a session for each message.
    """
    async with _open_committing_session(connection, database) as session:
        yield session


async def _open_read_session(
    database: Annotated[Database, Depends(get_database)],
) -> AsyncIterator[AsyncSession]:
    """The session of `get_read_db`. It is closed when the response has been sent."""
    async with database.session(read_only=True) as session:
        yield session


async def get_read_db(
    connection: HTTPConnection, opened: Annotated[AsyncSession, Depends(_open_read_session, scope="request")]
) -> AsyncIterator[AsyncSession]:
    """A session for one request in which PostgreSQL rejects writes. Declare it as `ReadDbSession`.

    Its connection is returned when the route has returned, and before the response is sent. So a client that doesn't
    read its response holds no connection. Without `scope="function"` FastAPI would return the connection later. A route
    without that scope raises `RuntimeError` at its first request.

    A streaming response can still use the session: `export_response`, or a generator that begins to read while the
    response is sent. A stream that the route itself has begun (`await db.stream(...)`) keeps the connection. The
    session is closed when the response has been sent. Your own `StreamingResponse` would hold the connection until the
    client has received it. Pass its lines to `ndjson_response` instead, which stores them.
    """
    async with _release_before_response(connection, opened) as session:
        yield session


DbSession = Annotated[AsyncSession, Depends(get_db, scope="function")]
ReadDbSession = Annotated[AsyncSession, Depends(get_read_db, scope="function")]


def database_dependency(name: str) -> Any:
    """A further database of the application: `Annotated[Database, database_dependency("reports")]`.

    `name` is a key of `configure_app(..., databases={"reports": ...})`.
    """

    async def get_named_database(connection: HTTPConnection) -> Database:
        return find_named_database(connection, name)

    _other_database_dependencies.add(get_named_database)
    return DependsMarker(get_named_database)


def session_dependency(database: str | Callable[[HTTPConnection], Database], *, read_only: bool = False) -> Any:
    """`DbSession` for another database: `Annotated[AsyncSession, session_dependency("reports")]`.

    `database` is a name in `configure_app(..., databases={"reports": ...})`, or a function that returns the `Database`
    for a request or a WebSocket. The session is committed before the response is sent. With `read_only` it is a
    `ReadDbSession`: PostgreSQL rejects writes, and its connection is returned before the response is sent.
    """

    def find(connection: HTTPConnection) -> Database:
        return find_named_database(connection, database) if isinstance(database, str) else database(connection)

    async def get_session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
        async with _open_committing_session(connection, find(connection)) as session:
            yield session

    async def open_read_session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
        async with find(connection).session(read_only=True) as session:
            yield session

    if read_only:
        return read_session_marker(open_read_session)
    _committing_dependencies.add(get_session)
    return DependsMarker(get_session, scope="function")


def read_session_marker(open_session: Callable[..., AsyncIterator[AsyncSession]]) -> Any:
    """A marker like that of `ReadDbSession`, for the sessions of the dependency `open_session`."""

    # A default and no annotation, because FastAPI can't resolve an annotation that names an argument.
    opening: Any = DependsMarker(open_session, scope="request")

    async def get_read_session(
        connection: HTTPConnection, opened: AsyncSession = opening
    ) -> AsyncIterator[AsyncSession]:
        async with _release_before_response(connection, opened) as session:
            yield session

    _reading_dependencies.add(get_read_session)
    return DependsMarker(get_read_session, scope="function")


@asynccontextmanager
async def _open_committing_session(connection: HTTPConnection, database: Database) -> AsyncIterator[AsyncSession]:
    """A session that is committed if the route returns, and rolled back if it raises."""
    _reject_late_end(connection)
    async with database.session() as session:
        yield session
        protect(connection)  # a cancelled commit may have succeeded, and then its background tasks would be lost
        await session.commit()


@asynccontextmanager
async def _release_before_response(connection: HTTPConnection, session: AsyncSession) -> AsyncIterator[AsyncSession]:
    """The session. At the end its connection is returned, unless the response streams from it."""
    _reject_late_end(connection)
    yield session
    if not is_streaming(session):
        await session.reset()


_committing_dependencies: WeakSet[Callable[..., Any]] = WeakSet({get_db})
_reading_dependencies: WeakSet[Callable[..., Any]] = WeakSet({get_read_db})
_other_database_dependencies: WeakSet[Callable[..., Any]] = WeakSet({get_database})


def is_committing_session(dependency: Callable[..., Any] | None) -> bool:
    """Whether the dependency is a session that commits: `get_db`, or one that `session_dependency` made."""
    # compared by identity, because a dependency may be unhashable
    return any(dependency is each for each in _committing_dependencies)


def is_database_dependency(dependency: Callable[..., Any] | None) -> bool:
    """Whether the dependency is a session, a `Database`, or a resource, which uses one."""
    return (
        isinstance(dependency, Resource)
        or is_committing_session(dependency)
        or any(dependency is each for each in (*_reading_dependencies, *_other_database_dependencies))
    )


# The routes that have been checked. By id, because routes can't be hashed.
_checked_routes: WeakValueDictionary[int, Any] = WeakValueDictionary()


def _reject_late_end(connection: HTTPConnection) -> None:
    """Raise `RuntimeError` if the route has a session without `scope="function"`. Checks each route once."""
    route = _find_route(connection)
    dependant = getattr(route, "dependant", None)
    if not isinstance(dependant, Dependant) or id(route) in _checked_routes:
        return
    unchecked = [dependant]
    while unchecked:
        each = unchecked.pop()
        if is_committing_session(each.call) and each.scope != "function":
            raise RuntimeError(
                f"{connection.scope['path']}: the session would be committed after the response: declare it as "
                "DbSession, or with Depends(..., scope='function')"
            )
        if each.scope != "function" and any(each.call is reading for reading in _reading_dependencies):
            raise RuntimeError(
                f"{connection.scope['path']}: the session would hold its connection until the response was sent: "
                "declare it as ReadDbSession, or with Depends(..., scope='function')"
            )
        unchecked += each.dependencies
    _checked_routes[id(route)] = route


def find_dependant(connection: HTTPConnection) -> Dependant | None:
    """The complete dependencies of the route that answers this request, with those that `include_router` added."""
    dependant = getattr(_find_route(connection), "dependant", None)
    return dependant if isinstance(dependant, Dependant) else None


def _find_route(connection: HTTPConnection) -> Any:
    # For an HTTP route of an included router, this context has the route's complete dependencies.
    included = connection.scope.get("fastapi", {}).get("effective_route_context")
    return included if getattr(included, "dependant", None) else connection.scope.get("route")
