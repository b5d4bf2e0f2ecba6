"""A small ledger with a transfer of every kind, and the faults that `check_ledger` finds in it."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from shop.ledger.account_schemas import AccountIn
from shop.ledger.accounts import open_account
from shop.ledger.check import check_ledger
from shop.ledger.requests import TransferRequest
from shop.ledger.service import post_transfers
from shop_tests.support.reversals import reversal_request


async def create_ledger(session: AsyncSession) -> tuple[UUID, UUID, UUID, UUID]:
    """Create a correct ledger: two currencies, a reversal, a refusal, keys, and holds (pending, partly posted, voided).

    Returns `world` (may be negative), `rich` (has money), `poor` (its money was returned), and an account in another
    currency, which has the holds."""
    world, rich, poor = [
        (await open_account(session, AccountIn(name=name, currency="GBP", allows_negative=name == "world"))).id
        for name in ("world", "rich", "poor")
    ]
    euro_world, euros = [
        (await open_account(session, AccountIn(name=name, currency="EUR", allows_negative=name == "world"))).id
        for name in ("world", "euros")
    ]
    results = await post_transfers(
        session,
        [
            TransferRequest(world, rich, 1_000, key="a"),
            TransferRequest(rich, poor, 300),
            TransferRequest(poor, rich, 9_999, key="b"),
            TransferRequest(euro_world, euros, 50),
        ],
    )
    await post_transfers(session, [await reversal_request(session, results[1].unwrap().id)])
    pending = await post_transfers(
        session,
        [
            TransferRequest(euros, euro_world, amount, key=key, pending_seconds=60, description="held")
            for amount, key in ((10, "c"), (20, "d"), (5, None))
        ],
    )
    _, posted, voided = [each.unwrap().id for each in pending]
    settled = await post_transfers(
        session,
        [
            TransferRequest(euros, euro_world, 15, posts=posted),
            TransferRequest(euros, euro_world, None, voids=voided),
        ],
    )
    assert [each.refusal for each in settled] == [None, None]
    return world, rich, poor, euros


async def find_faults(session: AsyncSession) -> dict[str, list[str]]:
    return (await check_ledger(session)).faults
