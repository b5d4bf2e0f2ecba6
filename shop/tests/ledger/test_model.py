"""The ledger against a model of it that can be read: whatever is asked for, both answer and hold the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import permutations
from typing import Any
from uuid import UUID, uuid4

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
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop.ledger.accounts import change_account
from shop.ledger.check import check_ledger
from shop.ledger.http.account_schemas import AccountChange
from shop.ledger.models import Account, AccountState, Entry, PendingTransfer, TransferState
from shop.ledger.requests import MAX_AMOUNT, TransferRecord, TransferRequest
from shop.ledger.service import post_transfers
from shop_tests.support.ledger_model import Model, ModelAccount, Step
from shop_tests.support.trigger_bypass import seal_pending_anew, with_guards, without_guards

ACCOUNTS, MOST_ACCOUNTS = 4, 6
NOBODY, NOTHING = 99, 9_999  # an account and a transfer that never exist
DAY_SECONDS = 86_400
LEAP_DAYS = 1.5  # never what is pending for whole days, so that the moment doesn't matter


@dataclass(frozen=True)
class Wish:
    """A step that is yet to find the transfer it names: `which`, five times in six, of those it could be about. With
    `beyond` the amount is so much more than is held, or left."""

    kind: str
    places: tuple[int, int]
    amount: int | None
    beyond: int | None
    which: int
    days: int
    key: int | None


class Both:
    """The ledger and the model side by side; fails as soon as they differ. All of it belongs to the session's
    transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self.model = Model()
        self.accounts: list[UUID] = []
        self._session = session
        self._made: list[UUID] = []
        self._told: dict[tuple[UUID, str], TransferRecord] = {}
        self._scope = str(uuid4())
        self._nobody, self._nothing = uuid4(), uuid4()
        self._compared: list[tuple[int, int, int, str]] = []

    async def open(self, terms: dict[str, Any]) -> None:
        values = {"id": uuid4(), "name": "Account", "currency": "GBP", **terms}
        await self._session.execute(insert(Account).values(**values))
        self.accounts.append(values["id"])
        self.model.accounts.append(ModelAccount(**terms))

    async def change(self, place: int, state: AccountState) -> None:
        await change_account(self._session, self.accounts[place], AccountChange(state=state))
        self.model.expire([place])
        self.model.accounts[place].state = state

    async def leap(self) -> None:
        """Time goes on: what is pending expires so much earlier."""
        leap = timedelta(days=LEAP_DAYS)
        earlier = (
            update(PendingTransfer)
            .where(self._among(PendingTransfer.from_account_id), PendingTransfer.state == TransferState.PENDING)
            .values(expires_at=PendingTransfer.expires_at - leap)
            .returning(PendingTransfer.id, PendingTransfer.expires_at)
            .execution_options(synchronize_session=False)
        )
        await without_guards(self._session)
        for id_, expires_at in (await self._session.execute(earlier)).all():
            told = (id_, TransferState.PENDING)
            self._told[told] = self._told[told]._replace(expires_at=expires_at)
        await seal_pending_anew(self._session)
        await with_guards(self._session)
        self.model.day += LEAP_DAYS

    def step(self, wish: Wish) -> Step:
        made = self.model.made
        source, target = (place if place < len(self.accounts) else NOBODY for place in wish.places)
        match wish.kind:
            case "transfer":
                return Step(source, target, wish.amount, wish.key)
            case "hold":
                return Step(source, target, wish.amount, wish.key, days=wish.days)
            case "reverse":
                fitting = list(range(len(made)))
            case _:
                fitting = [number for number, each in enumerate(made) if each.until is not None]
        dice, number = wish.which % 6, wish.which // 6
        if dice and fitting:
            number = fitting[number % len(fitting)]
            source, target = made[number].source, made[number].target
            if wish.kind == "reverse":
                source, target = target, source
        else:
            number = number if number < len(made) else NOTHING
        amount = None if wish.kind == "void" else wish.amount
        if wish.kind != "void" and wish.beyond is not None and number != NOTHING:
            amount = made[number].amount - made[number].reversed_amount + wish.beyond
        names = {"post": "posts", "void": "voids", "reverse": "reverses"}
        return Step(source, target, amount, wish.key, **{names[wish.kind]: number})  # type: ignore[arg-type]

    async def post(self, wanted: Sequence[Step]) -> None:
        steps = all_or_no_keys(wanted)
        results = await post_transfers(self._session, [self._request(step) for step in steps])
        for result, answer in zip(results, self.model.post(steps), strict=True):
            assert (result.refusal, result.replayed) == (answer.refusal, answer.replayed)
            if answer.number is None:
                assert result.transfer is None
                continue
            told = result.unwrap()
            if answer.number == len(self._made):
                self._made.append(told.id)
            assert (told.id, told.state, told.amount) == (self._made[answer.number], answer.state, answer.amount)
            assert self._told.setdefault((told.id, told.state), told) == told  # whenever it is told again

    def _request(self, step: Step) -> TransferRequest:
        def account(place: int) -> UUID:
            return self._nobody if place == NOBODY else self.accounts[place]

        def made(number: int | None) -> UUID | None:
            if number is None:
                return None
            return self._nothing if number == NOTHING else self._made[number]

        return TransferRequest(
            account(step.source),
            account(step.target),
            step.amount,
            key=None if step.key is None else f"{step.key}",
            scope=self._scope,
            pending_seconds=None if step.days is None else step.days * DAY_SECONDS,
            posts=made(step.posts),
            voids=made(step.voids),
            reverses=made(step.reverses),
            linked=step.linked,
        )

    async def compare(self) -> None:
        """Everything of both, but for what can't have changed."""
        balances = select(Account.id, Account.balance, Account.held, Account.entry_count, Account.state)
        rows = {row.id: tuple(row)[1:] for row in await self._session.execute(balances.where(self._among(Account.id)))}
        expected = [(each.balance, each.held, len(each.entries), each.state) for each in self.model.accounts]
        assert [rows[id_] for id_ in self.accounts] == expected
        if self._compared == expected:
            return
        self._compared = expected
        entries: dict[UUID, list[tuple[int, int]]] = {id_: [] for id_ in self.accounts}
        numbered = select(Entry.account_id, Entry.amount, Entry.balance_after).where(self._among(Entry.account_id))
        for account_id, *entry in await self._session.execute(numbered.order_by(Entry.entry_number)):
            entries[account_id].append(tuple(entry))
        assert list(entries.values()) == [each.entries for each in self.model.accounts]
        states = select(PendingTransfer.id, PendingTransfer.state).where(self._among(PendingTransfer.from_account_id))
        assert {row.id: row.state for row in await self._session.execute(states)} == {
            self._made[number]: each.state for number, each in enumerate(self.model.made) if each.until is not None
        }

    async def check(self) -> None:
        assert (await check_ledger(self._session)).faults == {}

    def _among(self, column: Any) -> Any:
        return column.in_(self.accounts)


