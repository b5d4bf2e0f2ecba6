"""The routes that `get-user` compares: `GET /<contender>/<user id>` returns the user with their orders.

`python -m benchmarks.routes URL PORT` serves them like `shop serve`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import uvicorn
from fastapi import HTTPException, Request, Response
from fastcrud import FastCRUD, JoinConfig
from sqlalchemy.orm import selectinload
from starlette.types import ASGIApp

from benchmarks import sqlmodels
from benchmarks.schemas import OrderOut, UserOut
from benchmarks.tables import Order, User
from benchmarks.user_routes import Db, Routes, UserTables, add_peers, open_peers
from howdah import Database, JsonView
from howdah.fastapi import json_response
from howdah.serving import serve
from shop.memory import collect_less_often, freeze_loaded_objects

_JSON_STATEMENT: Final = """
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


def create_app(url: str) -> ASGIApp:
    """The routes of all contenders."""

    @asynccontextmanager
    async def open_state() -> AsyncIterator[dict[str, Any]]:
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
            open_peers(url) as peers,
            Database(url) as database,
            view.open(database) as users,
            view.open(database, workers=20, max_batch_size=1) as unbatched_users,
            own_view.open(database) as own_users,
        ):
            yield {**peers, "users": users, "unbatched_users": unbatched_users, "own_users": own_users}

    routes = Routes(open_state)
    add_peers(routes, UserTables(User, UserOut, _JSON_STATEMENT))
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

    @routes.route("empty", "/{user_id}")
    async def empty(user_id: str) -> Response:
        return Response(b"{}", media_type="application/json")

    @routes.route("sqlmodel", "/{user_id}", response_model=UserOut)
    async def with_sqlmodel(user_id: UUID, db: Db) -> Any:
        user = await db.get(sqlmodels.User, user_id, options=[with_orders])
        if not user:
            raise HTTPException(404, "User not found")
        return user

    @routes.route("fastcrud", "/{user_id}", response_model=UserOut)
    async def with_fastcrud(user_id: UUID, db: Db) -> Any:
        user = await crud.get_joined(db, joins_config=[orders_join], nest_joins=True, id=user_id)
        if user is None:
            raise HTTPException(404, "User not found")
        return user

    @routes.route("view-unbatched", "/{user_id}", response_model=UserOut)
    async def unbatched_view(user_id: UUID, request: Request) -> Response:
        return json_response(await request.state.unbatched_users.get(user_id), request)

    @routes.route("view-viewer", "/{user_id}", response_model=UserOut)
    async def view_with_viewer(user_id: UUID, request: Request) -> Response:
        return json_response(await request.state.own_users.get(user_id, viewer=Viewer(user_id)), request)

    return routes


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
