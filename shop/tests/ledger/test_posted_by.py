"""`posted_by`: the ledger decides for a customer, and triggers compare the customer with the owners of the accounts.

The tests with `unprotected` disable the decision. Then only the triggers protect the accounts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import AsyncMock, patch
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import CheckViolation, Database, DatabaseError
from shop.ledger.account_schemas import AccountIn
from shop.ledger.accounts import open_account
from shop.ledger.check import check_ledger
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account, PendingTransfer, Transfer
from shop.ledger.requests import Refusal, TransferRequest
from shop.ledger.service import post_transfers
from shop.users.models import User
from shop_tests.support.funded_accounts import assert_ledger_is_correct
from shop_tests.support.large_ledger import create_large_ledger
from shop_tests.support.statement_log import log_statements
from shop_tests.support.trigger_bypass import disable_triggers, enable_triggers
from shop_tests.support.waiting import until_waiting


@dataclass(frozen=True)
class Owners:
    """Two customers, and an account of each with 100. `world` belongs to nobody."""

    ada: UUID
    bob: UUID
    a: UUID
    b: UUID
    world: UUID


async def create_owners(session: AsyncSession) -> Owners:
    ada, bob = uuid4(), uuid4()
    await session.execute(
        insert(User), [{"id": id_, "email": f"{id_}@example.com", "name": "Ada"} for id_ in (ada, bob)]
    )
    world, a, b = [
        (await open_account(session, AccountIn(name="A", currency="GBP", user_id=id_, allows_negative=id_ is None))).id
        for id_ in (None, ada, bob)
    ]
    await post_transfers(session, [TransferRequest(world, a, 100), TransferRequest(world, b, 100)])
    return Owners(ada=ada, bob=bob, a=a, b=b, world=world)


@pytest.fixture
async def owners(stored: Database) -> Owners:
    async with stored.begin() as session:
        return await create_owners(session)


@pytest.fixture
def unprotected() -> Iterator[None]:
    """The decision treats every account as the customer's own."""
    with ExitStack() as stack:
        for module in ("posting", "ownership"):
            stack.enter_context(patch(f"shop.ledger.{module}.owns", lambda _customer, _account: True))
        stack.enter_context(patch("shop.ledger.service._find_foreign_only", AsyncMock(return_value=set())))
        # `post_basic.sql` returns no foreign accounts, so these requests would be refused without locks
        stack.enter_context(patch("shop.ledger.basic_batches.find_refused", lambda *_: {}))
        yield


async def balances(database: Database, owners: Owners) -> tuple[int, int]:
    async with database.session() as session:
        rows = (await session.execute(select(Account.id, Account.balance))).all()
    found = {row.id: row.balance for row in rows}
    return found[owners.a], found[owners.b]


async def test_the_customer_is_stored_with_each_transfer(stored: Database, owners: Owners) -> None:
    a, b, ada, bob = owners.a, owners.b, owners.ada, owners.bob
    async with Ledger(stored) as ledger:
        await ledger.submit(TransferRequest(a, b, 1, posted_by=ada))
        await ledger.submit(TransferRequest(a, b, 2))
        held = [
            (await ledger.submit(TransferRequest(a, b, amount, pending_seconds=60, posted_by=ada))).unwrap().id
            for amount in (3, 4, 5)
        ]
        await ledger.submit(TransferRequest(a, b, None, posts=held[0], posted_by=bob))
        await ledger.submit(TransferRequest(a, b, None, posts=held[1]))
        await ledger.submit(TransferRequest(a, b, None, voids=held[2], posted_by=bob))
        await ledger.submit(TransferRequest(b, a, None, reverses=held[0], posted_by=bob))
    async with stored.session() as session:
        posted = select(Transfer.amount, Transfer.posted_by).where(Transfer.from_account_id != owners.world)
        assert [tuple(row) for row in await session.execute(posted.order_by(Transfer.created_at))] == [
            (1, ada),
            (2, None),
            (3, bob),
            (4, None),
            (3, bob),
        ]
        holds = select(PendingTransfer.posted_by, PendingTransfer.settled_by).order_by(PendingTransfer.amount)
        assert [tuple(row) for row in await session.execute(holds)] == [(ada, bob), (ada, None), (ada, bob)]
    await assert_ledger_is_correct(stored)


