"""`post_basic.sql`: PostgreSQL decides as `PostingContext` does, also if several ledgers use the same accounts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import permutations
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import CheckViolation, Database
from shop.ledger import basic_batches, basic_posting
from shop.ledger.basic_posting import Declined, Posted, plan_basic_posting, post_basic
from shop.ledger.basic_refusals import find_refused
from shop.ledger.group_commit import Ledger
from shop.ledger.lock_waits import KeyInUse
from shop.ledger.models import Account
from shop.ledger.posting import Outcome, PostingContext
from shop.ledger.repository import TransferRepository
from shop.ledger.requests import (
    MAX_AMOUNT,
    Refusal,
    TransferRecord,
    TransferRequest,
    TransferResult,
    split_into_chains,
)
from shop.ledger.service import collect_account_ids, post_transfers
from shop_tests.support.drawn_accounts import ACCOUNT, open_drawn
from shop_tests.support.funded_accounts import assert_ledger_is_correct, open_accounts
from shop_tests.support.statement_log import log_statements
from shop_tests.support.trigger_bypass import expire
from shop_tests.support.waiting import until_waiting

NOW = datetime(2025, 1, 1, tzinfo=UTC)
REQUEST = st.builds(
    TransferRequest,
    st.integers(0, 4),  # the place of an account; the last one doesn't exist
    st.integers(0, 4),
    st.integers(1, 30) | st.sampled_from([0, MAX_AMOUNT, MAX_AMOUNT + 1]),
    currency=st.sampled_from([None, None, "GBP", "EUR"]),
    description=st.none() | st.just("rent"),
    metadata=st.none() | st.just({"b": "1", "a": "2"}),
    effective_at=st.none() | st.just(datetime(2024, 1, 1, tzinfo=UTC)),
    key=st.none() | st.integers(0, 9).map(str),
    scope=st.just(""),
    linked=st.booleans(),
    **dict.fromkeys(("reverses", "pending_seconds", "posts", "voids", "posted_by"), st.none()),
)


def without_ids(result: TransferResult) -> TransferRecord:
    """What both decisions have in common: ids are random, and each has its own time."""
    record = result.unwrap()
    effective_at = NOW if record.effective_at == record.created_at else record.effective_at
    return record._replace(id=UUID(int=0), group_id=None, created_at=NOW, effective_at=effective_at)


@pytest.mark.timeout(300)
@settings(
    max_examples=settings().max_examples // 4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    drawn=st.lists(ACCOUNT, min_size=4, max_size=4),
    funded=st.sets(st.integers(0, 3)),
    requests=st.lists(REQUEST, min_size=1, max_size=8),
)
async def test_postgresql_decides_as_python_does(
    session: AsyncSession, drawn: list[dict[str, Any]], funded: set[int], requests: list[TransferRequest]
) -> None:
    savepoint = await session.begin_nested()
    try:
        ids = [*await open_drawn(session, drawn, funded), uuid4()]
        places: list[Any] = requests
        batch = [
            each._replace(
                from_account_id=ids[each.from_account_id],
                to_account_id=ids[each.to_account_id],
                linked=each.linked and n < len(places) - 1 and (each.key is None) is (places[n + 1].key is None),
            )
            for n, each in enumerate(places)
        ]
        locked = await TransferRepository(session).lock_accounts(ids)
        context = PostingContext(accounts=locked.accounts, at=locked.at)
        expected = context.decide(batch)
        plan = plan_basic_posting(batch)
        outcome = None if plan is None else await post_basic(await session.connection(), plan)
        if any(each.refusal is not None or each.replayed for each in expected):
            assert outcome is None or isinstance(outcome, Declined)
            if isinstance(outcome, Declined):
                await check_refusals(session, list(split_into_chains(batch)), expected, outcome)
            return
        if sum(each.amount or 0 for each in batch) > MAX_AMOUNT and not isinstance(outcome, Posted):
            return  # sums of more than 2^62 are always decided under locks
        assert isinstance(outcome, Posted)
        posted = outcome.results
        assert list(map(without_ids, posted)) == list(map(without_ids, expected))
        stored = await TransferRepository(session).find_posted([each.unwrap().id for each in posted])
        assert [stored[each.unwrap().id] for each in posted] == [each.unwrap() for each in posted]
        session.expire_all()
        for id_, account in context.accounts.items():
            row = await session.get_one(Account, id_)
            assert (row.balance, row.entry_count) == (account.balance, account.entry_count)
        replays = await post_transfers(session, batch)
        assert [each.unwrap().id for each in replays if each.replayed] == [
            each.unwrap().id for each, request in zip(posted, batch, strict=True) if request.key is not None
        ]
    finally:
        session.expunge_all()
        await savepoint.rollback()


async def check_refusals(
    session: AsyncSession,
    items: Sequence[Sequence[TransferRequest]],
    expected: list[TransferResult],
    declined: Declined,
) -> None:
    """The refused items are those that the model refuses, and their refusals are stored and replayed."""
    assert declined.states is not None
    found = find_refused(items, declined.states, declined.refusing)
    by_item = iter(expected)
    ids = {id_ for item in items for id_ in collect_account_ids(item)}
    for n, item in enumerate(items):
        in_order = [next(by_item) for _ in item]
        locked = await TransferRepository(session).lock_accounts(ids)
        alone = PostingContext(accounts=locked.accounts, at=locked.at).decide(item)
        assert (n in found) == all(each.refusal is not None for each in (*in_order, *alone))
        assert n not in found or found[n].results == alone
    rest = [item for n, item in enumerate(items) if n not in found]
    plan = plan_basic_posting([request for item in rest for request in item])
    assert plan is not None
    refused = {key: outcome for each in found.values() for key, outcome in each.keys.items()}
    posted = await post_basic(await session.connection(), plan, refused=refused)
    if isinstance(posted, Posted):
        for n, each in found.items():
            for request, result, replay in zip(
                items[n], each.results, await post_transfers(session, items[n]), strict=True
            ):
                assert (replay.refusal, replay.replayed) == (result.refusal, request.key is not None)


async def test_an_account_of_another_customer_is_declined_without_a_lock(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    plan = plan_basic_posting([TransferRequest(a, b, 1, posted_by=uuid4())])
    assert plan is not None
    async with stored.begin() as session:
        await session.execute(select(Account.id).where(Account.id == a).with_for_update())
        async with stored.autocommit() as connection:
            declined = await post_basic(connection, plan)
    assert isinstance(declined, Declined)
    assert declined.states is not None
    assert declined.refusing == {a}
    assert set(declined.states.read([a, b])) == {b}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement waits for 10 s, because a busy machine may take long to end the other transaction."""
    monkeypatch.setattr(basic_posting, "LOCK_WAIT_MS", 10_000)


