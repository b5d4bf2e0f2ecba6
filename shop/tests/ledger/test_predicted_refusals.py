"""Predicted refusals: PostgreSQL verifies them, so they are right even if the process knows old states."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from copy import copy
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from howdah import ConnectionLost, Database
from shop.ledger import account_cache, basic_batches, basic_posting
from shop.ledger.account_cache import AccountCache
from shop.ledger.basic_batches import UNDECIDED, Answer, BasicBatches, Item, Undecided
from shop.ledger.basic_posting import Declined, Posted, post_basic
from shop.ledger.models import Account, AccountState
from shop.ledger.posting import PostingContext
from shop.ledger.repository import TransferRepository, read_accounts
from shop.ledger.requests import MAX_AMOUNT, Refusal, TransferRequest, TransferResult, split_into_chains
from shop.ledger.service import collect_account_ids, find_replay, post_transfers
from shop.ledger.snapshots import PostingAccount
from shop_tests.support.drawn_accounts import ACCOUNT, open_drawn
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.statement_log import log_statements
from shop_tests.support.trigger_bypass import expire

REQUEST = st.builds(
    TransferRequest,
    st.integers(0, 3),  # the position of an account
    st.integers(1, 3),  # how many positions further the other account is
    st.integers(1, 30) | st.sampled_from([MAX_AMOUNT]),
    currency=st.sampled_from([None, None, None, "GBP"]),
    key=st.sampled_from([None, "new", "new", "new", "new", "new", "used"]),
    scope=st.just(""),
    linked=st.sampled_from([False] * 5 + [True]),
    **dict.fromkeys(
        ("description", "metadata", "effective_at", "reverses", "pending_seconds", "posts", "voids", "posted_by"),
        st.none(),
    ),
)
# What another process does to an account before a batch.
CHANGE = st.sampled_from(
    [
        {},
        {"balance": 20},
        {"balance": -20},
        {"state": AccountState.FROZEN},
        {"state": AccountState.OPEN},
        {"overdraft_limit": 40},
        {"balance_limit": None},
        {"allows_negative": True},
    ]
)


def create_batches(database: Database) -> BasicBatches:
    @asynccontextmanager
    async def locking() -> AsyncIterator[bool]:
        yield False

    async def recover(_items: Sequence[Item], lost: ConnectionLost) -> Sequence[Answer]:
        raise lost

    return BasicBatches(database, locking=locking, recover=recover)


async def create_predicting(database: Database, poor: UUID, other: UUID) -> BasicBatches:
    """Batches that predict refusals, because two batches had one."""
    batches = create_batches(database)
    for _ in range(2):
        await refuse(batches, TransferRequest(poor, other, 1_000), Refusal.INSUFFICIENT_FUNDS)
    return batches


async def post_one(batches: BasicBatches, request: TransferRequest) -> TransferResult:
    [answer] = await batches.post([[request]])
    assert not isinstance(answer, Undecided | Exception)
    return answer[0]


async def refuse(batches: BasicBatches, request: TransferRequest, refusal: Refusal) -> None:
    assert (await post_one(batches, request)).refusal is refusal


async def read_states(database: Database, ids: Sequence[UUID]) -> dict[UUID, PostingAccount]:
    async with database.autocommit() as connection:
        return await read_accounts(connection, ids)


async def change_account(database: Database, world: UUID, id_: UUID, change: dict[str, Any]) -> None:
    """Change an account as another process does, unless a limit forbids that."""
    async with database.begin() as session:
        if "balance" in change:
            pair = (world, id_) if change["balance"] > 0 else (id_, world)
            await post_transfers(session, [TransferRequest(*pair, abs(change["balance"]))])
        elif change:
            await session.execute(update(Account).where(Account.id == id_).values(**change))


@pytest.mark.timeout(300)
@settings(
    max_examples=settings().max_examples // 10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    drawn=st.lists(ACCOUNT.map(lambda drawn: drawn | {"currency": "GBP"}), min_size=4, max_size=4),
    funded=st.sets(st.integers(0, 3)),
    rounds=st.lists(
        st.tuples(st.integers(0, 3), CHANGE, st.lists(REQUEST, min_size=1, max_size=4)), min_size=4, max_size=6
    ),
)
async def test_a_refusal_is_right_when_the_statement_begins(
    stored: Database,
    drawn: list[dict[str, Any]],
    funded: set[int],
    rounds: list[tuple[int, dict[str, Any], list[TransferRequest]]],
) -> None:
    async with stored.begin() as session:
        accounts = await open_drawn(session, drawn, funded)
    world, poor, other = await open_accounts(stored, 10_000, 0, 0)
    batches = await create_predicting(stored, poor, other)
    used_keys = [f"{uuid4()} used"]
    for place, change, drawn_requests in rounds:
        await change_account(stored, world, accounts[place], change)
        requests = name_accounts(drawn_requests, accounts, used_keys)
        items = list(split_into_chains(requests))
        before = await read_states(stored, accounts)
        answers = await batches.post(items)
        await check_answers(stored, items, answers, before)
        used_keys += [request.key for request in requests if request.key is not None][:1]


def name_accounts(drawn: Sequence[Any], ids: list[UUID], used_keys: list[str]) -> list[TransferRequest]:
    """The drawn requests with accounts, keys, and valid links."""
    keys: dict[str | None, Callable[[], str | None]] = {
        "new": lambda: str(uuid4()),
        "used": lambda: used_keys[-1],
        None: lambda: None,
    }
    return [
        each._replace(
            from_account_id=ids[each.from_account_id],
            to_account_id=ids[(each.from_account_id + each.to_account_id) % len(ids)],
            linked=each.linked and n < len(drawn) - 1 and (each.key is None) is (drawn[n + 1].key is None),
            key=keys[each.key](),
        )
        for n, each in enumerate(drawn)
    ]


async def check_answers(
    database: Database,
    items: Sequence[Item],
    answers: Sequence[Answer | Undecided],
    before: dict[UUID, PostingAccount],
) -> None:
    """Each refusal is that of the item alone on the states before the batch. The balances have changed by the posted
    transfers, and the keys have the answers."""
    balances = {id_: account.balance for id_, account in before.items()}
    states = await read_states(database, list(before))
    async with database.session() as session:
        for item, answer in zip(items, answers, strict=True):
            assert not isinstance(answer, Exception)
            if answer is UNDECIDED:
                continue
            assert not isinstance(answer, Undecided)
            if answer[0].refusal is not None:
                ids = collect_account_ids(item)
                accounts = {id_: copy(before[id_]) for id_ in ids if id_ in before}
                assert answer == PostingContext(accounts, AccountCache.at).decide(item)
            keys = [(request.scope, request.key) for request in item if request.key is not None]
            stored = await TransferRepository(session).find_answers(keys)
            for request, result in zip(item, answer, strict=True):
                if result.transfer is not None:
                    balances[request.from_account_id] -= result.transfer.amount
                    balances[request.to_account_id] += result.transfer.amount
                if request.key is not None:
                    found = stored[(request.scope, request.key)]
                    assert (found.refusal, found.transfer_id) == (
                        result.refusal,
                        result.transfer and result.transfer.id,
                    )
    assert {id_: account.balance for id_, account in states.items()} == balances


async def test_a_batch_with_frequent_refusals_is_one_statement(stored: Database) -> None:
    a, b, poor = await open_accounts(stored, 100, 0, 3)
    batches = await create_predicting(stored, poor, b)
    async with log_statements(stored) as seen:
        for expected in (["read", "post"], ["post"]):  # accounts are read once
            answers = await batches.post(
                [
                    [TransferRequest(a, b, 1)],
                    [TransferRequest(poor, b, 4, key=str(uuid4()))],
                    [TransferRequest(b, a, 1)],
                ]
            )
            refusals = [answer[0].refusal for answer in answers if isinstance(answer, list)]
            assert refusals == [None, Refusal.INSUFFICIENT_FUNDS, None]
            assert seen.take() == expected


async def test_without_frequent_refusals_nothing_is_read(stored: Database) -> None:
    a, b, poor = await open_accounts(stored, 100, 0, 0)
    batches = create_batches(stored)
    await refuse(batches, TransferRequest(poor, b, 1), Refusal.INSUFFICIENT_FUNDS)
    async with log_statements(stored) as seen:
        for _ in range(35):
            await post_one(batches, TransferRequest(a, b, 1))
        await refuse(batches, TransferRequest(poor, b, 1), Refusal.INSUFFICIENT_FUNDS)
        await post_one(batches, TransferRequest(a, b, 1))
        assert "read" not in seen.take()


async def post_after_a_deposit(stored: Database) -> TransferResult:
    """Another process pays in after this one has read the account. The request has no key."""
    a, poor = await open_accounts(stored, 100, 0)
    batches = await create_predicting(stored, poor, a)
    await refuse(batches, TransferRequest(poor, a, 5), Refusal.INSUFFICIENT_FUNDS)
    async with stored.begin() as session:
        await post_transfers(session, [TransferRequest(a, poor, 5)])
    return await post_one(batches, TransferRequest(poor, a, 5))


async def test_a_wrong_prediction_refuses_nothing(stored: Database) -> None:
    assert (await post_after_a_deposit(stored)).unwrap().from_balance == 0


async def test_control_without_the_verification_a_wrong_prediction_refuses(
    stored: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = "count(*) = cardinality($"
    assert basic_posting.POST_BASIC.count(verified) == 1
    monkeypatch.setattr(basic_posting, "POST_BASIC", basic_posting.POST_BASIC.replace(verified, "true OR " + verified))
    assert (await post_after_a_deposit(stored)).refusal is Refusal.INSUFFICIENT_FUNDS


@pytest.mark.parametrize(
    ("before", "refusal", "after"),
    [
        ({"state": AccountState.FROZEN}, Refusal.ACCOUNT_FROZEN, {"state": AccountState.OPEN}),
        ({"balance_limit": 104}, Refusal.LIMIT_EXCEEDED, {"balance_limit": 105}),
    ],
)
async def test_a_change_of_the_credited_account_is_noticed(
    stored: Database, before: dict[str, Any], refusal: Refusal, after: dict[str, Any]
) -> None:
    a, b, poor = await open_accounts(stored, 100, 100, 0)
    batches = await create_predicting(stored, poor, a)
    await change_account(stored, poor, b, before)
    for _ in range(2):
        await refuse(batches, TransferRequest(a, b, 5), refusal)
    await change_account(stored, poor, b, after)
    assert (await post_one(batches, TransferRequest(a, b, 5))).unwrap().to_balance == 105


async def test_transfers_of_the_accounts_leave_a_prediction_right(
    stored: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a change of a balance that also changes the refusal makes the prediction wrong."""
    a, b, poor = await open_accounts(stored, 100, 0, 3)
    batches = await create_predicting(stored, poor, b)
    await refuse(batches, TransferRequest(poor, b, 5), Refusal.INSUFFICIENT_FUNDS)
    outcomes: list[Posted | Declined] = []

    async def record(*args: Any, **options: Any) -> Posted | Declined:
        outcomes.append(await post_basic(*args, **options))
        return outcomes[-1]

    monkeypatch.setattr(basic_batches, "post_basic", record)
    async with stored.begin() as session:
        await post_transfers(session, [TransferRequest(a, b, 50), TransferRequest(a, poor, 1)])
    await refuse(batches, TransferRequest(poor, b, 5), Refusal.INSUFFICIENT_FUNDS)
    assert [type(each) for each in outcomes] == [Posted]


