"""What four processes have made at the same time, made again one by one on the model."""

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
from shop_tests.support.ledger_model import PostedTransfer, differences, in_version_order

ACCOUNTS, FUNDS = 8, 1_000


async def booked(database: Database) -> tuple[list[PostedTransfer], UUID]:
    """All transfers, and the account that the money entered by."""
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


async def test_opposed_batches_of_four_processes_do_not_deadlock_and_can_be_replayed_one_by_one(
    stored: Database,
) -> None:
    """A deadlock would be raised by half of the batches, which are posted in transactions of their own."""
    accounts = await open_accounts(stored, *[FUNDS] * ACCOUNTS)
    told = await run_client_processes(stored, accounts, processes=4, clients=4, transfers=8_000, how="in batches")
    answers = Counter(each.what for each in told)
    assert {"posted", "pending", "voided", "insufficient_funds", "linked_transfer_failed"} <= set(answers)

    transfers, world = await booked(stored)
    assert sorted(str(each.id) for each in transfers if each.from_account_id != world) == sorted(
        str(each.transfer_id) for each in told if each.what == "posted"
    )
    assert differences(in_version_order(transfers), world) == []


async def test_a_replay_finds_what_was_made_otherwise(stored: Database) -> None:
    """The control."""
    accounts = await open_accounts(stored, *[FUNDS] * ACCOUNTS)
    await run_client_processes(stored, accounts, processes=1, clients=2, transfers=200, how="in batches")
    transfers, world = await booked(stored)
    ordered = in_version_order(transfers)
    assert differences(ordered, world) == []

    first, later = next(
        (place, place + 1)
        for place, (one, other) in enumerate(pairwise(ordered))
        if one.from_account_id == other.from_account_id != world and one.amount != other.amount
    )
    changed = list(ordered)
    changed[first], changed[later] = ordered[later], ordered[first]
    assert differences(changed, world) != []

    changed = list(ordered)
    changed[first] = ordered[first]._replace(from_balance=ordered[later].from_balance)
    changed[later] = ordered[later]._replace(from_balance=ordered[first].from_balance)
    assert len(differences(changed, world)) == 2

    reversal = next(each for each in ordered if each.reverses_id is not None)
    without = [each for each in ordered if each.id != reversal.reverses_id]
    assert f"transfer {reversal.id}: reversal_mismatch" in differences(without, world)


def test_transfers_each_of_which_is_before_another_have_no_order() -> None:
    a, b, c = (uuid7() for _ in range(3))

    def transfer(source: UUID, from_entry_number: int, target: UUID, to_entry_number: int) -> PostedTransfer:
        return PostedTransfer(uuid7(), source, from_entry_number, 0, target, to_entry_number, 0, 1, None)

    cycle = [transfer(a, 1, b, 2), transfer(b, 1, c, 2), transfer(c, 1, a, 2)]
    with pytest.raises(ValueError, match="3 of 3 transfers"):
        in_version_order(cycle)
    ordered = [transfer(a, 1, b, 1), transfer(b, 2, c, 1), transfer(c, 2, a, 2)]
    assert in_version_order(reversed(ordered)) == ordered
