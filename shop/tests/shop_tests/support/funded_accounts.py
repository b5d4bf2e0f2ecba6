"""Accounts with a balance, and a check of the whole ledger."""

from __future__ import annotations

from uuid import UUID

from howdah import Database
from shop.ledger.account_schemas import AccountIn
from shop.ledger.accounts import open_account
from shop.ledger.check import check_ledger
from shop.ledger.service import transfer_funds


async def open_accounts(database: Database, *balances: int) -> list[UUID]:
    """Open one account per balance. The money comes from another new account."""
    async with database.begin() as session:
        world = (await open_account(session, AccountIn(name="World", currency="GBP", allows_negative=True))).id
        accounts = [(await open_account(session, AccountIn(name="Account", currency="GBP"))).id for _ in balances]
        for account, balance in zip(accounts, balances, strict=True):
            if balance:
                await transfer_funds(session, world, account, balance)
    return accounts


async def assert_ledger_is_correct(stored: Database) -> None:
    async with stored.session() as session:
        assert (await check_ledger(session)).faults == {}
