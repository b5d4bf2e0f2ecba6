"""A small in-memory model of the ledger, and the replay of the real ledger's transfers in it.

It shares only the codes of refusals with the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
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
    expired: bool = False
    told: bool = True
    """Whether the expiry was reported. Until then, a request to void it succeeds."""


@dataclass
class Model:
    accounts: list[ModelAccount] = field(default_factory=list)
    made: list[ModelTransfer] = field(default_factory=list)
    day: float = 0
    _answers: dict[int, tuple[tuple[Step, ...], int, Answer]] = field(default_factory=dict)
    """By key: the chain without its keys, the index in it, the answer."""

    def post(self, steps: Sequence[Step]) -> list[Answer]:
        answers, chain = list[Answer](), list[Step]()
        expired = self.expire({place for step in steps for place in (step.source, step.target)})
        for step in steps:
            chain.append(step)
            if not step.linked:
                answers += self._answer(chain)
                chain = []
        for number in expired:
            self.made[number].told = True
        return answers

    def expire(self, places: Iterable[int]) -> list[int]:
        """Void the expired pending transfers of these accounts, as the ledger does before it decides on them."""
        holders = set(places)
        expired = [
            number
            for number, made in enumerate(self.made)
            if made.source in holders and made.state == "pending" and made.until is not None and made.until <= self.day
        ]
        for number in expired:
            made = self.made[number]
            self.accounts[made.source].held -= made.amount
            made.state, made.expired, made.told = "voided", True, False
        return expired

    def _answer(self, chain: Sequence[Step]) -> list[Answer]:
        keys, asked = [step.key for step in chain], tuple(replace(step, key=None) for step in chain)
        given = [key for key in keys if key is not None]
        earlier = [self._answers.get(key) if key is not None else None for key in keys]
        if any(earlier) or len(set(given)) < len(given):
            mine = [each is not None and each[:2] == (asked, place) for place, each in enumerate(earlier)]
            if all(mine):
                return [each[2]._replace(replayed=True) for each in earlier if each is not None]
            others = [each is not None and not it for each, it in zip(earlier, mine, strict=True)]
            refusals = [
                Refusal.KEY_REUSED if it or not any(others) else Refusal.LINKED_TRANSFER_FAILED for it in others
            ]
            return [Answer(refusal) for refusal in refusals]
        answers = self._all_or_none(chain)
        for place, (key, answer) in enumerate(zip(keys, answers, strict=True)):
            if key is not None:
                self._answers[key] = (asked, place, answer)
        return answers

    def _all_or_none(self, chain: Sequence[Step]) -> list[Answer]:
        before = deepcopy((self.accounts, self.made)) if len(chain) > 1 else None
        answers: list[Answer] = []
        for place, step in enumerate(chain):
            try:
                number = self._make(step)
            except TransferRefused as refused:
                answers = [Answer(Refusal.LINKED_TRANSFER_FAILED)] * len(chain)
                answers[place] = Answer(refused.code)
                if before is not None:
                    self.accounts, self.made = before
                break
            answers.append(Answer(None, number, self.made[number].state, self.made[number].amount))
        return answers

    def _make(self, step: Step) -> int:
        """Post the step, and return the transfer's number. Raises `TransferRefused`."""
        if step.reverses is not None:
            return self._reverse(step, step.reverses)
        if step.posts is not None:
            return self._post(step, step.posts)
        if step.voids is not None:
            return self._void(step, step.voids)
        amount = _in_range(step.amount)
        self._refuse(step, amount)
        if step.days is None:
            return self._move(step, amount)
        holder = self.accounts[step.source]
        if holder.held + amount > LARGEST:
            raise TransferRefused(Refusal.BALANCE_OUT_OF_RANGE)
        holder.held += amount
        self.made.append(ModelTransfer(step.source, step.target, amount, "pending", self.day + step.days))
        return len(self.made) - 1

    def _reverse(self, step: Step, number: int) -> int:
        made = self.made[number] if number < len(self.made) else None
        if made is None or (made.target, made.source) != (step.source, step.target):
            raise TransferRefused(Refusal.REVERSAL_MISMATCH)
        if made.state != "posted":
            raise TransferRefused(Refusal.NOT_POSTED)
        left = made.amount - made.reversed_amount
        if left == 0:
            raise TransferRefused(Refusal.ALREADY_REVERSED)
        amount = left if step.amount is None else _in_range(step.amount)
        if amount > left:
            raise TransferRefused(Refusal.EXCEEDS_REVERSIBLE_AMOUNT)
        self._refuse(step, amount)
        made.reversed_amount += amount
        return self._move(step, amount)

    def _post(self, step: Step, number: int) -> int:
        held = self._pending(step, number)
        amount = held.amount if step.amount is None else _in_range(step.amount)
        if amount > held.amount:
            raise TransferRefused(Refusal.EXCEEDS_HELD_AMOUNT)
        self._refuse(step, amount, released=held.amount)
        self.accounts[held.source].held -= held.amount
        held.state, held.amount = "posted", amount
        self._book(held.source, held.target, amount)
        return number

    def _void(self, step: Step, number: int) -> int:
        held = self._pending(step, number)
        if held.expired:
            held.told = True
        else:
            self.accounts[held.source].held -= held.amount
            held.state = "voided"
        return number

    def _pending(self, step: Step, number: int) -> ModelTransfer:
        made = self.made[number] if number < len(self.made) else None
        if made is None or (made.source, made.target) != (step.source, step.target):
            raise TransferRefused(Refusal.UNKNOWN_PENDING)
        if made.expired and step.posts is not None:
            raise TransferRefused(Refusal.PENDING_EXPIRED)
        if made.state != "pending" and made.told:
            raise TransferRefused(Refusal.ALREADY_POSTED if made.state == "posted" else Refusal.ALREADY_VOIDED)
        return made

    def _refuse(self, step: Step, amount: int, *, released: int = 0) -> None:
        if step.source == step.target:
            raise TransferRefused(Refusal.SAME_ACCOUNT)
        if max(step.source, step.target) >= len(self.accounts):
            raise TransferRefused(Refusal.UNKNOWN_ACCOUNT)
        source, target = self.accounts[step.source], self.accounts[step.target]
        if source.currency != target.currency:
            raise TransferRefused(Refusal.CURRENCY_MISMATCH)
        for state, refusal in (("closed", Refusal.ACCOUNT_CLOSED), ("frozen", Refusal.ACCOUNT_FROZEN)):
            if state in (source.state, target.state):
                raise TransferRefused(refusal)
        free = source.balance - source.held + released - amount
        if free + source.overdraft_limit < 0 and not source.allows_negative:
            raise TransferRefused(Refusal.INSUFFICIENT_FUNDS)
        if target.balance_limit is not None and target.balance + amount > target.balance_limit:
            raise TransferRefused(Refusal.LIMIT_EXCEEDED)
        if target.balance + amount > LARGEST or free < -LARGEST:
            raise TransferRefused(Refusal.BALANCE_OUT_OF_RANGE)

    def _move(self, step: Step, amount: int) -> int:
        self._book(step.source, step.target, amount)
        self.made.append(ModelTransfer(step.source, step.target, amount, "posted"))
        return len(self.made) - 1

    def _book(self, source: int, target: int, amount: int) -> None:
        self.accounts[source].add_entry(-amount)
        self.accounts[target].add_entry(amount)


