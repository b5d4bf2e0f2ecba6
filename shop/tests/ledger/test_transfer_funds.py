"""`transfer_funds`: one transfer in its own transaction, or in one that has begun."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import InvalidRequestError

from howdah import Database
from shop.ledger.check import check_ledger
from shop.ledger.models import Account, Transfer
from shop.ledger.requests import TransferRefused
from shop.ledger.service import transfer_funds
from shop_tests.support import reference
from shop_tests.support.session_accounts import account


async def test_transfer_funds_commits_in_a_new_session(stored: Database) -> None:
    async with stored.begin() as session:
        a, b = (await account(session, 100)).id, (await account(session)).id
    async with stored.session() as session:
        moved = await transfer_funds(session, a, b, 30)
        assert not session.in_transaction()
    async with stored.session() as session:
        assert (await session.get_one(Account, b)).balance == 30
        assert (await session.get_one(Transfer, moved.id)).amount == 30


async def test_transfer_funds_joins_a_transaction_that_has_begun(stored: Database) -> None:
    async with stored.begin() as session:
        a, b = (await account(session, 100)).id, (await account(session)).id
    async with stored.session() as session:
        assert (await session.get_one(Account, a)).balance == 100  # begins the transaction
        await transfer_funds(session, a, b, 30)
        assert session.in_transaction()
        await session.rollback()
    async with stored.session() as session:
        assert (await session.get_one(Account, a)).balance == 100
        await transfer_funds(session, a, b, 30)
        await session.commit()
    async with stored.session() as session:
        assert (await session.get_one(Account, a)).balance == 70
        with pytest.raises(InvalidRequestError, match="already begun"):  # the control
            await reference.transfer_funds(session, a, b, 30)


async def test_a_refused_transfer_leaves_the_rest_of_the_transaction_intact(stored: Database) -> None:
    async with stored.begin() as session:
        a, b = (await account(session, 100)).id, (await account(session)).id
    async with stored.begin() as session:
        (await session.get_one(Account, a)).name = "Renamed"
        await transfer_funds(session, a, b, 30)
        with pytest.raises(TransferRefused):
            await transfer_funds(session, a, b, 71)
        await transfer_funds(session, a, b, 70)
    async with stored.session() as session:
        found = await session.get_one(Account, a)
        assert (found.name, found.balance, found.entry_count) == ("Renamed", 0, 3)
        assert (await check_ledger(session)).faults == {}


@pytest.mark.parametrize("amount", [-10, 0, -(2**70)])
async def test_only_a_positive_amount_is_transferred(stored: Database, amount: int) -> None:
    async with stored.begin() as session:
        a, b = (await account(session, 100)).id, (await account(session, 100)).id
    async with stored.session() as session:
        with pytest.raises(TransferRefused, match="amount"):
            await transfer_funds(session, a, b, amount)
    if amount == -10:
        async with stored.session() as session:  # the control: the receiving account loses money
            await reference.transfer_funds(session, a, b, amount)
            assert (await session.get_one(Account, b)).balance == 90


async def test_money_is_not_transferred_from_an_account_to_itself(stored: Database) -> None:
    async with stored.begin() as session:
        a = (await account(session, 100)).id
    async with stored.session() as session:
        with pytest.raises(TransferRefused, match="same"):
            await transfer_funds(session, a, a, 10)
    async with stored.session() as session:  # the control: the reference accepts it
        await reference.transfer_funds(session, a, a, 10)


async def test_a_transfer_is_decided_on_the_locked_row_and_not_on_an_earlier_read(stored: Database) -> None:
    async with stored.begin() as session:
        a, b = (await account(session, 100)).id, (await account(session)).id

    async with stored.session() as session:
        account_in_session = await session.get_one(Account, a)
        async with stored.session() as other:
            await transfer_funds(other, a, b, 90)
        assert account_in_session.balance == 100
        with pytest.raises(TransferRefused, match="available balance"):
            await transfer_funds(session, a, b, 50)
        await transfer_funds(session, a, b, 10)
        assert account_in_session.balance == 0
        await session.commit()


async def test_the_reference_decides_on_the_earlier_read(stored: Database) -> None:
    """The control for the test above: the reference locks the row, but doesn't read it again."""
    async with stored.begin() as session:
        a, b = (await account(session, 100)).id, (await account(session, 1)).id

    async with stored.session() as session:
        account_in_session = await session.get_one(Account, a)
        async with stored.session() as other:
            await reference.transfer_funds(other, a, b, 90)
        await reference.move(session, a, b, 50)  # the current balance is 10
        await session.commit()
        assert account_in_session.balance == 50

    async with stored.session() as session:
        total = (await session.get_one(Account, a)).balance + (await session.get_one(Account, b)).balance
        assert total != 101
