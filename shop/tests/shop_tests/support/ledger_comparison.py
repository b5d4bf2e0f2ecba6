"""Posts the same requests to the ledger and to the model, and compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from shop.ledger.account_schemas import AccountChange
from shop.ledger.accounts import change_account
from shop.ledger.check import check_ledger
from shop.ledger.models import Account, AccountState, Entry, PendingTransfer, TransferState
from shop.ledger.requests import TransferRecord, TransferRequest
from shop.ledger.service import post_transfers
from shop.users.models import User
from shop_tests.support.ledger_model import Model, ModelAccount, Step
from shop_tests.support.trigger_bypass import disable_triggers, enable_triggers, reseal_pending_transfers

UNKNOWN_ACCOUNT, UNKNOWN_TRANSFER = 99, 9_999  # numbers that no account and no transfer has
UNKNOWN_CUSTOMER = UUID(int=0)
DAY_SECONDS = 86_400
ADVANCED_DAYS = 1.5  # holds last whole days, so none expires at the very moment of a comparison


@dataclass(frozen=True)
class DrawnStep:
    """A step whose transfer is not chosen yet. `selector` chooses it: in five of six cases, one that the step can refer
    to. `excess` is the difference between the amount and the held or reversible amount."""

    kind: str
    places: tuple[int, int]
    amount: int | None
    excess: int | None
    selector: int
    days: int
    key: int | None
    customer: int | None = None


class LedgerComparison:
    """Drives the ledger and the model, and fails as soon as they differ. Everything happens in the session's
    transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self.model = Model()
        self.accounts: list[UUID] = []
        self._session = session
        self._transfer_ids: list[UUID] = []
        self._records: dict[tuple[UUID, str], TransferRecord] = {}
        self._scope = str(uuid4())
        self._customers: dict[int, UUID] = {}
        self._unknown_account, self._unknown_transfer = uuid4(), uuid4()
        self._compared: list[tuple[int, int, int, str]] = []

    async def open(self, terms: dict[str, Any]) -> None:
        values = {"id": uuid4(), "name": "Account", "currency": "GBP", **terms}
        values["user_id"] = await self._customer(values.pop("owner", None))
        await self._session.execute(insert(Account).values(**values))
        self.accounts.append(values["id"])
        self.model.accounts.append(ModelAccount(**terms))

    async def change(self, place: int, state: AccountState) -> None:
        await change_account(self._session, self.accounts[place], AccountChange(state=state))
        self.model.expire([place])
        self.model.accounts[place].state = state

    async def advance_time(self) -> None:
        """Advance the time: pending transfers expire earlier by this much."""
        advanced = timedelta(days=ADVANCED_DAYS)
        earlier = (
            update(PendingTransfer)
            .where(self._is_compared(PendingTransfer.from_account_id), PendingTransfer.state == TransferState.PENDING)
            .values(expires_at=PendingTransfer.expires_at - advanced)
            .returning(PendingTransfer.id, PendingTransfer.expires_at)
            .execution_options(synchronize_session=False)
        )
        await disable_triggers(self._session)
        for id_, expires_at in (await self._session.execute(earlier)).all():
            state = (id_, TransferState.PENDING)
            self._records[state] = self._records[state]._replace(expires_at=expires_at)
        await reseal_pending_transfers(self._session)
        await enable_triggers(self._session)
        self.model.day += ADVANCED_DAYS

    def step(self, drawn: DrawnStep) -> Step:
        return replace(self._step(drawn), customer=drawn.customer)

    def _step(self, drawn: DrawnStep) -> Step:
        transfers = self.model.transfers
        source, target = (place if place < len(self.accounts) else UNKNOWN_ACCOUNT for place in drawn.places)
        match drawn.kind:
            case "transfer":
                return Step(source, target, drawn.amount, drawn.key)
            case "hold":
                return Step(source, target, drawn.amount, drawn.key, days=drawn.days)
            case "reverse":
                candidates = list(range(len(transfers)))
            case _:
                candidates = [number for number, each in enumerate(transfers) if each.until is not None]
        dice, number = drawn.selector % 6, drawn.selector // 6
        if dice and candidates:
            number = candidates[number % len(candidates)]
            source, target = transfers[number].source, transfers[number].target
            if drawn.kind == "reverse":
                source, target = target, source
        else:
            number = number if number < len(transfers) else UNKNOWN_TRANSFER
        amount = None if drawn.kind == "void" else drawn.amount
        if drawn.kind != "void" and drawn.excess is not None and number != UNKNOWN_TRANSFER:
            amount = transfers[number].amount - transfers[number].reversed_amount + drawn.excess
        names = {"post": "posts", "void": "voids", "reverse": "reverses"}
        return Step(source, target, amount, drawn.key, **{names[drawn.kind]: number})  # type: ignore[arg-type]

    async def post(self, drawn: Sequence[Step]) -> None:
        steps = all_or_no_keys(drawn)
        results = await post_transfers(self._session, [self._request(step) for step in steps])
        for result, answer in zip(results, self.model.post(steps), strict=True):
            assert (result.refusal, result.replayed) == (answer.refusal, answer.replayed)
            if answer.number is None:
                assert result.transfer is None
                continue
            record = result.unwrap()
            if answer.number == len(self._transfer_ids):
                self._transfer_ids.append(record.id)
            assert (record.id, record.state, record.amount) == (
                self._transfer_ids[answer.number],
                answer.state,
                answer.amount,
            )
            assert self._records.setdefault((record.id, record.state), record) == record  # also in each replay

    def _request(self, step: Step) -> TransferRequest:
        def account(place: int) -> UUID:
            return self._unknown_account if place == UNKNOWN_ACCOUNT else self.accounts[place]

        def transfer(number: int | None) -> UUID | None:
            if number is None:
                return None
            return self._unknown_transfer if number == UNKNOWN_TRANSFER else self._transfer_ids[number]

        return TransferRequest(
            account(step.source),
            account(step.target),
            step.amount,
            key=None if step.key is None else f"{step.key}",
            scope=self._scope,
            pending_seconds=None if step.days is None else step.days * DAY_SECONDS,
            posts=transfer(step.posts),
            voids=transfer(step.voids),
            reverses=transfer(step.reverses),
            linked=step.linked,
            posted_by=None if step.customer is None else self._customers.get(step.customer, UNKNOWN_CUSTOMER),
        )

    async def _customer(self, number: int | None) -> UUID | None:
        """The id of the customer with this number, who is a new user."""
        if number is None:
            return None
        if number not in self._customers:
            id_ = self._customers[number] = uuid4()
            await self._session.execute(insert(User).values(id=id_, email=f"{id_}@example.com", name="Ada"))
        return self._customers[number]

    async def compare(self) -> None:
        """Compare all accounts, entries and states. If no account has changed, entries and states are not read."""
        balances = select(Account.id, Account.balance, Account.held, Account.entry_count, Account.state)
        rows = {
            row.id: tuple(row)[1:] for row in await self._session.execute(balances.where(self._is_compared(Account.id)))
        }
        expected = [(each.balance, each.held, len(each.entries), each.state) for each in self.model.accounts]
        assert [rows[id_] for id_ in self.accounts] == expected
        if self._compared == expected:
            return
        self._compared = expected
        entries: dict[UUID, list[tuple[int, int]]] = {id_: [] for id_ in self.accounts}
        numbered = select(Entry.account_id, Entry.amount, Entry.balance_after).where(
            self._is_compared(Entry.account_id)
        )
        for account_id, amount, balance_after in await self._session.execute(numbered.order_by(Entry.entry_number)):
            entries[account_id].append((amount, balance_after))
        assert list(entries.values()) == [each.entries for each in self.model.accounts]
        states = select(PendingTransfer.id, PendingTransfer.state).where(
            self._is_compared(PendingTransfer.from_account_id)
        )
        assert {row.id: row.state for row in await self._session.execute(states)} == {
            self._transfer_ids[number]: each.state
            for number, each in enumerate(self.model.transfers)
            if each.until is not None
        }

    async def check(self) -> None:
        assert (await check_ledger(self._session)).faults == {}

    def _is_compared(self, column: Any) -> Any:
        return column.in_(self.accounts)


def all_or_no_keys(steps: Sequence[Step]) -> list[Step]:
    """Remove the keys of a linked chain in which one request has none: the ledger accepts all keys or none."""
    result: list[Step] = []
    chain: list[Step] = []
    for step in steps:
        chain.append(step)
        if not step.linked:
            keyed = all(each.key is not None for each in chain)
            result += chain if keyed else [replace(each, key=None) for each in chain]
            chain = []
    return result
