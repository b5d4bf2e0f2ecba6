"""The transfers of four concurrent processes are posted again, one by one, to the model."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import aliased

from howdah import Database, uuid7
from shop.ledger.check import check_ledger
from shop.ledger.models import Account, Entry, Transfer
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.ledger_clients import run_client_processes
from shop_tests.support.ledger_model import PostedTransfer, find_differences, sort_by_entry_number

ACCOUNTS, FUNDS = 8, 1_000


async def read_transfers(database: Database) -> tuple[list[PostedTransfer], UUID]:
    """All transfers, and the account that may be negative, from which the money comes."""
    debit, credit = aliased(Entry), aliased(Entry)
    statement = (
        select(
            Transfer.id,
            *(Transfer.from_account_id, Transfer.from_entry_number, debit.balance_after),
            *(Transfer.to_account_id, Transfer.to_entry_number, credit.balance_after),
            *(Transfer.amount, Transfer.reverses_id),
        )
        .join(
            debit, (debit.account_id == Transfer.from_account_id) & (debit.entry_number == Transfer.from_entry_number)
        )
        .join(credit, (credit.account_id == Transfer.to_account_id) & (credit.entry_number == Transfer.to_entry_number))
    )
    async with database.session(isolation_level="REPEATABLE READ") as session:
        world = await session.scalar(select(Account.id).where(Account.allows_negative))
        assert world is not None
        assert (await check_ledger(session)).faults == {}
        return [PostedTransfer(*row) for row in await session.execute(statement)], world


async def test_opposed_batches_of_four_processes_do_not_deadlock_and_equal_the_model(
    stored: Database,
) -> None:
    """Half of the batches are posted in their own transactions, which would raise a deadlock error."""
    accounts = await open_accounts(stored, *[FUNDS] * ACCOUNTS)
    outcomes = await run_client_processes(stored, accounts, processes=4, clients=4, transfers=8_000, mode="in batches")
    answers = Counter(each.state_or_refusal for each in outcomes)
    assert {"posted", "pending", "voided", "insufficient_funds", "linked_transfer_failed"} <= set(answers)

    transfers, world = await read_transfers(stored)
    assert sorted(str(each.id) for each in transfers if each.from_account_id != world) == sorted(
        str(each.transfer_id) for each in outcomes if each.state_or_refusal == "posted"
    )
    assert find_differences(sort_by_entry_number(transfers), world) == []


async def test_the_model_finds_transfers_in_another_order_or_with_other_balances(stored: Database) -> None:
    """The control test."""
    accounts = await open_accounts(stored, *[FUNDS] * ACCOUNTS)
    await run_client_processes(stored, accounts, processes=1, clients=2, transfers=200, mode="in batches")
    transfers, world = await read_transfers(stored)
    ordered = sort_by_entry_number(transfers)
    assert find_differences(ordered, world) == []

    first, later = next(
        (place, place + 1)
        for place, (one, other) in enumerate(pairwise(ordered))
        if one.from_account_id == other.from_account_id != world and one.amount != other.amount
    )
    changed = list(ordered)
    changed[first], changed[later] = ordered[later], ordered[first]
    assert find_differences(changed, world) != []

    changed = list(ordered)
    changed[first] = ordered[first]._replace(from_balance=ordered[later].from_balance)
    changed[later] = ordered[later]._replace(from_balance=ordered[first].from_balance)
    assert len(find_differences(changed, world)) == 2

    reversal = next(each for each in ordered if each.reverses_id is not None)
    without = [each for each in ordered if each.id != reversal.reverses_id]
    assert f"transfer {reversal.id}: reversal_mismatch" in find_differences(without, world)


def test_transfers_that_form_a_cycle_can_not_be_sorted() -> None:
    a, b, c = (uuid7() for _ in range(3))

    def transfer(source: UUID, from_entry_number: int, target: UUID, to_entry_number: int) -> PostedTransfer:
        return PostedTransfer(uuid7(), source, from_entry_number, 0, target, to_entry_number, 0, 1, None)

    cycle = [transfer(a, 1, b, 2), transfer(b, 1, c, 2), transfer(c, 1, a, 2)]
    with pytest.raises(ValueError, match="3 of 3 transfers"):
        sort_by_entry_number(cycle)
    ordered = [transfer(a, 1, b, 1), transfer(b, 2, c, 1), transfer(c, 2, a, 2)]
    assert sort_by_entry_number(reversed(ordered)) == ordered