async def post_during_another_transaction(stored: Database) -> Posted | Declined:
    """Post the last 40 of an account, while another transaction that isn't committed has posted 60."""
    a, b = await open_accounts(stored, 100, 0)
    plan = plan_basic_posting([TransferRequest(a, b, 40)])
    assert plan is not None
    async with stored.autocommit() as connection:
        async with stored.begin() as session:
            await post_transfers(session, [TransferRequest(a, b, 60)])
            waiting = asyncio.create_task(post_basic(connection, plan))
            await until_waiting(stored, 1)
        return await waiting


@pytest.mark.usefixtures("patient")
async def test_the_statement_waits_for_the_accounts_and_reads_their_new_states(stored: Database) -> None:
    posted = await post_during_another_transaction(stored)
    assert isinstance(posted, Posted)
    transfer = posted.results[0].unwrap()
    assert (transfer.from_balance, transfer.from_entry_number) == (0, 3)


@pytest.mark.usefixtures("patient")
async def test_without_the_locks_the_statement_reads_old_states(
    stored: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control for the test above: the trigger rejects the entries, because their numbers are used."""
    without_locks = basic_posting.POST_BASIC.replace("FOR NO KEY UPDATE OF account", "")
    monkeypatch.setattr(basic_posting, "POST_BASIC", without_locks)
    with pytest.raises(CheckViolation, match="does not continue the entries"):
        await post_during_another_transaction(stored)


async def test_a_refusal_depends_on_no_transfer_that_is_posted_later(
    stored: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two statements of a batch, another transaction pays in. So the second transfer from `a` is allowed.
    As a control, the decision in the order of the batch has refused it."""
    a, b, poor = await open_accounts(stored, 10, 0, 0)
    requests = [
        TransferRequest(a, b, 10, key="first"),
        TransferRequest(a, b, 10, key="second"),
        TransferRequest(poor, b, 1, key="poor"),
    ]
    before: list[Refusal | None] = []

    async def pay_in_after_the_first(*args: Any, **options: Any) -> Posted | Declined:
        outcome = await post_basic(*args, **options)
        if not before:
            assert isinstance(outcome, Declined)
            assert outcome.states is not None
            context = PostingContext(accounts=outcome.states.read([a, b, poor]), at=outcome.states.at)
            before.extend(each.refusal for each in context.decide(requests))
            async with stored.begin() as session:
                world = (await open_accounts(stored, 50))[0]
                await post_transfers(session, [TransferRequest(world, id_, 10) for id_ in (a, poor)])
        return outcome

    monkeypatch.setattr(basic_batches, "post_basic", pay_in_after_the_first)
    async with Ledger(stored) as ledger:
        results = await asyncio.gather(*map(ledger.submit, requests))
        replays = await asyncio.gather(*map(ledger.submit, requests))
    assert before == [None, Refusal.INSUFFICIENT_FUNDS, Refusal.INSUFFICIENT_FUNDS]
    # The last one was refused when the states were read, before the money came.
    assert [each.refusal for each in results] == [None, None, Refusal.INSUFFICIENT_FUNDS]
    assert [(each.refusal, each.replayed) for each in replays] == [(each.refusal, True) for each in results]


async def test_a_refusal_is_stored_only_if_its_key_is_unused(stored: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two statements, another process posts the request after a deposit. So the result is its replay."""
    a, b = await open_accounts(stored, 0, 10)
    request = TransferRequest(a, b, 1, key="once")
    elsewhere: list[TransferResult] = []

    async def post_elsewhere(*args: Any, **options: Any) -> Posted | Declined:
        outcome = await post_basic(*args, **options)
        if not elsewhere:
            async with stored.begin() as session:
                elsewhere.extend(await post_transfers(session, [TransferRequest(b, a, 5), request]))
        return outcome

    monkeypatch.setattr(basic_batches, "post_basic", post_elsewhere)
    async with Ledger(stored) as ledger:
        result = await ledger.submit(request)
    assert result == elsewhere[1].as_replay()


async def write_refusals(stored: Database, keys: Sequence[str]) -> Posted | Declined:
    """Store refusals of these keys, in this order of the batch. No account is locked for that."""
    plan = plan_basic_posting([])
    assert plan is not None
    refusal = TransferResult(refusal=Refusal.INSUFFICIENT_FUNDS)
    async with stored.autocommit() as connection:
        return await post_basic(connection, plan, refused={("", key): Outcome(bytes(32), refusal) for key in keys})


@pytest.mark.usefixtures("patient")
async def test_statements_that_refuse_the_same_keys_do_not_deadlock(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with stored.begin() as session:
        await post_transfers(session, [TransferRequest(a, b, 1, key="n")])
        # Both wait. Without an order of the keys, each of them has already written one that the other needs.
        statements = [asyncio.create_task(write_refusals(stored, keys)) for keys in ("anz", "zna")]
        await until_waiting(stored, 2)
        await session.rollback()
    outcomes = await asyncio.gather(*statements, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Posted, KeyInUse}


async def test_a_customer_with_a_foreign_account_spoils_no_transfer_of_others(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    requests = [TransferRequest(a, b, 1), TransferRequest(b, a, 1, posted_by=uuid4()), TransferRequest(a, b, 2)]
    async with Ledger(stored) as ledger, log_statements(stored) as seen:
        results = await asyncio.gather(*map(ledger.submit, requests))
        assert seen.take() == ["post", "post"]
    assert [each.refusal for each in results] == [None, Refusal.UNKNOWN_ACCOUNT, None]


async def test_an_account_with_a_hold_is_decided_under_locks(stored: Database) -> None:
    """The hold may have expired."""
    a, b, c = await open_accounts(stored, 10, 0, 10)
    async with stored.begin() as session:
        [hold] = await post_transfers(session, [TransferRequest(a, b, 10, pending_seconds=60)])
    await expire(stored, hold.unwrap().id)
    async with Ledger(stored) as ledger:
        results = await asyncio.gather(*(ledger.submit(TransferRequest(id_, b, 10)) for id_ in (a, c)))
    assert [each.refusal for each in results] == [None, None]


async def post_with_two_ledgers(stored: Database, accounts: list[UUID]) -> list[list[TransferResult]]:
    """Two ledgers with their own connections post on the same accounts: transfers, refusals, holds, and equal keys."""
    pairs = list(permutations(accounts, 2))

    async def run(number: int) -> list[TransferResult]:
        dice = Random(number)
        async with Database(stored.engine.url) as database, Ledger(database) as ledger:
            requests = [
                TransferRequest(
                    *dice.choice(pairs),
                    dice.choice((1, 2, 3, 90)),
                    key=f"own-{number}-{n}",
                    pending_seconds=None if dice.random() < 0.9 else 60,
                )
                for n in range(150)
            ]
            shared = [TransferRequest(*pairs[0], 1, key=f"shared-{n}") for n in range(10)]
            results = await asyncio.gather(*map(ledger.submit, [*requests, *shared]))
            return list(results)

    return list(await asyncio.gather(run(1), run(2)))


async def test_two_ledgers_on_the_same_accounts_conserve_everything(stored: Database) -> None:
    accounts = await open_accounts(stored, *[150] * 5)
    one, other = await post_with_two_ledgers(stored, accounts)
    assert {each.refusal for each in (*one, *other)} == {None, Refusal.INSUFFICIENT_FUNDS}
    for mine, theirs in zip(one[-10:], other[-10:], strict=True):
        assert sorted((mine.replayed, theirs.replayed)) == [False, True]
        assert (mine.refusal, mine.transfer and mine.transfer.id) == (
            theirs.refusal,
            theirs.transfer and theirs.transfer.id,
        )
    async with stored.session() as session:
        assert sum((await session.scalars(select(Account.balance).where(Account.id.in_(accounts)))).all()) == 750
    await assert_ledger_is_correct(stored)


async def test_batches_are_larger_while_others_post_on_the_same_accounts(stored: Database) -> None:
    a, b = await open_accounts(stored, 1_000, 0)
    async with Ledger(stored) as ledger:

        async def largest_batch() -> int:
            before = ledger.status().batch_size_histogram
            await asyncio.gather(*(ledger.submit(TransferRequest(a, b, 1)) for _ in range(100)))
            found = ledger.status().batch_size_histogram
            return max(size for size, number in found.items() if number > before.get(size, 0))

        assert await largest_batch() < 100
        async with stored.begin() as session:
            await post_transfers(session, [TransferRequest(a, b, 1)])
        await ledger.submit(TransferRequest(a, b, 1))
        assert await largest_batch() >= 100