async def test_the_decision_refuses_foreign_money(stored: Database, owners: Owners) -> None:
    """The control of the tests with `unprotected`, and for linked chains."""
    a, b, ada, bob = owners.a, owners.b, owners.ada, owners.bob
    async with Ledger(stored) as ledger:
        held = (await ledger.submit(TransferRequest(a, b, 10, pending_seconds=60))).unwrap().id
        posted = (await ledger.submit(TransferRequest(a, b, 10))).unwrap().id
        stranger, results = uuid4(), []
        for customer in (bob, ada, stranger):
            requests = [
                TransferRequest(a, b, 1, posted_by=customer),
                TransferRequest(a, b, 1, pending_seconds=60, posted_by=customer),
                TransferRequest(owners.world, b, 1, posted_by=customer),
                TransferRequest(a, b, 1, linked=True),
                TransferRequest(a, b, 1, posted_by=customer),
                TransferRequest(b, a, 1, reverses=posted, posted_by=customer),
                TransferRequest(a, b, 1, posts=held, posted_by=customer),
                TransferRequest(a, b, None, voids=held, posted_by=customer),
            ]
            results.append([result.refusal for result in await ledger.submit_many(requests)])
    unknown, failed, payee = Refusal.UNKNOWN_ACCOUNT, Refusal.LINKED_TRANSFER_FAILED, Refusal.NOT_PAYEE
    settled = [Refusal.ALREADY_POSTED]
    assert results[0] == [unknown, unknown, unknown, failed, unknown, None, None, *settled]
    assert results[1] == [None, None, unknown, None, None, payee, payee, payee]
    foreign = [Refusal.REVERSAL_MISMATCH, *[Refusal.UNKNOWN_PENDING] * 2]
    assert results[2] == [unknown, unknown, unknown, failed, unknown, *foreign]


@pytest.mark.usefixtures("unprotected")
async def test_the_database_rejects_foreign_money_and_the_others_of_the_batch_are_posted(
    stored: Database, owners: Owners
) -> None:
    a, b, ada, bob = owners.a, owners.b, owners.ada, owners.bob
    async with Ledger(stored) as ledger:
        held = [
            (await ledger.submit(TransferRequest(a, b, 1, pending_seconds=60, posted_by=ada))).unwrap().id
            for _ in range(2)
        ]
        posted = (await ledger.submit(TransferRequest(a, b, 1, posted_by=ada))).unwrap().id
        foreign = [
            TransferRequest(a, b, 50, posted_by=bob, key="k"),
            TransferRequest(a, b, 50, pending_seconds=60, posted_by=bob),
            TransferRequest(a, b, None, posts=held[0], posted_by=uuid4()),
            TransferRequest(a, b, None, posts=held[0], posted_by=ada),
            TransferRequest(a, b, None, voids=held[1], posted_by=ada),
            TransferRequest(b, a, None, reverses=posted, posted_by=ada),
        ]
        for request in foreign:
            with pytest.raises(CheckViolation):
                await ledger.submit(request)
        own = [
            TransferRequest(a, b, 1, posted_by=ada),
            TransferRequest(b, a, 1, posted_by=bob),
            TransferRequest(a, b, 1),
        ]
        answers = await asyncio.gather(
            *(ledger.submit(request) for request in [*own, *foreign, *own]), return_exceptions=True
        )
        assert max(ledger.status().batch_size_histogram) > 1  # own and foreign requests shared a batch
    is_rejected = [isinstance(answer, CheckViolation) for answer in answers]
    assert is_rejected == [*[False] * 3, *[True] * len(foreign), *[False] * 3]
    assert [answer.refusal for answer in answers if not isinstance(answer, BaseException)] == [None] * 6
    assert await balances(stored, owners) == (97, 103)
    await assert_ledger_is_correct(stored)


