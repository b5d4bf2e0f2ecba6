"""Create the application from all features. An import of this module creates nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import TypedDict

from fastapi import FastAPI, Request

from howdah import CoalescerStatus, Database
from howdah.fastapi import add_error_handlers, describe_problems
from shop import migrations
from shop.ledger.group_commit import Ledger
from shop.ledger.http import problems as ledger_problems
from shop.ledger.http.account_routes import router as account_routes
from shop.ledger.http.transfer_routes import router as transfer_routes
from shop.ledger.maintenance import run_maintenance
from shop.ledger.schema import find_schema_problem
from shop.orders import problems as order_problems
from shop.orders.routes import router as order_routes
from shop.orders.service import OrderViews, open_order_views
from shop.postgres import open_database
from shop.settings import Settings
from shop.user_orders.routes import router as user_order_routes
from shop.user_orders.service import UserOrderViews, open_user_order_views
from shop.users.routes import router as user_routes
from shop.users.service import UserViews, open_user_views
from shop.web.health import health_router
from shop.web.metrics import metrics_router
from shop.web.observability import Observability

_DESCRIPTION = """
Users, orders, accounts and transfers. Amounts are integers in the currency's smallest unit; times are RFC 3339, in UTC.
Errors are [problem details](https://www.rfc-editor.org/rfc/rfc9457): branch on their `type`.
"""


class State(TypedDict):
    """The attributes of `request.state`."""

    database: Database
    ledger: Ledger
    users: UserViews
    orders: OrderViews
    user_orders: UserOrderViews


def create_app(database_url: str, settings: Settings | None = None) -> FastAPI:
    """Create the application for this database, whose schema must be current.

    The connection pool is opened at startup, and closed at shutdown.
    """
    chosen = settings if settings is not None else Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        """Open the database, the views and the ledger. They are closed in reverse order when the application stops."""
        async with (
            open_database(database_url, chosen) as database,
            open_user_views(database) as users,
            open_order_views(database) as orders,
            open_user_order_views(database) as user_orders,
            Ledger(database) as ledger,
            run_maintenance(database, ledger, key_retention_days=chosen.key_retention_days),
        ):
            yield {
                "database": database,
                "ledger": ledger,
                "users": users,
                "orders": orders,
                "user_orders": user_orders,
            }

    app = FastAPI(title="Shop", version=version("shop"), description=_DESCRIPTION, lifespan=lifespan)
    for router in (user_routes, user_order_routes, order_routes, account_routes, transfer_routes):
        app.include_router(router, responses=describe_problems(HTTPStatus.SERVICE_UNAVAILABLE))
    app.include_router(health_router([migrations.find_revision_problem, find_schema_problem]))
    app.include_router(metrics_router(_get_queues))
    add_error_handlers(app)
    for problems in (ledger_problems, order_problems):
        problems.add_problem_handlers(app)
    app.add_middleware(Observability)
    return app


def _get_queues(request: Request) -> dict[str, CoalescerStatus]:
    """The status of each coalescer. The names are the values of the label `queue` in `/metrics`."""
    state = request.state
    return {
        "user": state.user_orders.with_orders.status(),
        "order": state.orders.with_items.status(),
        "transfer": state.ledger.status(),
    }