def all_or_no_keys(steps: Sequence[Step]) -> list[Step]:
    """Linked ones of which one has no key have none: the ledger takes nothing else."""
    chosen: list[Step] = []
    chain: list[Step] = []
    for step in steps:
        chain.append(step)
        if not step.linked:
            keyed = all(each.key is not None for each in chain)
            chosen += chain if keyed else [replace(each, key=None) for each in chain]
            chain = []
    return chosen


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


def wishes(*kinds: str) -> st.SearchStrategy[Wish]:
    return st.sampled_from(kinds).flatmap(
        lambda kind: st.builds(
            Wish,
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


def steps_of(both: Both, chain: tuple[list[Wish], int | None]) -> list[Step]:
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
        both = Both(session)
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


async def opened(session: AsyncSession) -> Both:
    """With two accounts, of which the first may be overdrawn."""
    both = Both(session)
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
        self.both = Both(self.session)
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
    def transfer(self, wish: Wish) -> None:
        self.post([self.both.step(wish)])

    @rule(wish=wishes("hold"))
    def hold(self, wish: Wish) -> None:
        self.post([self.both.step(wish)])

    @rule(wish=wishes("post"))
    def post_pending(self, wish: Wish) -> None:
        self.post([self.both.step(wish)])

    @rule(wish=wishes("void"))
    def void(self, wish: Wish) -> None:
        self.post([self.both.step(wish)])

    @rule(wish=wishes("reverse"))
    def reverse(self, wish: Wish) -> None:
        self.post([self.both.step(wish)])

    @rule(wished=st.lists(wishes(*KINDS), min_size=2, max_size=4), key=st.none() | st.integers(0, 9))
    def linked(self, wished: list[Wish], key: int | None) -> None:
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
            lambda: LedgerMachine(run, database),
            settings=settings(
                max_examples=runs,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
