"""Routes that read a user with their orders, each written with another library. `get-user` compares them on the tables
of the benchmarks, and `shop-http` on Shop's tables.

Each route has its own application. FastAPI tries the routes of an application one after the other, so with a single
application, later routes would be slower.
"""

# Without `from __future__ import annotations`, because Litestar and FastAPI can't resolve the annotations of local
# names as texts.

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from uuid import UUID

import asyncpg
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from advanced_alchemy.service import SQLAlchemyAsyncRepositoryService
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from litestar import Litestar
from litestar import get as litestar_get
from litestar.datastructures import State
from litestar.di import Provide
from pydantic import BaseModel
from sqlalchemy import make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import selectinload
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.fastapi import add_error_handlers, json_response

RouteT = TypeVar("RouteT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class UserTables:
    """The tables and the response of the routes."""

    user: Any
    schema: type[BaseModel]
    json_statement: str
    """The fastest known way without Howdah: PostgreSQL builds the JSON in one statement, and the route sends it
    unchanged."""


class Routes:
    """An ASGI application that calls the application of the contender in the path: `/<contender>/…`."""

    def __init__(self, open_state: Callable[[], Any]) -> None:
        """`open_state` is an asynchronous context manager that yields the state of all requests."""

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
            async with open_state() as state:
                yield state

        self._lifespan = FastAPI(lifespan=lifespan)
        self._apps: dict[str, ASGIApp] = {}

    def add(self, contender: str, app: Any) -> None:
        self._apps[contender] = app

    def route(self, contender: str, path: str, *, method: str = "GET", **options: Any) -> Callable[[RouteT], RouteT]:
        """A decorator: the only route of a new FastAPI application."""
        app = FastAPI()
        add_error_handlers(app)
        self.add(contender, app)
        return app.api_route(f"/{contender}{path}", methods=[method], **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._lifespan if scope["type"] == "lifespan" else self._apps[scope["path"].split("/")[1]]
        await app(scope, receive, send)


@asynccontextmanager
async def open_peers(url: str) -> AsyncIterator[dict[str, Any]]:
    """The state of the routes of `add_peers`: sessions with the options of the reference, and a pool of asyncpg."""
    engine = create_async_engine(url, pool_size=20, max_overflow=10, pool_pre_ping=True, pool_recycle=3600)
    driver_url = make_url(url).set(drivername="postgresql").render_as_string(False)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        pool = await stack.enter_async_context(asyncpg.create_pool(driver_url, min_size=20, max_size=20))
        yield {"sessions": async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False), "pool": pool}


async def get_db(request: Request) -> AsyncIterator[AsyncSession]:
    """The session dependency of the reference examples."""
    async with request.state.sessions() as session:
        try:
            yield session
            await session.commit()
        except Exception:
            await session.rollback()
            raise


Db = Annotated[AsyncSession, Depends(get_db)]


def add_peers(routes: Routes, tables: UserTables) -> None:
    """The contenders `reference`, `advanced-alchemy`, `litestar`, `asyncpg` and `view`. The path is the user's id.

    The state has a reader of the view as `users`.
    """
    schema = tables.schema

    class UserService(SQLAlchemyAsyncRepositoryService[Any]):
        class Repository(SQLAlchemyAsyncRepository[Any]):
            model_type = tables.user

        repository_type = Repository

    @routes.route("reference", "/{user_id}", response_model=schema)
    async def reference(user_id: UUID, db: Db) -> Any:
        with_orders = selectinload(tables.user.orders)
        result = await db.execute(select(tables.user).options(with_orders).where(tables.user.id == user_id))
        user = result.scalar_one_or_none()
        if not user:
            raise HTTPException(404, "User not found")
        return user

    @routes.route("advanced-alchemy", "/{user_id}", response_model=schema)
    async def with_advanced_alchemy(user_id: UUID, db: Db) -> Any:
        service = UserService(session=db, load=[tables.user.orders])
        return service.to_schema(await service.get(user_id), schema_type=schema)

    async def provide_users(state: State) -> AsyncIterator[UserService]:
        async with state.sessions() as session, UserService.new(session, load=[tables.user.orders]) as service:
            yield service

    async def with_litestar(user_id: UUID, users: UserService) -> schema:  # type: ignore[valid-type]
        return users.to_schema(await users.get(user_id), schema_type=schema)  # type: ignore[no-any-return]

    # not as a decorator, which mypy would call untyped where Litestar isn't installed
    handler = litestar_get("/litestar/{user_id:uuid}", dependencies={"users": Provide(provide_users)})(with_litestar)
    routes.add("litestar", _WithState(Litestar([handler], openapi_config=None)))

    @routes.route("asyncpg", "/{user_id}")
    async def with_asyncpg(user_id: UUID, request: Request) -> Response:
        body = await request.state.pool.fetchval(tables.json_statement, user_id)
        if body is None:
            raise HTTPException(404, "User not found")
        return Response(body, media_type="application/json")

    @routes.route("view", "/{user_id}", response_model=schema)
    async def with_view(user_id: UUID, request: Request) -> Response:
        return json_response(await request.state.users.get(user_id), request)


class _WithState:
    """Litestar has a state of its own: give it the sessions of the lifespan, which it doesn't see here."""

    def __init__(self, app: Litestar) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._app.state.sessions = scope["state"]["sessions"]
        await self._app(scope, receive, send)