@pytest.mark.parametrize("name", ["posted_by", "settled_by"])
async def test_the_triggers_reject_wrong_customers(session: AsyncSession, name: str) -> None:
    """By SQL, also in a statement with correct rows."""
    owners = await create_owners(session)
    values = {"id": UUID(int=1), "a": owners.a, "b": owners.b, "ada": owners.ada, "bob": owners.bob}
    new_transfers = """
        INSERT INTO transfers (id, from_account_id, from_entry_number, to_account_id, to_entry_number, amount, currency,
            created_at, posted_by)
        VALUES (:id, :a, 2, :b, 2, 1, 'GBP', clock_timestamp(), :ada),
            ('00000000-0000-0000-0000-000000000002', :a, 3, :b, 3, 1, 'GBP', clock_timestamp(), {})
        """
    new_hold = """
        INSERT INTO pending_transfers (id, from_account_id, to_account_id, amount, currency, state, created_at,
            expires_at, posted_by, settled_at, settled_by)
        VALUES (:id, :a, :b, 1, 'GBP', {}, now(), now() + interval '1 day', {}, {}, {})
        """
    settle = "UPDATE pending_transfers SET state = 'posted', settled_at = now(), settled_by = {}"
    pending = new_hold.format("'pending'", ":ada", "NULL", "NULL")
    rejected = {
        "posted_by": [
            [new_transfers.format(":bob")],
            [new_transfers.format(":id")],
            [new_hold.format("'pending'", ":bob", "NULL", "NULL")],
        ],
        "settled_by": [
            [new_hold.format("'posted'", ":ada", "now()", ":ada")],
            [pending, settle.format(":ada")],
            [pending, settle.format(":id")],
        ],
    }[name]
    correct = {
        "posted_by": [[new_transfers.format("NULL")], [pending]],
        "settled_by": [[pending, settle.format(":bob")], [pending, settle.format("NULL")]],
    }[name]
    found = [await find_violation(session, statements, values) for statements in [*rejected, *correct]]
    assert [each is not None and f"_{name}_" in each for each in found[: len(rejected)]] == [True] * len(rejected)
    assert found[len(rejected) :] == [None] * len(correct)


async def find_violation(session: AsyncSession, statements: list[str], values: dict[str, Any]) -> str | None:
    """The constraint that the statements violate. They are rolled back."""
    savepoint = await session.begin_nested()
    try:
        for statement in statements:
            await session.execute(text(statement), values)
    except CheckViolation as error:
        return error.constraint
    finally:
        await savepoint.rollback()
    return None


@pytest.mark.parametrize(
    ("posted_by", "amount", "settled_by", "is_posted"),
    [("bob", 5, "bob", True), ("bob", 6, "bob", False), ("bob", 5, None, False), ("other", 5, "bob", False)],
    ids=["the payee", "more than the hold", "settled by nobody", "another customer"],
)
async def test_a_posted_hold_has_the_customer_who_settled_it(
    session: AsyncSession, *, posted_by: str, amount: int, settled_by: str | None, is_posted: bool
) -> None:
    owners = await create_owners(session)
    customers = {"bob": owners.bob, "other": uuid4(), None: None}
    [held] = await post_transfers(session, [TransferRequest(owners.a, owners.b, 5, pending_seconds=60)])
    values = {"id": held.unwrap().id, "a": owners.a, "b": owners.b, "amount": amount}
    await session.execute(text("UPDATE accounts SET held = 0 WHERE id = :a"), values)
    await session.execute(
        text("UPDATE pending_transfers SET state = 'posted', settled_at = now(), settled_by = :by"),
        {"by": customers[settled_by]},
    )
    new_transfer = """
        INSERT INTO transfers (id, from_account_id, from_entry_number, to_account_id, to_entry_number, amount, currency,
            created_at, posted_by)
        VALUES (:id, :a, 2, :b, 2, :amount, 'GBP', clock_timestamp(), :by)
        """
    violation = await find_violation(session, [new_transfer], values | {"by": customers[posted_by]})
    assert violation == (None if is_posted else "transfer_posted_by_owner")


