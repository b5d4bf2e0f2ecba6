"""The chain of seals links committed changes, in order and without gaps."""

from __future__ import annotations

import asyncio
from random import Random
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop.ledger.check import check_ledger
from shop.ledger.group_commit import Ledger
from shop.ledger.requests import TransferRequest
from shop.ledger.seals import last_link, link_seals
from shop.ledger.service import post_transfers
from shop_tests.support.checked_ledger import find_faults
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.http_service import create_service, http_client
from shop_tests.support.waiting import until


async def test_seals_are_linked_in_the_order_of_commits(stored: Database) -> None:
    """The order in which the transactions begin doesn't matter, and transfers don't wait for the chain."""
    a, b, c = await open_accounts(stored, 100, 100, 100)
    await link_seals(stored)
    async with stored.begin() as slow, stored.begin() as linking:
        await post_transfers(slow, [TransferRequest(a, b, 1)])
        async with stored.begin() as quick:
            await post_transfers(quick, [TransferRequest(c, await other(quick, a, b, c), 1)])
        assert await linking.scalar(text("SELECT link_seals(1000)")) == 1
        async with stored.begin() as quick:  # while the links aren't committed
            await quick.execute(text("SET LOCAL lock_timeout = '1s'"))
            await post_transfers(quick, [TransferRequest(c, await other(quick, a, b, c), 1)])
    assert await link_seals(stored) == 2
    async with stored.session() as session:
        assert await find_faults(session) == {}
        assert await session.scalar(text("SELECT count(*) FROM seals WHERE position IS NULL")) == 0


async def other(session: AsyncSession, *ids: UUID) -> UUID:
    """The id of the remaining account."""
    found = (await session.scalars(text("SELECT id FROM accounts"))).all()
    [id_] = set(found) - set(ids)
    assert isinstance(id_, UUID)
    return id_


async def test_the_service_links_new_seals(stored: Database) -> None:
    async def is_linked() -> bool:
        async with stored.session() as session:
            return bool(await session.scalar(text("SELECT count(*) = count(position) FROM seals")))

    url = stored.engine.url.render_as_string(hide_password=False)
    async with http_client(create_service(url, maintenance=True)):
        await open_accounts(stored, 100)
        await until(is_linked)
    async with stored.session() as session:
        link = await last_link(session)
        assert link is not None
        assert (await check_ledger(session, since=link)).faults == {}


async def test_the_chain_has_no_gap_if_several_processes_write_and_link(stored: Database) -> None:
    accounts = await open_accounts(stored, *[1_000] * 6)
    ledger, dice, stop = Ledger(stored), Random(1), asyncio.Event()

    async def move_money() -> None:
        for _ in range(60):
            source, target = dice.sample(accounts, 2)
            (await ledger.submit(TransferRequest(source, target, 1, key=str(dice.random())))).unwrap()

    async def link() -> int:
        linked = 0
        while not stop.is_set():
            linked += await link_seals(stored)
        return linked

    linking = [asyncio.create_task(link()) for _ in range(3)]
    try:
        await asyncio.gather(*(move_money() for _ in range(6)))
    finally:
        stop.set()
        linked = await asyncio.gather(*linking)
    await link_seals(stored)
    async with stored.session() as session:
        assert await find_faults(session) == {}
        assert await session.scalar(text("SELECT max(position) = count(*) FROM seals"))
    assert sum(each > 0 for each in linked) > 1
