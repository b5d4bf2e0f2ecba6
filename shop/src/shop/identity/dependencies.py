"""FastAPI dependencies of the routes of sign-in."""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of local names as texts.

from contextlib import AbstractAsyncContextManager
from typing import Annotated, Final

from fastapi import Depends
from starlette.requests import HTTPConnection

from howdah import Database
from howdah.fastapi import NotAllowed, Resource
from shop.identity.clients import Client
from shop.identity.context import Identity
from shop.identity.principals import Principal
from shop.web.dependencies import SYSTEM_DATABASE, CurrentPrincipal


def _require_settings(_: Database) -> AbstractAsyncContextManager[Identity]:
    raise RuntimeError("the application must open the identity with its settings: identity.using(...)")


identity: Final = Resource("identity", _require_settings, database=SYSTEM_DATABASE)

CurrentIdentity = Annotated[Identity, Depends(identity)]


async def get_client(connection: HTTPConnection) -> Client:
    """The client of the request. Behind a trusted proxy, the server has replaced its address."""
    address = connection.client.host if connection.client else None
    return Client(address, connection.headers.get("user-agent"))


CurrentClient = Annotated[Client, Depends(get_client)]


async def get_session_principal(principal: CurrentPrincipal) -> Principal:
    """The principal of an access token. An API key, even one without scopes, must not change how its user signs in."""
    if principal.session_id is None:
        raise NotAllowed("this needs an access token: an API key may not do it")
    return principal


SessionPrincipal = Annotated[Principal, Depends(get_session_principal)]
