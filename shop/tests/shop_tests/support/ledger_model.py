"""A small in-memory model of the ledger, and the replay of the real ledger's transfers in it.

It shares only the codes of refusals with the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from operator import and_
from typing import NamedTuple
from uuid import UUID

from shop.ledger.requests import MAX_AMOUNT, Refusal, TransferRefused

LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Step:
    """A request. Accounts and transfers are numbers: their index in the model's lists."""

    source: int
    target: int
    amount: int | None
    key: int | None = None
    days: int | None = None
    """How many days it stays pending; None for a transfer that is posted."""
    posts: int | None = None
    voids: int | None = None
    reverses: int | None = None
    linked: bool = False
    customer: int | None = None
    """On whose behalf it is posted; None for an operator."""


class Answer(NamedTuple):
    """A refusal, or the transfer's number, state and amount."""

    refusal: Refusal | None
    number: int | None = None
    state: str | None = None
    amount: int | None = None
    replayed: bool = False


@dataclass
class ModelAccount:
    currency: str = "GBP"
    allows_negative: bool = False
    overdraft_limit: int = 0
    balance_limit: int | None = None
    state: str = "open"
    owner: int | None = None
    balance: int = 0
    held: int = 0
    entries: list[tuple[int, int]] = field(default_factory=list)
    """Amount, balance after."""

    def add_entry(self, amount: int) -> None:
        self.balance += amount
        self.entries.append((amount, self.balance))


@dataclass
class ModelTransfer:
    """A transfer. `until` is the day on which a pending one expires."""

    source: int
    target: int
    amount: int
    state: str
    until: float | None = None
    reversed_amount: int = 0
    is_expired: bool = False
    is_expiry_reported: bool = True
    """Until the expiry is reported, a request to void the transfer succeeds."""


