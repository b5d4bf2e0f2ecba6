"""The routes that `get-user` compares: `GET /<contender>/<user id>` returns the user with their orders.

Each route has its own application. FastAPI tries the routes of an application one after the other, so with a single
application, later routes would be slower.

`python -m benchmarks.routes URL PORT` serves them like `shop serve`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from uuid import UUID

import asyncpg
import uvicorn
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from advanced_alchemy.service import SQLAlchemyAsyncRepositoryService
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastcrud import FastCRUD, JoinConfig
from sqlalchemy import make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import selectinload
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks import sqlmodels
from benchmarks.schemas import OrderOut, UserOut
from benchmarks.tables import Order, User
from howdah import Database, JsonView
from howdah.fastapi import add_error_handlers, json_response
from howdah.serving import serve
from shop.memory import collect_less_often, freeze_loaded_objects

RouteT = TypeVar("RouteT", bound=Callable[..., Any])


# The fastest known way without Howdah: PostgreSQL builds the JSON in one statement, and the route sends it unchanged.
BASELINE_SQL = """
SELECT json_build_object(
    'id', u.id, 'email', u.email, 'name', u.name, 'country', u.country, 'created_at', u.created_at,
    'updated_at', u.updated_at, 'version', u.version,
    'orders', (
        SELECT coalesce(json_agg(json_build_object(
            'id', o.id, 'status', o.status, 'total_cents', o.total_cents, 'created_at', o.created_at
        ) ORDER BY o.id), '[]')
        FROM orders o WHERE o.user_id = u.id
    )
)
FROM users u WHERE u.id = $1
"""


@dataclass(frozen=True, slots=True)
class Viewer:
    """The user who sends the request. Each request of the benchmark comes from another user."""

    user_id: UUID


class UserService(SQLAlchemyAsyncRepositoryService[User]):
    class Repository(SQLAlchemyAsyncRepository[User]):
        model_type = User

    repository_type = Repository


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


def create_app(url: str) -> ASGIApp:
    """An ASGI application that calls the FastAPI application of the contender in the path."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        engine = create_async_engine(url, pool_size=20, max_overflow=10, pool_pre_ping=True, pool_recycle=3600)
        driver_url = make_url(url).set(drivername="postgresql").render_as_string(False)
        view = JsonView(User, UserOut)
        own_view = JsonView(
            User,
            UserOut,
            where={
                User: lambda user, viewer: user.id == viewer.user_id,
                Order: lambda order, viewer: order.user_id == viewer.user_id,
            },
        )
        async with (
            asyncpg.create_pool(driver_url, min_size=20, max_size=20) as pool,
            Database(url) as database,
            view.open(database) as users,
            view.open(database, workers=20, max_batch_size=1) as unbatched_users,
            own_view.open(database) as own_users,
        ):
            yield {
                "sessions": async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False),
                "pool": pool,
                "users": users,
                "unbatched_users": unbatched_users,
                "own_users": own_users,
            }
        await engine.dispose()

    lifespan_app = FastAPI(lifespan=lifespan)
    apps: dict[str, FastAPI] = {}

    def get(contender: str, **options: Any) -> Callable[[RouteT], RouteT]:
        apps[contender] = app = FastAPI()
        add_error_handlers(app)
        return app.get(f"/{contender}/{{user_id}}", **options)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        app = lifespan_app if scope["type"] == "lifespan" else apps[scope["path"].split("/")[1]]
        await app(scope, receive, send)

    crud: Any = FastCRUD(User)
    orders_join = JoinConfig(
        model=Order,
        join_on=User.id == Order.user_id,
        join_prefix="orders_",
        schema_to_select=OrderOut,
        relationship_type="one-to-many",
        sort_columns="id",
    )

    with_orders: Any = selectinload(sqlmodels.User.orders)  # type: ignore[arg-type]

    @get("empty")
    async def empty(user_id: str) -> Response:
        return Response(b"{}", media_type="application/json")

    @get("reference", response_model=UserOut)
    async def reference(user_id: UUID, db: Db) -> User:
        result = await db.execute(select(User).options(selectinload(User.orders)).where(User.id == user_id))
        user = result.scalar_one_or_none()
        if not user:
            raise HTTPException(404, "User not found")
        return user

    @get("sqlmodel", response_model=UserOut)
    async def with_sqlmodel(user_id: UUID, db: Db) -> Any:
        user = await db.get(sqlmodels.User, user_id, options=[with_orders])
        if not user:
            raise HTTPException(404, "User not found")
        return user

    @get("fastcrud", response_model=UserOut)
    async def with_fastcrud(user_id: UUID, db: Db) -> Any:
        user = await crud.get_joined(db, joins_config=[orders_join], nest_joins=True, id=user_id)
        if user is None:
            raise HTTPException(404, "User not found")
        return user

    @get("advanced-alchemy", response_model=UserOut)
    async def with_advanced_alchemy(user_id: UUID, db: Db) -> Any:
        service = UserService(session=db, load=[User.orders])
        return service.to_schema(await service.get(user_id), schema_type=UserOut)

    @get("asyncpg")
    async def with_asyncpg(user_id: UUID, request: Request) -> Response:
        body = await request.state.pool.fetchval(BASELINE_SQL, user_id)
        if body is None:
            raise HTTPException(404, "User not found")
        return Response(body, media_type="application/json")

    @get("view-unbatched", response_model=UserOut)
    async def unbatched_view(user_id: UUID, request: Request) -> Response:
        return json_response(await request.state.unbatched_users.get(user_id), request)

    @get("view", response_model=UserOut)
    async def view(user_id: UUID, request: Request) -> Response:
        return json_response(await request.state.users.get(user_id), request)

    @get("view-viewer", response_model=UserOut)
    async def view_with_viewer(user_id: UUID, request: Request) -> Response:
        return json_response(await request.state.own_users.get(user_id, viewer=Viewer(user_id)), request)

    return dispatch


def from_environment() -> ASGIApp:
    """The application for the commands of uvicorn and granian. The URL of the database is in `BENCHMARK_URL`."""
    app = create_app(os.environ["BENCHMARK_URL"])
    freeze_loaded_objects()
    collect_less_often()
    return app


def main() -> None:
    url, port, *options = sys.argv[1:]
    app = create_app(url)
    freeze_loaded_objects()
    collect_less_often()
    if options == ["--limited"]:
        serve(app, port=int(port), stop_pause=0)
    else:
        uvicorn.run(app, port=int(port), log_config=None, access_log=False)


if __name__ == "__main__":
    main()
