"""Principals of the tests, and an `authenticate` for tokens without a signature: `Bearer <role>-<name> <scopes>`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from howdah import Database
from howdah.fastapi import NotAuthenticated, configure_app

CUSTOMER, OPERATOR = "customer", "operator"


@dataclass(frozen=True)
class Caller:
    role: str
    name: str
    scopes: frozenset[str] | None = None

    @property
    def key(self) -> str:
        return f"user:{self.name}"


def sign_in(role: str, name: str = "a", *scopes: str) -> dict[str, str]:
    """The header of a token. With scopes, it is that of an API key."""
    return {"Authorization": " ".join([f"Bearer {role}-{name}", *scopes])}


WRONG = sign_in("wrong")


async def authenticate(connection: HTTPConnection) -> Caller | None:
    header = connection.headers.get("authorization")
    if header is None:
        return None
    scheme, token, *scopes = header.split(" ")
    role, _, name = token.partition("-")
    if scheme != "Bearer" or role not in (CUSTOMER, OPERATOR):
        raise NotAuthenticated("the access token is invalid")
    return Caller(role, name, frozenset(scopes) if scopes else None)


def unreachable_database() -> Database:
    """A database for applications that never use it."""
    return Database("postgresql+asyncpg://nobody@127.0.0.1:1/none", connect_timeout=0.5)


def create_protected_app(
    add_routes: Callable[[FastAPI], Any] = lambda app: None,
    *,
    authenticate: Any = authenticate,
    database: Callable[[], Database] = unreachable_database,
    **options: Any,
) -> FastAPI:
    """An application with `authenticate`. `add_routes` is called after `configure_app`."""
    app = FastAPI()
    configure_app(app, database=database, authenticate=authenticate, **options)
    add_routes(app)
    return app
