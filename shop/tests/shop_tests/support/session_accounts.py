"""Accounts and transfers in the transaction of a session."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import uuid7
from shop.ledger.models import Account, Entry
from shop.ledger.requests import TransferRecord, TransferRequest, TransferResult
from shop.ledger.service import post_transfers


async def account(session: AsyncSession, balance: int = 0, *, currency: str = "GBP", covered: bool = True) -> Account:
    """Open an account with this balance, which comes from another new account."""
    opened = Account(id=uuid7(), name="Account", currency=currency, allows_negative=not covered)
    session.add(opened)
    await session.flush()
    if balance:
        world = await account(session, currency=currency, covered=False)
        (await post_transfers(session, [TransferRequest(world.id, opened.id, balance)]))[0].unwrap()
    return opened


async def entries_of(session: AsyncSession, account_id: UUID) -> list[tuple[int, int, int]]:
    entries = select(Entry).where(Entry.account_id == account_id).order_by(Entry.entry_number)
    return [(entry.entry_number, entry.amount, entry.balance_after) for entry in await session.scalars(entries)]


async def post(session: AsyncSession, *requests: TransferRequest) -> list[TransferResult]:
    return await post_transfers(session, requests)


async def post_one(session: AsyncSession, request: TransferRequest) -> TransferRecord:
    """The transfer. Raises `TransferRefused`."""
    return (await post_transfers(session, [request]))[0].unwrap()
