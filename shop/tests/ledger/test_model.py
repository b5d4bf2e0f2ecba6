"""The ledger against a model of it that can be read: whatever is asked for, both answer and hold the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
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
PLACES = mostly(
    st.sampled_from(list(permutations(range(ACCOUNTS), 2))), else_=st.tuples(*[st.integers(0, MOST_ACCOUNTS)] * 2)
)
PLAIN_AMOUNT = mostly(st.integers(1, 40), else_=st.sampled_from([0, -1, MAX_AMOUNT, MAX_AMOUNT + 1]))
AMOUNT_OR_ALL = mostly(st.none() | st.integers(1, 40), else_=st.sampled_from([0, -1, MAX_AMOUNT, MAX_AMOUNT + 1]))
KINDS = ("transfer", "hold", "post", "void", "reverse")


def wishes(*kinds: str) -> st.SearchStrategy[DrawnStep]:
    return st.sampled_from(kinds).flatmap(
        lambda kind: st.builds(
            DrawnStep,
            kind=st.just(kind),
            places=PLACES,
            amount=PLAIN_AMOUNT if kind in ("transfer", "hold") else AMOUNT_OR_ALL,
            beyond=st.none() | st.sampled_from([-1, 0, 1]),
            which=st.integers(0, 299),
            days=st.sampled_from([1, 2]),
            key=st.none() | st.integers(0, 19),
        )
    )


# one, or some that are linked; in the second case with keys of their own, if there is a first one
CHAIN = mostly(
    st.tuples(st.lists(wishes("transfer", *KINDS), min_size=1, max_size=1), st.none()),
    else_=st.tuples(st.lists(wishes("transfer", *KINDS), min_size=2, max_size=4), st.none() | st.integers(0, 9)),
)
# what is asked for in one call, and whether time leaps before it
BATCHES = st.lists(
    st.tuples(st.lists(CHAIN, min_size=2, max_size=10), mostly(st.just(False), else_=st.just(True))),
    min_size=1,
    max_size=6,
)


def steps_of(both: LedgerComparison, chain: tuple[list[DrawnStep], int | None]) -> list[Step]:
    wished, first_key = chain
    steps = [replace(both.step(wish), linked=place < len(wished)) for place, wish in enumerate(wished, start=1)]
    if first_key is None:
        return steps
    return [replace(step, key=100 + 10 * first_key + place) for place, step in enumerate(steps)]


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
        both = LedgerComparison(session)
        for terms in described:
            await both.open(terms)
        for batch, leaps in batches:
            if leaps:
                await both.leap()
            await both.post([step for chain in batch for step in steps_of(both, chain)])
        await both.compare()
        await both.check()
    finally:
        session.expunge_all()
        await savepoint.rollback()


async def opened(session: AsyncSession) -> LedgerComparison:
    """With two accounts, of which the first may be overdrawn."""
    both = LedgerComparison(session)
    await both.open({"allows_negative": True})
    await both.open({})
    return both


async def test_what_a_call_posts_the_same_call_reverses(session: AsyncSession) -> None:
    both = await opened(session)
    await both.post([Step(0, 1, 40, days=1)])
    await both.post([Step(0, 1, 30, posts=0), Step(1, 0, 31, reverses=0), Step(1, 0, 20, reverses=0)])
    await both.post([Step(1, 0, None, reverses=0)])
    assert [entry[0] for entry in both.model.accounts[1].entries] == [30, -20, -10]
    await both.compare()


async def test_what_an_undone_chain_posts_is_not_there_to_be_reversed(session: AsyncSession) -> None:
    both = await opened(session)
    await both.post([Step(0, 1, 40, days=1)])
    await both.post([Step(0, 1, 30, posts=0, linked=True), Step(1, 0, 31), Step(1, 0, None, reverses=0)])
    assert both.model.made[0].state == "pending"
    await both.compare()


async def test_a_chain_that_uses_a_key_twice_is_refused(session: AsyncSession) -> None:
    both = await opened(session)
    await both.post([Step(0, 1, 1, key=1, linked=True), Step(0, 1, 2, key=1, linked=True), Step(0, 1, 3, key=2)])
    assert both.model.made == []
    await both.compare()


class LedgerMachine(RuleBasedStateMachine):
    """A step is a call; all of them are rolled back in the end."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, None]], None], database: Database) -> None:
        super().__init__()
        self.run = run
        self.session = database.session()
        self.both = LedgerComparison(self.session)
        self.calls: list[list[Step]] = []
        self.steps = 0

    def teardown(self) -> None:
        self.run(self.session.close())

    def post(self, steps: list[Step]) -> None:
        if any(step.key is not None for step in steps):
            self.calls.append(steps)
        self.run(self.both.post(steps))

    @initialize(described=st.lists(ACCOUNT, min_size=ACCOUNTS, max_size=ACCOUNTS))
    def begin(self, described: list[dict[str, Any]]) -> None:
        for terms in described:
            self.run(self.both.open(terms))

    @precondition(lambda self: len(self.both.accounts) < MOST_ACCOUNTS)
    @rule(terms=ACCOUNT)
    def open(self, terms: dict[str, Any]) -> None:
        self.run(self.both.open(terms))

    @rule(wish=wishes("transfer"))
    def transfer(self, wish: DrawnStep) -> None:
        self.post([self.both.step(wish)])

    @rule(wish=wishes("hold"))
    def hold(self, wish: DrawnStep) -> None:
        self.post([self.both.step(wish)])

    @rule(wish=wishes("post"))
    def post_pending(self, wish: DrawnStep) -> None:
        self.post([self.both.step(wish)])

    @rule(wish=wishes("void"))
    def void(self, wish: DrawnStep) -> None:
        self.post([self.both.step(wish)])

    @rule(wish=wishes("reverse"))
    def reverse(self, wish: DrawnStep) -> None:
        self.post([self.both.step(wish)])

    @rule(wished=st.lists(wishes(*KINDS), min_size=2, max_size=4), key=st.none() | st.integers(0, 9))
    def linked(self, wished: list[DrawnStep], key: int | None) -> None:
        self.post(steps_of(self.both, (wished, key)))

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 99))
    def replay(self, which: int) -> None:
        self.run(self.both.post(self.calls[which % len(self.calls)]))

    @rule(place=st.integers(0, MOST_ACCOUNTS - 1), state=st.sampled_from(AccountState))
    def change(self, place: int, state: AccountState) -> None:
        place %= len(self.both.accounts)
        account = self.both.model.accounts[place]
        if account.state == AccountState.CLOSED or (state is AccountState.CLOSED and (account.balance or account.held)):
            state = AccountState(account.state)
        if account.state != state:
            self.run(self.both.change(place, state))

    @rule()
    def leap(self) -> None:
        self.run(self.both.leap())

    @invariant()
    def both_hold_the_same(self) -> None:
        self.run(self.both.compare())
        self.steps += 1
        if self.steps % 25 == 0:
            self.run(self.both.check())


@contextmanager
def connected(url: str) -> Iterator[tuple[Callable[[Coroutine[Any, Any, None]], None], Database]]:
    """A loop of its own, for what isn't asynchronous, and one connection."""
    with asyncio.Runner() as runner:
        database = Database(url, pool_size=1)
        try:
            yield runner.run, database
        finally:
            runner.run(database.close())


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(30, marks=pytest.mark.timeout(600)),  # most of it to shrink what fails
        pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.timeout(3_600)]),
    ],
    ids="{} runs".format,
)
def test_it_does_what_the_model_does_step_by_step(committed_url: str, runs: int) -> None:
    with connected(committed_url) as (run, database):
        run_state_machine_as_test(
            lambda: LedgerMachine(run, database),  # type: ignore[arg-type]  # any callable does
            settings=settings(
                max_examples=runs,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
