"""Create the application from all features. An import of this module creates nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI

from howdah import Database, JsonView
from howdah.fastapi import Job, LoadLimit, Resource, configure_app, describe_problems
from shop import migrations
from shop.audit.dependencies import audit_event_reader
from shop.audit.routes import router as audit_routes
from shop.audit.service import AUDIT_EVENT_VIEW
from shop.identity import problems as identity_problems
from shop.identity.account_routes import router as sign_in_account_routes
from shop.identity.api_keys.routes import router as api_key_routes
from shop.identity.api_keys.verification import DELETE_OLD_KEYS, WRITE_LAST_USED, api_key_verifier
from shop.identity.authenticating import build_authenticate
from shop.identity.context import open_identity
from shop.identity.deletion_routes import router as deletion_routes
from shop.identity.dependencies import identity
from shop.identity.mail import Mailer
from shop.identity.maintenance import build_jobs as build_identity_jobs
from shop.identity.oauth2_routes import router as oauth2_routes
from shop.identity.revocation import POLL_REVOCATIONS, revocations
from shop.identity.routes import router as sign_in_routes
from shop.identity.security_schemes import SECURITY_SCHEMES
from shop.identity.staff_routes import router as staff_routes
from shop.identity.tokens import TokenSigner
from shop.ledger.group_commit import Ledger
from shop.ledger.http import problems as ledger_problems
from shop.ledger.http.account_routes import router as account_routes
from shop.ledger.http.dependencies import ledger
from shop.ledger.http.transfer_routes import router as transfer_routes
from shop.ledger.maintenance import build_jobs
from shop.orders import problems as order_problems
from shop.orders.dependencies import order_reader, order_with_items_reader
from shop.orders.routes import router as order_routes
from shop.orders.service import ORDER_VIEW, ORDER_WITH_ITEMS_VIEW
from shop.postgres import open_database, open_staff_database, open_system_database
from shop.roles import SYSTEM_ROLE
from shop.settings import Settings
from shop.sign_in.routes import HAS_PUBLIC_DOCS
from shop.sign_in.routes import router as sign_in_pages
from shop.user_orders.dependencies import user_with_orders_reader
from shop.user_orders.routes import router as user_order_routes
from shop.user_orders.service import USER_WITH_ORDERS_VIEW
from shop.users.dependencies import user_reader
from shop.users.routes import router as user_routes
from shop.users.service import USER_VIEW
from shop.web.dependencies import STAFF_DATABASE, SYSTEM_DATABASE
from shop.web.rate_limits import build_rate_limits

_READERS: Final[Sequence[tuple[Resource[Any], JsonView[Any]]]] = (
    (user_reader, USER_VIEW),
    (order_reader, ORDER_VIEW),
    (order_with_items_reader, ORDER_WITH_ITEMS_VIEW),
    (user_with_orders_reader, USER_WITH_ORDERS_VIEW),
    (audit_event_reader, AUDIT_EVENT_VIEW),
)
_JOBS_OF_EACH_PROCESS: Final = (POLL_REVOCATIONS, WRITE_LAST_USED)

_DESCRIPTION = """
Users, orders, accounts and transfers. Amounts are integers in the currency's smallest unit; times are RFC 3339, in UTC.
Errors are [problem details](https://www.rfc-editor.org/rfc/rfc9457): branch on their `type`.
"""


def create_app(database_url: str, settings: Settings | None = None, *, mailer: Mailer | None = None) -> FastAPI:
    """Create the application for this database, whose schema must be current, or newer.

    The URL is that of a login which may take the roles of `shop.roles`. The connection pools are opened at startup, and
    closed at shutdown. `mailer` replaces that of the settings.
    """
    chosen = settings if settings is not None else Settings()
    tokens = TokenSigner(chosen.signing_keyring)
    app = FastAPI(title="Shop", version=version("shop"), description=_DESCRIPTION)
    configure_app(
        app,
        database=lambda: open_database(database_url, chosen),
        databases={
            STAFF_DATABASE: lambda: open_staff_database(database_url, chosen),
            SYSTEM_DATABASE: lambda: open_system_database(database_url, chosen),
        },
        authenticate=build_authenticate(tokens),
        resources=[
            *(reader.using(partial(view.open, submit_timeout=chosen.submit_timeout)) for reader, view in _READERS),
            ledger.using(partial(Ledger, submit_timeout=chosen.submit_timeout)),
            identity.using(partial(open_identity, settings=chosen, signer=tokens, mailer=mailer)),
            revocations,
            api_key_verifier,
        ],
        jobs=[*_JOBS_OF_EACH_PROCESS, *(_build_maintenance_jobs(chosen) if chosen.maintenance else ())],
        readiness_checks=[_find_schema_problem],
        allowed_hosts=chosen.allowed_hosts,
        internal_port=chosen.internal_port,
        rate_limits=build_rate_limits(chosen),
        trusted_proxies=chosen.trusted_proxies,
        cors_origins=chosen.cors_origins,
        docs_script="/sign-in/session.js",
        security_schemes=SECURITY_SCHEMES,
        max_body_bytes=chosen.max_body_bytes,
        max_body_seconds=chosen.max_body_seconds,
        load_limit=LoadLimit(
            target_seconds=chosen.request_target,
            max_in_progress=chosen.max_requests_in_progress,
            max_wait_seconds=chosen.max_request_wait,
        ),
    )
    # 400, because a request with two credentials is rejected on every route
    responses = describe_problems(HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE)
    for router in (
        *(user_routes, user_order_routes, order_routes, account_routes, transfer_routes, audit_routes),
        *(sign_in_routes, sign_in_account_routes, staff_routes, deletion_routes, oauth2_routes, api_key_routes),
    ):
        app.include_router(router, responses=responses)
    app.include_router(sign_in_pages)
    setattr(app.state, HAS_PUBLIC_DOCS, chosen.internal_port is None)
    for problems in (identity_problems, ledger_problems, order_problems):
        problems.add_problem_handlers(app)
    return app


def _build_maintenance_jobs(settings: Settings) -> list[Job]:
    """The jobs that need to run in only one process."""
    return [
        *build_jobs(ledger, key_retention_days=settings.key_retention_days),
        *build_identity_jobs(),
        DELETE_OLD_KEYS,
    ]


async def _find_schema_problem(database: Database) -> str | None:
    """`migrations.find_schema_problem` as a role that may read the revision."""
    return await migrations.find_schema_problem(database.with_settings(role=SYSTEM_ROLE))
