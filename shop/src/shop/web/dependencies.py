"""What routes take from the request. Who is asking will be found out here."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import StringConstraints

from howdah.fastapi import DbSession, ReadDbSession, get_db
from shop.ledger.group_commit import Ledger
from shop.orders.service import OrderViews
from shop.users.service import UserViews
from shop.web.errors import RepeatedHeader

__all__ = [
    "Caller",
    "CurrentLedger",
    "CurrentOrders",
    "CurrentUsers",
    "DbSession",
    "IfMatch",
    "ReadDbSession",
    "get_db",
]


ClientId = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[\x21-\x7e]+$")]


async def get_ledger(request: Request) -> Ledger:
    ledger: Ledger = request.state.ledger
    return ledger


async def get_caller(request: Request, x_client_id: Annotated[ClientId | None, Header()] = None) -> str:
    for name in ("X-Client-Id", "Idempotency-Key"):
        if len(request.headers.getlist(name)) > 1:  # one of a proxy and one of a client, say
            raise RepeatedHeader(name)
    return x_client_id or ""


async def get_users(request: Request) -> UserViews:
    users: UserViews = request.state.users
    return users


async def get_orders(request: Request) -> OrderViews:
    orders: OrderViews = request.state.orders
    return orders


Caller = Annotated[str, Depends(get_caller)]
"""Whose idempotency keys these are. Whoever stands in front of the service and knows who asks says so by
`X-Client-Id`, and lets no client say it; without it all are one."""

# async though they wait for nothing: FastAPI would run them in another thread
CurrentLedger = Annotated[Ledger, Depends(get_ledger)]
CurrentUsers = Annotated[UserViews, Depends(get_users)]
CurrentOrders = Annotated[OrderViews, Depends(get_orders)]
IfMatch = Annotated[
    str | None, Header(alias="If-Match", description="The ETag that the change is based on", examples=['"1"'])
]