@dataclass
class Model:
    accounts: list[ModelAccount] = field(default_factory=list)
    transfers: list[ModelTransfer] = field(default_factory=list)
    day: float = 0
    _answers: dict[int, tuple[tuple[Step, ...], int, Answer]] = field(default_factory=dict)
    """By key: the chain without its keys, the index in it, the answer."""

    def post(self, steps: Sequence[Step]) -> list[Answer]:
        answers, chain = list[Answer](), list[Step]()
        expired = self.expire({place for step in steps for place in (step.source, step.target)})
        for step in steps:
            chain.append(step)
            if not step.linked:
                answers += self._decide_or_replay(chain)
                chain = []
        for number in expired:
            self.transfers[number].is_expiry_reported = True
        return answers

    def expire(self, places: Iterable[int]) -> list[int]:
        """Void the expired pending transfers of these accounts, as the ledger does before it decides on them."""
        sources = set(places)
        expired = [
            number
            for number, each in enumerate(self.transfers)
            if each.source in sources and each.state == "pending" and each.until is not None and each.until <= self.day
        ]
        for number in expired:
            transfer = self.transfers[number]
            self.accounts[transfer.source].held -= transfer.amount
            transfer.state, transfer.is_expired, transfer.is_expiry_reported = "voided", True, False
        return expired

    def _decide_or_replay(self, chain: Sequence[Step]) -> list[Answer]:
        """Replay the chain if its keys were used for the same chain, refuse reused keys, and decide otherwise."""
        keys = [step.key for step in chain]
        without_keys = tuple(replace(step, key=None, customer=None) for step in chain)
        set_keys = [key for key in keys if key is not None]
        stored = [self._answers.get(key) if key is not None else None for key in keys]
        if any(stored) or len(set(set_keys)) < len(set_keys):
            is_same = [each is not None and each[:2] == (without_keys, index) for index, each in enumerate(stored)]
            if all(is_same):
                return [each[2]._replace(replayed=True) for each in stored if each is not None]
            is_reused = [each is not None and not same for each, same in zip(stored, is_same, strict=True)]
            refusals = [
                Refusal.KEY_REUSED if reused or not any(is_reused) else Refusal.LINKED_TRANSFER_FAILED
                for reused in is_reused
            ]
            return [Answer(refusal) for refusal in refusals]
        answers = self._post_chain(chain)
        for index, (key, answer) in enumerate(zip(keys, answers, strict=True)):
            if key is not None:
                self._answers[key] = (without_keys, index, answer)
        return answers

    def _post_chain(self, chain: Sequence[Step]) -> list[Answer]:
        """Post all steps of the chain, or none if one of them is refused."""
        before = deepcopy((self.accounts, self.transfers)) if len(chain) > 1 else None
        answers: list[Answer] = []
        for index, step in enumerate(chain):
            try:
                number = self._post_step(step)
            except TransferRefused as error:
                answers = [Answer(Refusal.LINKED_TRANSFER_FAILED)] * len(chain)
                answers[index] = Answer(error.code)
                if before is not None:
                    self.accounts, self.transfers = before
                break
            answers.append(Answer(None, number, self.transfers[number].state, self.transfers[number].amount))
        return answers

    def _post_step(self, step: Step) -> int:
        """Post the step, and return the transfer's number. Raises `TransferRefused`."""
        if step.reverses is not None:
            return self._reverse(step, step.reverses)
        if step.posts is not None:
            return self._post_pending(step, step.posts)
        if step.voids is not None:
            return self._void(step, step.voids)
        amount = _checked_amount(step.amount)
        self._check(step, amount)
        if step.days is None:
            return self._post_directly(step, amount)
        holder = self.accounts[step.source]
        if holder.held + amount > LARGEST:
            raise TransferRefused(Refusal.BALANCE_OUT_OF_RANGE)
        holder.held += amount
        self.transfers.append(ModelTransfer(step.source, step.target, amount, "pending", self.day + step.days))
        return len(self.transfers) - 1

    def _reverse(self, step: Step, number: int) -> int:
        original = self.transfers[number] if number < len(self.transfers) else None
        if not (self._owns(step, step.source) or self._owns(step, step.target)):
            raise TransferRefused(Refusal.REVERSAL_MISMATCH)
        if original is None or (original.target, original.source) != (step.source, step.target):
            raise TransferRefused(Refusal.REVERSAL_MISMATCH)
        if original.state != "posted":
            raise TransferRefused(Refusal.NOT_POSTED)
        if not self._owns(step, step.source):
            raise TransferRefused(Refusal.NOT_PAYEE)
        reversible = original.amount - original.reversed_amount
        if reversible == 0:
            raise TransferRefused(Refusal.ALREADY_REVERSED)
        amount = reversible if step.amount is None else _checked_amount(step.amount)
        if amount > reversible:
            raise TransferRefused(Refusal.EXCEEDS_REVERSIBLE_AMOUNT)
        self._check(step, amount)
        original.reversed_amount += amount
        return self._post_directly(step, amount)

    def _post_pending(self, step: Step, number: int) -> int:
        pending = self._find_pending(step, number)
        amount = pending.amount if step.amount is None else _checked_amount(step.amount)
        if amount > pending.amount:
            raise TransferRefused(Refusal.EXCEEDS_HELD_AMOUNT)
        self._check(step, amount, released=pending.amount)
        self.accounts[pending.source].held -= pending.amount
        pending.state, pending.amount = "posted", amount
        self._add_entries(pending.source, pending.target, amount)
        return number

    def _void(self, step: Step, number: int) -> int:
        pending = self._find_pending(step, number)
        if pending.is_expired:
            pending.is_expiry_reported = True
        else:
            self.accounts[pending.source].held -= pending.amount
            pending.state = "voided"
        return number

    def _find_pending(self, step: Step, number: int) -> ModelTransfer:
        pending = self.transfers[number] if number < len(self.transfers) else None
        if not (self._owns(step, step.source) or self._owns(step, step.target)):
            raise TransferRefused(Refusal.UNKNOWN_PENDING)
        if pending is None or (pending.source, pending.target) != (step.source, step.target):
            raise TransferRefused(Refusal.UNKNOWN_PENDING)
        if pending.until is None:
            raise TransferRefused(Refusal.ALREADY_POSTED)
        if not self._owns(step, step.target):
            raise TransferRefused(Refusal.NOT_PAYEE)
        if pending.is_expired and step.posts is not None:
            raise TransferRefused(Refusal.PENDING_EXPIRED)
        if pending.state != "pending" and pending.is_expiry_reported:
            raise TransferRefused(Refusal.ALREADY_POSTED if pending.state == "posted" else Refusal.ALREADY_VOIDED)
        return pending

    def _check(self, step: Step, amount: int, *, released: int = 0) -> None:
        """Raise `TransferRefused` if the accounts don't allow the amount. `released` is the hold that the step ends."""
        if step.source == step.target:
            raise TransferRefused(Refusal.SAME_ACCOUNT)
        if max(step.source, step.target) >= len(self.accounts):
            raise TransferRefused(Refusal.UNKNOWN_ACCOUNT)
        if step.posts is None and not self._owns(step, step.source):
            raise TransferRefused(Refusal.UNKNOWN_ACCOUNT)
        source, target = self.accounts[step.source], self.accounts[step.target]
        if source.currency != target.currency:
            raise TransferRefused(Refusal.CURRENCY_MISMATCH)
        available = source.balance - source.held + released - amount
        balance = target.balance + amount
        below_limit = available + source.overdraft_limit < 0 and not source.allows_negative
        above_limit = target.balance_limit is not None and balance > target.balance_limit
        violations = [
            (Refusal.ACCOUNT_CLOSED, source.state == "closed", target.state == "closed"),
            (Refusal.ACCOUNT_FROZEN, source.state == "frozen", target.state == "frozen"),
            (Refusal.INSUFFICIENT_FUNDS, below_limit, False),
            (Refusal.LIMIT_EXCEEDED, False, above_limit),
            (Refusal.BALANCE_OUT_OF_RANGE, available < -LARGEST, balance > LARGEST),
        ]
        owned = self._owns(step, step.source), self._owns(step, step.target)
        visible = [refusal for refusal, *sides in violations if any(map(and_, sides, owned))]
        if visible:
            raise TransferRefused(visible[0])
        if any(any(sides) for _, *sides in violations):
            raise TransferRefused(Refusal.COUNTERPARTY_UNAVAILABLE)

    def _owns(self, step: Step, place: int) -> bool:
        if step.customer is None:
            return True
        return place < len(self.accounts) and self.accounts[place].owner == step.customer

    def _post_directly(self, step: Step, amount: int) -> int:
        self._add_entries(step.source, step.target, amount)
        self.transfers.append(ModelTransfer(step.source, step.target, amount, "posted"))
        return len(self.transfers) - 1

    def _add_entries(self, source: int, target: int, amount: int) -> None:
        self.accounts[source].add_entry(-amount)
        self.accounts[target].add_entry(amount)


