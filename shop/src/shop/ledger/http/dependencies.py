"""FastAPI dependencies of the ledger's routes, and of other routes that post transfers."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from howdah.fastapi import single_header
from shop.ledger.group_commit import Ledger
from shop.ledger.transfer_schemas import Key


# `async`, because FastAPI would call a plain function in a thread.
async def get_ledger(request: Request) -> Ledger:
    ledger: Ledger = request.state.ledger
    return ledger


CurrentLedger = Annotated[Ledger, Depends(get_ledger)]
IdempotencyKey = Annotated[str | None, single_header("Idempotency-Key", Key)]
RequiredIdempotencyKey = Annotated[str, single_header("Idempotency-Key", Key, required=True)]
"""The key is required for requests that move money, so that they can be sent again safely."""
