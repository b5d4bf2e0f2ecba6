"""The ledger against a model of it that fits on a page: whatever is asked for, both answer and hold the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from shop.accounts.models import Account, AccountState, Entry
from shop.accounts.service import check_books
from shop.transfers.service import MAX_AMOUNT, Refusal, TransferRequest, post_transfers

ACCOUNTS = 4
NOBODY = ACCOUNTS  # an account that doesn't exist


@dataclass(frozen=True)
class Step:
    """A request, by the places of the accounts and of the transfer that it reverses."""

    source: int
    target: int
    amount: int
    key: int | None
    reverses: int | None


@dataclass
class Model:
    balances: list[int] = field(default_factory=lambda: [0] * ACCOUNTS)
    entries: list[list[tuple[int, int]]] = field(default_factory=lambda: [[] for _ in range(ACCOUNTS)])
    made: list[tuple[int, int, int]] = field(default_factory=list)
    """Source, target, amount."""
    taken_back: dict[int, int] = field(default_factory=dict)
    answers: dict[int, tuple[Step, Refusal | None]] = field(default_factory=dict)

    def post(self, step: Step, accounts: Sequence[dict[str, Any]]) -> tuple[Refusal | None, bool]:
        """The refusal, and whether it is an earlier answer."""
        if step.key is not None and step.key in self.answers:
            first, refusal = self.answers[step.key]
            return (refusal, True) if first == step else (Refusal.KEY_REUSED, False)
        refusal = self._refused(step, accounts)
        if refusal is None:
            self._move(step)
        if step.key is not None:
            self.answers[step.key] = (step, refusal)
        return refusal, False

    def _refused(self, step: Step, accounts: Sequence[dict[str, Any]]) -> Refusal | None:
        left = None
        if step.reverses is not None:
            left = self.made[step.reverses][2] - self.taken_back.get(step.reverses, 0)
            if left == 0:
                return Refusal.ALREADY_REVERSED
        if not 1 <= step.amount <= MAX_AMOUNT:
            return Refusal.AMOUNT_OUT_OF_RANGE
        if step.source == step.target:
            return Refusal.SAME_ACCOUNT
        if NOBODY in (step.source, step.target):
            return Refusal.UNKNOWN_ACCOUNT
        source, target = accounts[step.source], accounts[step.target]
        if source["currency"] != target["currency"]:
            return Refusal.CURRENCY_MISMATCH
        if left is not None and step.amount > left:
            return Refusal.MORE_THAN_IS_LEFT
        for state, refusal in (("closed", Refusal.ACCOUNT_CLOSED), ("frozen", Refusal.ACCOUNT_FROZEN)):
            if state in (source["state"], target["state"]):
                return refusal
        if not source["allows_negative"] and self.balances[step.source] + source["overdraft_limit"] < step.amount:
            return Refusal.INSUFFICIENT_FUNDS
        limit = target["balance_limit"]
        if limit is not None and self.balances[step.target] + step.amount > limit:
            return Refusal.LIMIT_EXCEEDED
        return None

    def _move(self, step: Step) -> None:
        for place, change in ((step.source, -step.amount), (step.target, step.amount)):
            self.balances[place] += change
            self.entries[place].append((change, self.balances[place]))
        self.made.append((step.source, step.target, step.amount))
        if step.reverses is not None:
            self.taken_back[step.reverses] = self.taken_back.get(step.reverses, 0) + step.amount


def mostly(usual: Any, *, else_: Any) -> Any:
    """Five times in six."""
    return st.integers(0, 5).flatmap(lambda dice: usual if dice else else_)


ACCOUNT = st.fixed_dictionaries(
    {
        "currency": mostly(st.just("GBP"), else_=st.just("EUR")),
        "allows_negative": st.booleans(),
        "overdraft_limit": st.sampled_from([0, 20]),
        "balance_limit": st.sampled_from([None, None, 50]),
        "state": mostly(st.just(AccountState.OPEN), else_=st.sampled_from(AccountState)),
    }
)
PLACES = mostly(st.sampled_from(list(permutations(range(ACCOUNTS), 2))), else_=st.tuples(*[st.integers(0, NOBODY)] * 2))
STEP = st.builds(
    lambda places, amount, key: Step(*places, amount, key, None),
    PLACES,
    mostly(st.integers(1, 40), else_=st.sampled_from([0, -1, MAX_AMOUNT + 1])),
    st.none() | st.integers(0, 9),
)
# a batch, and of which transfers before it how much is taken back
BATCH = st.tuples(
    st.lists(STEP, min_size=2, max_size=10), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), max_size=4)
)
BATCHES = st.lists(BATCH, min_size=1, max_size=6)


@pytest.mark.timeout(600)
@settings(
    max_examples=200,
    phases=[Phase.generate, Phase.shrink],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(described=st.lists(ACCOUNT, min_size=ACCOUNTS, max_size=ACCOUNTS), batches=BATCHES)
async def test_it_answers_and_holds_what_the_model_does(
    session: AsyncSession, described: list[dict[str, Any]], batches: list[Any]
) -> None:
    savepoint = await session.begin_nested()
    try:
        accounts = [Account(id=uuid4(), name="Account", **values) for values in described]
        session.add_all(accounts)
        await session.flush()
        ids = [*(account.id for account in accounts), uuid4()]
        model, transfers, scope = Model(), list[UUID](), str(uuid4())
        for steps, reversals in batches:
            back = [
                Step(model.made[place][1], model.made[place][0], amount, None, place)
                for place, amount in reversals
                if place < len(model.made)
            ]
            asked = [*steps, *back]
            requests = [
                TransferRequest(
                    ids[step.source],
                    ids[step.target],
                    step.amount,
                    key=None if step.key is None else f"{step.key}",
                    scope=scope,
                    reverses=None if step.reverses is None else transfers[step.reverses],
                )
                for step in asked
            ]
            results = await post_transfers(session, requests)
            for step, result in zip(asked, results, strict=True):
                assert (result.refusal, result.replayed) == model.post(step, described)
                if result.transfer is not None and not result.replayed:
                    transfers.append(result.transfer.id)
        assert [account.balance for account in accounts] == model.balances
        for account, expected in zip(accounts, model.entries, strict=True):
            found = select(Entry.amount, Entry.balance_after).where(Entry.account_id == account.id)
            rows = await session.execute(found.order_by(Entry.version))
            assert [tuple(row) for row in rows] == expected
        assert (await check_books(session)).faults == {}
    finally:
        session.expunge_all()
        await savepoint.rollback()
