"""Accounts that a property test draws."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from hypothesis import strategies as st
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from shop.ledger.models import Account, AccountState
from shop.ledger.requests import TransferRequest
from shop.ledger.service import post_transfers

ACCOUNT = st.fixed_dictionaries(
    {
        "currency": st.sampled_from(["GBP"] * 5 + ["EUR"]),
        "allows_negative": st.booleans(),
        "overdraft_limit": st.sampled_from([0, 20]),
        "balance_limit": st.sampled_from([None, None, 60]),
        "state": st.sampled_from([AccountState.OPEN] * 5 + [AccountState.FROZEN]),
    }
)


async def open_drawn(session: AsyncSession, drawn: list[dict[str, Any]], funded: set[int]) -> list[UUID]:
    """Open accounts with these columns, and return their ids. Those at the positions in `funded` get 25.

    They get it before they are frozen.
    """
    world = {"id": uuid4(), "name": "World", "allows_negative": True}
    ids = [uuid4() for _ in drawn]
    for currency in ("GBP", "EUR"):
        await session.execute(insert(Account).values(**world | {"id": uuid4(), "currency": currency}))
    worlds = {each.currency: each.id for each in (await session.scalars(select(Account))).all() if each.name == "World"}
    for id_, columns in zip(ids, drawn, strict=True):
        await session.execute(insert(Account).values(id=id_, name="Account", **columns | {"state": AccountState.OPEN}))
    await post_transfers(session, [TransferRequest(worlds[drawn[n]["currency"]], ids[n], 25) for n in funded])
    for id_, columns in zip(ids, drawn, strict=True):
        await session.execute(update(Account).where(Account.id == id_).values(state=columns["state"]))
    return ids
