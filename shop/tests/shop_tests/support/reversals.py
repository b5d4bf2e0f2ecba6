"""The request that reverses a transfer, as the routes build it."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from shop.ledger.requests import TransferRequest
from shop.ledger.service import find_named_transfers


async def reversal_request(
    session: AsyncSession, transfer_id: UUID, *, amount: int | None = None, effective_at: datetime | None = None
) -> TransferRequest:
    """Reverse `amount`, or all that isn't reversed yet."""
    transfers_by_id = await find_named_transfers(session, [transfer_id])
    return transfers_by_id[transfer_id].reversal(amount, effective_at=effective_at)
