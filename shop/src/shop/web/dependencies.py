"""What routes take from the request. Who is asking will be found out here."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request

from howdah.fastapi import DbSession, ReadDbSession, get_db
from shop.transfers.service import Ledger

__all__ = ["CurrentLedger", "DbSession", "IfMatch", "ReadDbSession", "get_db"]


def get_ledger(request: Request) -> Ledger:
    ledger: Ledger = request.state.ledger
    return ledger


CurrentLedger = Annotated[Ledger, Depends(get_ledger)]
IfMatch = Annotated[
    str | None, Header(alias="If-Match", description="The ETag that the change is based on", examples=['"1"'])
]