async def test_a_foreign_account_is_read_like_one_that_does_not_exist(stored: Database) -> None:
    a, b, poor = await open_accounts(stored, 100, 0, 0)
    batches = await create_predicting(stored, poor, b)
    async with log_statements(stored) as seen:
        for debited in (a, uuid4()) * 2:
            await refuse(batches, TransferRequest(debited, b, 1, posted_by=uuid4()), Refusal.UNKNOWN_ACCOUNT)
            assert seen.take() == ["read", "post"]


async def test_an_expired_hold_causes_no_predicted_refusal(stored: Database) -> None:
    a, b, poor = await open_accounts(stored, 10, 0, 0)
    async with stored.begin() as session:
        [hold] = await post_transfers(session, [TransferRequest(a, b, 10, pending_seconds=60)])
    batches = await create_predicting(stored, poor, b)
    assert await batches.post([[TransferRequest(a, b, 10)]]) == [UNDECIDED]
    await expire(stored, hold.unwrap().id)
    assert await batches.post([[TransferRequest(a, b, 10)]]) == [UNDECIDED]


@pytest.mark.parametrize("has_list", [False, True])
async def test_requests_with_the_same_key_are_not_predicted(stored: Database, has_list: bool) -> None:
    """Otherwise both are answered as refused, and only the answer of one of them is stored."""
    a, poor = await open_accounts(stored, 100, 0)
    batches = await create_predicting(stored, poor, a)
    await refuse(batches, TransferRequest(poor, a, 1), Refusal.INSUFFICIENT_FUNDS)
    first, second = (TransferRequest(poor, a, amount, key="same") for amount in (1, 2))
    items: list[Item] = [[first], [second, second._replace(key="other")] if has_list else [second]]
    assert await batches.post(items) == [UNDECIDED, UNDECIDED]
    async with stored.session() as session:
        assert [await find_replay(session, request) for request in (first, second)] == [None, None]


async def test_the_number_of_kept_accounts_is_limited(stored: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account_cache, "_MAX_ACCOUNTS", 3)
    ids = await open_accounts(stored, *[10] * 5)
    poor, other = await open_accounts(stored, 0, 0)
    batches = await create_predicting(stored, poor, other)
    requests = [TransferRequest(id_, other, 20) for id_ in ids]
    for item in (requests, requests[:1], requests[2:]):
        [answer] = await batches.post([item])
        assert isinstance(answer, list)
        assert {result.refusal for result in answer} == {Refusal.INSUFFICIENT_FUNDS}
        assert sum(batches._account_cache.find(id_) is not None for id_ in (*ids, poor, other)) <= 3