async def test_the_owner_of_an_account_never_changes(session: AsyncSession) -> None:
    owners = await create_owners(session)
    for owner in (None, owners.bob):
        with pytest.raises(DatabaseError, match="owner"):
            async with session.begin_nested():
                await session.execute(
                    text("UPDATE accounts SET user_id = :owner WHERE id = :id"), {"owner": owner, "id": owners.a}
                )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            "UPDATE transfers SET posted_by = :bob WHERE from_account_id = :a AND amount = 1",
            "transfers were posted by a customer who doesn't own the account",
        ),
        (
            "UPDATE transfers SET posted_by = :ada WHERE amount = 2",
            "posted transfers and their holds have another customer",
        ),
        (
            "UPDATE pending_transfers SET posted_by = :bob",
            "pending transfers were created or settled by a customer who doesn't own the account",
        ),
        (
            "UPDATE pending_transfers SET settled_by = :ada",
            "pending transfers were created or settled by a customer who doesn't own the account",
        ),
        ("UPDATE transfers SET posted_by = NULL WHERE amount = 1", "transfers differ from their seal"),
        ("UPDATE accounts SET user_id = :bob WHERE id = :a", "accounts differ from their last seal"),
    ],
)
async def test_the_check_finds_wrong_customers(session: AsyncSession, change: str, fault: str) -> None:
    owners = await create_owners(session)
    held = TransferRequest(owners.a, owners.b, 2, pending_seconds=60, posted_by=owners.ada)
    _, pending = await post_transfers(session, [TransferRequest(owners.a, owners.b, 1, posted_by=owners.ada), held])
    await post_transfers(
        session, [TransferRequest(owners.a, owners.b, None, posts=pending.unwrap().id, posted_by=owners.bob)]
    )
    assert (await check_ledger(session)).faults == {}
    await disable_triggers(session)
    await session.execute(text(change), {"ada": owners.ada, "bob": owners.bob, "a": owners.a} if ":" in change else {})
    assert fault in (await check_ledger(session)).faults


async def test_a_foreign_account_takes_the_statements_of_an_unknown_one(stored: Database, owners: Owners) -> None:
    async with Ledger(stored) as ledger, log_statements(stored) as seen:
        found = []
        for source in (owners.b, uuid4()):
            for seconds in (None, 60):
                request = TransferRequest(
                    source, owners.a, 1, key=str(uuid4()), posted_by=owners.ada, pending_seconds=seconds
                )
                assert (await ledger.submit(request)).refusal is Refusal.UNKNOWN_ACCOUNT
                found.append(seen.take())
        assert found[:2] == found[2:]
        assert found[0] == ["post", "post"]


async def test_a_transfer_from_a_foreign_account_does_not_wait_for_its_lock(stored: Database, owners: Owners) -> None:
    async with Ledger(stored) as ledger:
        async with stored.begin() as session:
            await session.execute(text("SELECT FROM accounts WHERE id = :id FOR UPDATE"), {"id": owners.b})
            for seconds in (None, 60):
                foreign = TransferRequest(owners.b, owners.a, 1, posted_by=owners.ada, pending_seconds=seconds)
                assert (await ledger.submit(foreign)).refusal is Refusal.UNKNOWN_ACCOUNT
            own = asyncio.create_task(ledger.submit(TransferRequest(owners.b, owners.a, 1, posted_by=owners.bob)))
            await until_waiting(stored, 1)
            assert not own.done()
        assert (await own).refusal is None


async def test_a_new_account_is_found_after_it_was_refused_as_unknown(stored: Database, owners: Owners) -> None:
    account_id = uuid4()
    async with Ledger(stored) as ledger:
        request = TransferRequest(owners.a, account_id, 1, posted_by=owners.ada)
        assert (await ledger.submit(request)).refusal is Refusal.UNKNOWN_ACCOUNT
        async with stored.begin() as session:
            await open_account(session, AccountIn(name="New", currency="GBP", user_id=owners.bob), id_=account_id)
        assert (await ledger.submit(request)).refusal is None


async def test_the_customers_of_a_large_batch_are_compared_by_index(session: AsyncSession) -> None:
    """The trigger reads only the accounts of the batch, in a database with few statistics, too."""
    await create_large_ledger(session)
    await enable_triggers(session)
    owners = await create_owners(session)
    requests = [TransferRequest(owners.a, owners.b, 1, posted_by=owners.ada)] * 50
    counting = text("SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_xact_user_tables WHERE relname = ANY (:names)")
    names: dict[str, Any] = {"names": ["accounts", "pending_transfers"]}
    before = await session.scalar(counting, names)
    results = await post_transfers(session, requests)
    assert [result.refusal for result in results] == [None] * 50
    assert await session.scalar(counting, names) == before