def _checked_amount(amount: int | None) -> int:
    if amount is None or not 1 <= amount <= MAX_AMOUNT:
        raise TransferRefused(Refusal.AMOUNT_OUT_OF_RANGE)
    return amount


class PostedTransfer(NamedTuple):
    """A posted transfer of the real ledger, with the balances after its two entries."""

    id: UUID
    from_account_id: UUID
    from_entry_number: int
    from_balance: int
    to_account_id: UUID
    to_entry_number: int
    to_balance: int
    amount: int
    reverses_id: UUID | None


def sort_by_entry_number(transfers: Iterable[PostedTransfer]) -> list[PostedTransfer]:
    """Sort the transfers so that the entry numbers of each account are in order.

    Raises `ValueError` if there is no such order: a number is missing, or the transfers form a cycle.
    """
    sides: dict[UUID, dict[int, PostedTransfer]] = {}
    count = 0
    for count, each in enumerate(transfers, start=1):  # noqa: B007  # used after the loop
        sides.setdefault(each.from_account_id, {})[each.from_entry_number] = each
        sides.setdefault(each.to_account_id, {})[each.to_entry_number] = each
    entry_number = dict.fromkeys(sides, 0)
    ordered: list[PostedTransfer] = []
    candidates = list(sides)
    while candidates:
        account = candidates.pop()
        next_transfer = sides[account].get(entry_number[account] + 1)
        if next_transfer is None:
            continue
        debit, credit = next_transfer.from_account_id, next_transfer.to_account_id
        if (entry_number[debit], entry_number[credit]) == (
            next_transfer.from_entry_number - 1,
            next_transfer.to_entry_number - 1,
        ):
            entry_number[debit] += 1
            entry_number[credit] += 1
            ordered.append(next_transfer)
            candidates += (debit, credit)
    if len(ordered) < count:
        raise ValueError(f"{count - len(ordered)} of {count} transfers can't be sorted by entry number")
    return ordered


def find_differences(ordered: Iterable[PostedTransfer], world: UUID) -> list[str]:
    """Post the transfers to a new model, one by one, and return where it differs from the ledger.

    `world` is the account that may be negative. Transfers that were pending are posted directly, with their posted
    amount.
    """
    model, indexes, numbers, found = Model(), dict[UUID, int](), dict[UUID, int](), list[str]()
    for each in ordered:
        for account in (each.from_account_id, each.to_account_id):
            if account not in indexes:
                indexes[account] = len(indexes)
                model.accounts.append(ModelAccount(allows_negative=account == world))
        source, target = indexes[each.from_account_id], indexes[each.to_account_id]
        reverses = None if each.reverses_id is None else numbers.get(each.reverses_id, len(model.transfers))
        [answer] = model.post([Step(source, target, each.amount, reverses=reverses)])
        if answer.number is None:
            found.append(f"transfer {each.id}: {answer.refusal}")
            continue
        numbers[each.id] = answer.number
        balances = (model.accounts[source].balance, model.accounts[target].balance)
        if balances != (each.from_balance, each.to_balance):
            found.append(f"transfer {each.id}: balances {balances}, not {(each.from_balance, each.to_balance)}")
    return found
