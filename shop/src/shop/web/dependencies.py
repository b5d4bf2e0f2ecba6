"""What routes take from the request. Who is asking will be found out here."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request

from howdah.fastapi import DbSession, ReadDbSession, get_db
from shop.orders.service import OrderViews
from shop.transfers.service import Ledger
from shop.users.service import UserViews

__all__ = ["CurrentLedger", "CurrentOrders", "CurrentUsers", "DbSession", "IfMatch", "ReadDbSession", "get_db"]


async def get_ledger(request: Request) -> Ledger:
    ledger: Ledger = request.state.ledger
    return ledger


async def get_users(request: Request) -> UserViews:
    users: UserViews = request.state.users
    return users


async def get_orders(request: Request) -> OrderViews:
    orders: OrderViews = request.state.orders
    return orders


# async though they wait for nothing: FastAPI would run them in another thread
CurrentLedger = Annotated[Ledger, Depends(get_ledger)]
CurrentUsers = Annotated[UserViews, Depends(get_users)]
CurrentOrders = Annotated[OrderViews, Depends(get_orders)]
IfMatch = Annotated[
    str | None, Header(alias="If-Match", description="The ETag that the change is based on", examples=['"1"'])
]