def _in_range(amount: int | None) -> int:
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


def in_version_order(transfers: Iterable[PostedTransfer]) -> list[PostedTransfer]:
    """Sort the transfers so that the entry numbers of each account are in order.

    Raises `ValueError` if there is no such order: a number is missing, or the transfers form a cycle.
    """
    sides: dict[UUID, dict[int, PostedTransfer]] = {}
    count = 0
    for count, each in enumerate(transfers, start=1):  # noqa: B007  # how many there were
        sides.setdefault(each.from_account_id, {})[each.from_entry_number] = each
        sides.setdefault(each.to_account_id, {})[each.to_entry_number] = each
    entry_number = dict.fromkeys(sides, 0)
    ordered: list[PostedTransfer] = []
    may_be_next = list(sides)
    while may_be_next:
        account = may_be_next.pop()
        following = sides[account].get(entry_number[account] + 1)
        if following is None:
            continue
        debit, credit = following.from_account_id, following.to_account_id
        if (entry_number[debit], entry_number[credit]) == (
            following.from_entry_number - 1,
            following.to_entry_number - 1,
        ):
            entry_number[debit] += 1
            entry_number[credit] += 1
            ordered.append(following)
            may_be_next += (debit, credit)
    if len(ordered) < count:
        raise ValueError(f"{count - len(ordered)} of {count} transfers have no place in any order of the versions")
    return ordered


def differences(ordered: Iterable[PostedTransfer], world: UUID) -> list[str]:
    """Post the transfers to a new model, one by one, and return where it differs from the ledger.

    `world` is the account that may be negative. Transfers that were pending are posted directly, with their posted
    amount.
    """
    model, places, numbers, found = Model(), dict[UUID, int](), dict[UUID, int](), list[str]()
    for each in ordered:
        for account in (each.from_account_id, each.to_account_id):
            if account not in places:
                places[account] = len(places)
                model.accounts.append(ModelAccount(allows_negative=account == world))
        source, target = places[each.from_account_id], places[each.to_account_id]
        reverses = None if each.reverses_id is None else numbers.get(each.reverses_id, len(model.made))
        [answer] = model.post([Step(source, target, each.amount, reverses=reverses)])
        if answer.number is None:
            found.append(f"transfer {each.id}: {answer.refusal}")
            continue
        numbers[each.id] = answer.number
        balances = (model.accounts[source].balance, model.accounts[target].balance)
        if balances != (each.from_balance, each.to_balance):
            found.append(f"transfer {each.id}: balances {balances}, not {(each.from_balance, each.to_balance)}")
    return found
