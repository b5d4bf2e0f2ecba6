"""The ledger is compared with a small model: both return the same answers and have the same balances."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop.ledger.models import AccountState
from shop.ledger.requests import MAX_AMOUNT
from shop_tests.support.ledger_comparison import DrawnStep, LedgerComparison
from shop_tests.support.ledger_model import Step

ACCOUNTS, MOST_ACCOUNTS = 4, 6


def mostly(usual: Any, *, else_: Any) -> Any:
    """The usual strategy in five of six cases, the other one otherwise."""
    return st.integers(0, 5).flatmap(lambda dice: usual if dice else else_)


ACCOUNT = st.fixed_dictionaries(
    {
        "currency": mostly(st.just("GBP"), else_=st.just("EUR")),
        "allows_negative": st.booleans(),
        "overdraft_limit": st.sampled_from([0, 20]),
        "balance_limit": st.sampled_from([None, None, 50]),
        "state": mostly(st.just(AccountState.OPEN), else_=st.sampled_from(AccountState)),
        "owner": st.sampled_from([None, 0, 0, 1]),
    }
)
PLACES = mostly(
    st.sampled_from(list(permutations(range(ACCOUNTS), 2))), else_=st.tuples(*[st.integers(0, MOST_ACCOUNTS)] * 2)
)
SET_AMOUNT = mostly(st.integers(1, 40), else_=st.sampled_from([0, -1, MAX_AMOUNT, MAX_AMOUNT + 1]))
AMOUNT_OR_ALL = mostly(st.none() | st.integers(1, 40), else_=st.sampled_from([0, -1, MAX_AMOUNT, MAX_AMOUNT + 1]))
KINDS = ("transfer", "hold", "post", "void", "reverse")


# Each strategy is built once. Built inside `flatmap`, a new one would be validated for each value.
STEPS = {
    kind: st.builds(
        DrawnStep,
        kind=st.just(kind),
        places=PLACES,
        amount=SET_AMOUNT if kind in ("transfer", "hold") else AMOUNT_OR_ALL,
        excess=st.none() | st.sampled_from([-1, 0, 1]),
        selector=st.integers(0, 299),
        days=st.sampled_from([1, 2]),
        key=st.none() | st.integers(0, 19),
        customer=st.sampled_from([None, None, 0, 1]),
    )
    for kind in KINDS
}


def drawn_steps(*kinds: str) -> st.SearchStrategy[DrawnStep]:
    return st.sampled_from(kinds).flatmap(STEPS.__getitem__)


# A single request, or a linked chain. The number, if any, chooses the keys of the chain.
CHAIN = mostly(
    st.tuples(st.lists(drawn_steps("transfer", *KINDS), min_size=1, max_size=1), st.none()),
    else_=st.tuples(st.lists(drawn_steps("transfer", *KINDS), min_size=2, max_size=4), st.none() | st.integers(0, 9)),
)
# The requests of each call, and whether time advances before it.
BATCHES = st.lists(
    st.tuples(st.lists(CHAIN, min_size=2, max_size=10), mostly(st.just(False), else_=st.just(True))),
    min_size=1,
    max_size=6,
)


def steps_of(comparison: LedgerComparison, chain: tuple[list[DrawnStep], int | None]) -> list[Step]:
    drawn_chain, first_key = chain
    steps = [
        replace(comparison.step(drawn), linked=place < len(drawn_chain))
        for place, drawn in enumerate(drawn_chain, start=1)
    ]
    if first_key is None:
        return steps
    return [replace(step, key=100 + 10 * first_key + place) for place, step in enumerate(steps)]


@pytest.mark.timeout(600)
@settings(
    max_examples=settings().max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn_accounts=st.lists(ACCOUNT, min_size=ACCOUNTS, max_size=ACCOUNTS), batches=BATCHES)
async def test_the_ledger_and_the_model_agree(
    session: AsyncSession, drawn_accounts: list[dict[str, Any]], batches: list[Any]
) -> None:
    savepoint = await session.begin_nested()
    try:
        comparison = LedgerComparison(session)
        for terms in drawn_accounts:
            await comparison.open(terms)
        for batch, is_time_advanced in batches:
            if is_time_advanced:
                await comparison.advance_time()
            await comparison.post([step for chain in batch for step in steps_of(comparison, chain)])
        await comparison.compare()
        await comparison.check()
    finally:
        session.expunge_all()
        await savepoint.rollback()


async def compare_two_accounts(session: AsyncSession) -> LedgerComparison:
    """Open two accounts in the ledger and the model. The first may be negative."""
    comparison = LedgerComparison(session)
    await comparison.open({"allows_negative": True})
    await comparison.open({})
    return comparison


async def test_a_hold_is_posted_and_reversed_in_one_call(session: AsyncSession) -> None:
    comparison = await compare_two_accounts(session)
    await comparison.post([Step(0, 1, 40, days=1)])
    await comparison.post([Step(0, 1, 30, posts=0), Step(1, 0, 31, reverses=0), Step(1, 0, 20, reverses=0)])
    await comparison.post([Step(1, 0, None, reverses=0)])
    assert [entry[0] for entry in comparison.model.accounts[1].entries] == [30, -20, -10]
    await comparison.compare()


async def test_a_transfer_of_a_refused_chain_can_not_be_reversed(session: AsyncSession) -> None:
    comparison = await compare_two_accounts(session)
    await comparison.post([Step(0, 1, 40, days=1)])
    await comparison.post([Step(0, 1, 30, posts=0, linked=True), Step(1, 0, 31), Step(1, 0, None, reverses=0)])
    assert comparison.model.transfers[0].state == "pending"
    await comparison.compare()


async def test_a_chain_that_uses_a_key_twice_is_refused(session: AsyncSession) -> None:
    comparison = await compare_two_accounts(session)
    await comparison.post([Step(0, 1, 1, key=1, linked=True), Step(0, 1, 2, key=1, linked=True), Step(0, 1, 3, key=2)])
    assert comparison.model.transfers == []
    await comparison.compare()


class LedgerMachine(RuleBasedStateMachine):
    """Each rule is a call of the ledger and of the model. Everything is rolled back at the end."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, None]], None], database: Database) -> None:
        super().__init__()
        self.run = run
        self.session = database.session()
        self.comparison = LedgerComparison(self.session)
        self.calls: list[list[Step]] = []
        self.steps = 0

    def teardown(self) -> None:
        self.run(self.session.close())

    def post(self, steps: list[Step]) -> None:
        if any(step.key is not None for step in steps):
            self.calls.append(steps)
        self.run(self.comparison.post(steps))

    @initialize(drawn_accounts=st.lists(ACCOUNT, min_size=ACCOUNTS, max_size=ACCOUNTS))
    def begin(self, drawn_accounts: list[dict[str, Any]]) -> None:
        for terms in drawn_accounts:
            self.run(self.comparison.open(terms))

    @precondition(lambda self: len(self.comparison.accounts) < MOST_ACCOUNTS)
    @rule(terms=ACCOUNT)
    def open(self, terms: dict[str, Any]) -> None:
        self.run(self.comparison.open(terms))

    @rule(drawn=drawn_steps("transfer"))
    def transfer(self, drawn: DrawnStep) -> None:
        self.post([self.comparison.step(drawn)])

    @rule(drawn=drawn_steps("hold"))
    def hold(self, drawn: DrawnStep) -> None:
        self.post([self.comparison.step(drawn)])

    @rule(drawn=drawn_steps("post"))
    def post_pending(self, drawn: DrawnStep) -> None:
        self.post([self.comparison.step(drawn)])

    @rule(drawn=drawn_steps("void"))
    def void(self, drawn: DrawnStep) -> None:
        self.post([self.comparison.step(drawn)])

    @rule(drawn=drawn_steps("reverse"))
    def reverse(self, drawn: DrawnStep) -> None:
        self.post([self.comparison.step(drawn)])

    @rule(steps=st.lists(drawn_steps(*KINDS), min_size=2, max_size=4), key=st.none() | st.integers(0, 9))
    def linked(self, steps: list[DrawnStep], key: int | None) -> None:
        self.post(steps_of(self.comparison, (steps, key)))

    @precondition(lambda self: self.calls)
    @rule(selector=st.integers(0, 99))
    def replay(self, selector: int) -> None:
        self.run(self.comparison.post(self.calls[selector % len(self.calls)]))

    @rule(place=st.integers(0, MOST_ACCOUNTS - 1), state=st.sampled_from(AccountState))
    def change(self, place: int, state: AccountState) -> None:
        place %= len(self.comparison.accounts)
        account = self.comparison.model.accounts[place]
        if account.state == AccountState.CLOSED or (state is AccountState.CLOSED and (account.balance or account.held)):
            state = AccountState(account.state)
        if account.state != state:
            self.run(self.comparison.change(place, state))

    @rule()
    def advance_time(self) -> None:
        self.run(self.comparison.advance_time())

    @invariant()
    def ledger_and_model_agree(self) -> None:
        self.run(self.comparison.compare())
        self.steps += 1
        if self.steps % 25 == 0:
            self.run(self.comparison.check())


@contextmanager
def connect(url: str) -> Iterator[tuple[Callable[[Coroutine[Any, Any, None]], None], Database]]:
    """A runner for coroutines, since a state machine is not asynchronous, and a database with one connection."""
    with asyncio.Runner() as runner:
        database = Database(url, pool_size=1)
        try:
            yield runner.run, database
        finally:
            runner.run(database.close())


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(30, marks=pytest.mark.timeout(600)),  # most of the time limit is for shrinking a failure
        pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.timeout(3_600)]),
    ],
    ids="{} runs".format,
)
def test_the_ledger_and_the_model_agree_after_each_step(committed_url: str, runs: int) -> None:
    with connect(committed_url) as (run, database):
        run_state_machine_as_test(
            lambda: LedgerMachine(run, database),  # type: ignore[arg-type]  # any callable is accepted
            settings=settings(
                max_examples=runs,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
