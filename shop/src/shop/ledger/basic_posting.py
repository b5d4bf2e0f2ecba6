"""Post basic transfers by one statement. PostgreSQL decides whether the accounts allow all of them.

For each account Python computes how far the balance goes down and up in the batch, and numbers its entries from 1. The
statement `post_basic.sql` locks the accounts, compares these values with their states, and posts all transfers or none.
So the decision needs no states that were read before, and no round trip between the locks and the commit.

It decides as `PostingContext` does, except that it refuses nothing. It verifies and stores predicted refusals. A batch
with another refusal, or with a key that was used before, is declined. Then `shop.ledger.basic_refusals` decides which
requests are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, DateTime, Integer, LargeBinary, Row, String, Uuid, bindparam, text
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from howdah import uuid7
from shop.ledger.lock_waits import LOCK_WAIT_MS, raise_key_in_use, raise_locked_for_long
from shop.ledger.models import AccountState
from shop.ledger.posting import Outcome, stored_metadata, to_utc
from shop.ledger.requests import (
    MAX_AMOUNT,
    ScopedKey,
    TransferRecord,
    TransferRequest,
    TransferResult,
    compute_fingerprints,
    split_into_chains,
)
from shop.ledger.snapshots import PostingAccount
from shop.ledger.writing import omit_nulls, to_json

# The statement adds a change to a balance within the same limits, so the sum is a bigint. Larger ones are declined.
_MAX_CHANGE: Final = 2**62
# See `_Record` in `shop.ledger.posting`.
_Record: Final = TransferRecord


class Declined(NamedTuple):
    """Nothing was posted. `refusing` has the accounts that don't allow their transfers, or weren't found.

    It is empty if the reason is another one, for example two accounts with different currencies. `states` is None if
    the states of the accounts aren't known. `is_prediction_wrong` is true if an account on which a predicted refusal
    depends isn't in the known state any more. Then the other fields have their defaults.
    """

    refusing: frozenset[UUID] = frozenset()
    states: DeclinedStates | None = None
    is_prediction_wrong: bool = False


class ExpectedState(NamedTuple):
    """The state of an account on which a predicted refusal depends. The balance may be anywhere in this range."""

    revision: int
    lowest_balance: int
    highest_balance: int


@dataclass(slots=True)
class DeclinedStates:
    """The accounts of a declined batch at the time `at`, as the statement has returned them.

    An account isn't among them if it doesn't exist, or if it doesn't belong to its customer in `owners`.
    """

    at: datetime
    owners: Mapping[UUID, UUID]
    row: Row[Any]
    positions: Mapping[UUID, int]

    def read(self, ids: Iterable[UUID]) -> dict[UUID, PostingAccount]:
        """New objects for these accounts. Their `updated_at` is `at`, not the time of their last change."""
        row = self.row
        return {
            id_: PostingAccount(
                id=id_,
                user_id=row.owners[n],
                currency=row.currencies[n],
                balance=row.balances[n],
                held=row.held[n],
                allows_negative=row.allows_negative[n],
                overdraft_limit=row.overdraft_limit[n],
                balance_limit=row.balance_limit[n],
                state=AccountState(row.state[n]),
                entry_count=row.entry_counts[n],
                revision=row.revision[n],
                updated_at=self.at,
            )
            for id_ in ids
            if (n := self.positions.get(id_)) is not None
        }


class Posted(NamedTuple):
    """The results of a batch, and the states of its accounts before it, in the order of the plan."""

    results: list[TransferResult]
    balances: Sequence[int]
    entry_counts: Sequence[int]


@dataclass(slots=True)
class _NeededAccount:
    """What a batch needs of an account: changes of its balance, its owner and its currency.

    `change` and `entries` are those of the requests so far.
    """

    position: int
    change: int = 0
    lowest_change: int = 0
    highest_change: int = 0
    entries: int = 0
    owner: UUID | None = None
    currency: str | None = None


class _Step(NamedTuple):
    """A transfer of the batch, with the numbers of its entries and the changes of the balances up to it."""

    request: TransferRequest
    amount: int
    id: UUID
    group_id: UUID | None
    source: int
    source_entry: int
    source_change: int
    target: int
    target_entry: int
    target_change: int


@dataclass(slots=True)
class BasicPlan:
    """The transfers of a batch and what they need of their accounts, in the order of `accounts`."""

    accounts: dict[UUID, _NeededAccount] = field(default_factory=dict)
    steps: list[_Step] = field(default_factory=list)
    fingerprints: list[bytes] = field(default_factory=list)


def plan_basic_posting(requests: Sequence[TransferRequest]) -> BasicPlan | None:
    """The plan to post all requests. None if that is not possible, whatever the states of the accounts: a request is
    surely refused, or two requests have the same key."""
    plan = BasicPlan()
    has_keys = False
    for chain in split_into_chains(requests):
        group_id = uuid7() if len(chain) > 1 else None
        for request in chain:
            if not _add_step(plan, request, group_id):
                return None
            has_keys = has_keys or request.key is not None
        plan.fingerprints += compute_fingerprints(chain) if chain[0].key is not None else [b""] * len(chain)
    if has_keys:
        keys = [(request.scope, request.key) for request in requests if request.key is not None]
        if len(set(keys)) < len(keys):
            return None
    else:
        plan.fingerprints = []
    changes = plan.accounts.values()
    if any(each.lowest_change < -_MAX_CHANGE or each.highest_change > _MAX_CHANGE for each in changes):
        return None
    return plan


def _add_step(plan: BasicPlan, request: TransferRequest, group_id: UUID | None) -> bool:
    """Add a request to the plan. Returns False if it is surely refused."""
    amount, accounts = request.amount, plan.accounts
    # The driver would silently convert another type.
    if type(amount) is not int or not 1 <= amount <= MAX_AMOUNT or request.from_account_id == request.to_account_id:
        return False
    source = accounts.get(request.from_account_id)
    if source is None:
        source = accounts[request.from_account_id] = _NeededAccount(len(accounts) + 1)
    target = accounts.get(request.to_account_id)
    if target is None:
        target = accounts[request.to_account_id] = _NeededAccount(len(accounts) + 1)
    if request.posted_by is not None:
        if source.owner is not None and source.owner != request.posted_by:
            return False
        source.owner = request.posted_by
    if request.currency is not None and not source.currency == target.currency == request.currency:
        if any(each.currency not in {None, request.currency} for each in (source, target)):
            return False
        source.currency = target.currency = request.currency
    source.change -= amount
    source.lowest_change = min(source.lowest_change, source.change)
    target.change += amount
    target.highest_change = max(target.highest_change, target.change)
    source.entries += 1
    target.entries += 1
    plan.steps.append(
        _Step(
            request=request,
            amount=amount,
            id=uuid7(),
            group_id=group_id,
            source=source.position,
            source_entry=source.entries,
            source_change=source.change,
            target=target.position,
            target_entry=target.entries,
            target_change=target.change,
        )
    )
    return True


async def post_basic(
    connection: AsyncConnection,
    plan: BasicPlan,
    *,
    refused: Mapping[ScopedKey, Outcome] = MappingProxyType({}),
    predicted: Mapping[UUID, ExpectedState] = MappingProxyType({}),
    skips_locked: bool = False,
) -> Posted | Declined:
    """Post the transfers of the plan in one transaction, and store the `refused` keys with their refusals. The
    connection must commit each statement. With `predicted` it posts only if these accounts are in these states.

    The statement waits for accounts and keys that other transactions have locked. After `LOCK_WAIT_MS` it raises
    `LockedForLong`. With `skips_locked` it doesn't wait for accounts, and counts the locked ones as refusing. Raises
    `KeyInUse` if a key was used before.
    """
    statement = _POST_BASIC_SKIP_LOCKED if skips_locked else POST_BASIC
    with raise_key_in_use(), raise_locked_for_long():
        rows = await connection.exec_driver_sql(statement, basic_parameters(plan, refused, predicted))
    row = rows.one()
    if not row.is_posted:
        if not row.is_prediction_right:
            return Declined(is_prediction_wrong=True)
        allowing = set(row.allowing or ())
        refusing = frozenset(id_ for id_, each in plan.accounts.items() if each.position not in allowing)
        if skips_locked:
            return Declined(refusing)  # an account that isn't among the states may have been skipped
        owners = {id_: each.owner for id_, each in plan.accounts.items() if each.owner is not None}
        return Declined(refusing, DeclinedStates(row.at, owners, row, {id_: n for n, id_ in enumerate(row.id or ())}))
    states = _States(row.balances or (), row.entry_counts or (), row.owners or (), row.currencies or ())
    return Posted(_build_results(plan, row.at, states), states.balances, states.entry_counts)


class _States(NamedTuple):
    """The accounts before the batch, in the order of the plan."""

    balances: Sequence[int]
    entry_counts: Sequence[int]
    owners: Sequence[UUID | None]
    currencies: Sequence[str]


def _build_results(plan: BasicPlan, at: datetime, states: _States) -> list[TransferResult]:
    """The results of a plan that was posted at this time."""
    balances, entry_counts, owners, currencies = states
    results: list[TransferResult] = []
    for step in plan.steps:
        request, source, target = step.request, step.source - 1, step.target - 1
        record = _Record.__new__(
            _Record,
            id=step.id,
            from_account_id=request.from_account_id,
            from_entry_number=entry_counts[source] + step.source_entry,
            to_account_id=request.to_account_id,
            to_entry_number=entry_counts[target] + step.target_entry,
            amount=step.amount,
            currency=currencies[source],
            description=request.description,
            details=stored_metadata(request.metadata),
            effective_at=to_utc(request.effective_at) or at,
            reverses_id=None,
            reversed_total=None,
            group_id=step.group_id,
            created_at=at,
            posted_by=request.posted_by,
            from_balance=balances[source] + step.source_change,
            to_balance=balances[target] + step.target_change,
            from_user_id=owners[source],
            to_user_id=owners[target],
        )
        results.append(TransferResult(record))
    return results


def basic_parameters(
    plan: BasicPlan,
    refused: Mapping[ScopedKey, Outcome] = MappingProxyType({}),
    predicted: Mapping[UUID, ExpectedState] = MappingProxyType({}),
) -> tuple[Any, ...]:
    """The parameters of `POST_BASIC`."""
    accounts, steps = plan.accounts.values(), plan.steps
    requests = [step.request for step in steps]
    values = {
        "lock_timeout": str(LOCK_WAIT_MS),
        "a_id": list(plan.accounts),
        "a_lowest_change": [each.lowest_change for each in accounts],
        "a_highest_change": [each.highest_change for each in accounts],
        "a_owner": omit_nulls([each.owner for each in accounts]),
        "a_currency": omit_nulls([each.currency for each in accounts]),
        "t_id": [step.id for step in steps],
        "t_source": [step.source for step in steps],
        "t_source_entry": [step.source_entry for step in steps],
        "t_target": [step.target for step in steps],
        "t_target_entry": [step.target_entry for step in steps],
        "t_amount": [step.amount for step in steps],
        "t_description": omit_nulls([request.description for request in requests]),
        "t_metadata": omit_nulls([to_json(request.metadata) for request in requests]),
        "t_effective_at": omit_nulls([request.effective_at for request in requests]),
        "t_group_id": omit_nulls([step.group_id for step in steps]),
        "t_posted_by": omit_nulls([request.posted_by for request in requests]),
        "k_scope": omit_nulls([request.scope or None for request in requests]),
        "k_key": omit_nulls([request.key for request in requests]),
        "k_fingerprint": plan.fingerprints,
        "r_scope": [scope for scope, _ in refused],
        "r_key": [key for _, key in refused],
        "r_fingerprint": [each.fingerprint for each in refused.values()],
        "r_refusal": [each.result.refusal for each in refused.values()],
        "p_id": list(predicted),
        "p_revision": [each.revision for each in predicted.values()],
        "p_lowest_balance": [each.lowest_balance for each in predicted.values()],
        "p_highest_balance": [each.highest_balance for each in predicted.values()],
    }
    return tuple(values[name] for name in _NAMES)


_TYPES: Final[dict[str, TypeEngine[Any]]] = {
    "lock_timeout": String(),
    "a_id": ARRAY(Uuid()),
    "a_lowest_change": ARRAY(BigInteger()),
    "a_highest_change": ARRAY(BigInteger()),
    "a_owner": ARRAY(Uuid()),
    "a_currency": ARRAY(String()),
    "t_id": ARRAY(Uuid()),
    "t_source": ARRAY(Integer()),
    "t_source_entry": ARRAY(Integer()),
    "t_target": ARRAY(Integer()),
    "t_target_entry": ARRAY(Integer()),
    "t_amount": ARRAY(BigInteger()),
    "t_description": ARRAY(String()),
    "t_metadata": ARRAY(String()),
    "t_effective_at": ARRAY(DateTime(timezone=True)),
    "t_group_id": ARRAY(Uuid()),
    "t_posted_by": ARRAY(Uuid()),
    "k_scope": ARRAY(String()),
    "k_key": ARRAY(String()),
    "k_fingerprint": ARRAY(LargeBinary()),
    "r_scope": ARRAY(String()),
    "r_key": ARRAY(String()),
    "r_fingerprint": ARRAY(LargeBinary()),
    "r_refusal": ARRAY(String()),
    "p_id": ARRAY(Uuid()),
    "p_revision": ARRAY(BigInteger()),
    "p_lowest_balance": ARRAY(BigInteger()),
    "p_highest_balance": ARRAY(BigInteger()),
}
# Compiled once. Otherwise SQLAlchemy would compute the statement's cache key, and convert each array, every time.
_STATEMENT: Final = text(Path(__file__).with_name("post_basic.sql").read_text(encoding="utf-8")).bindparams(
    *(bindparam(name, type_=type_) for name, type_ in _TYPES.items())
)
_COMPILED: Final = _STATEMENT.compile(dialect=dialect())  # type: ignore[no-untyped-call]
POST_BASIC: Final = str(_COMPILED)
_WAITING: Final = "FOR NO KEY UPDATE OF account"
assert POST_BASIC.count(_WAITING) == 1
_POST_BASIC_SKIP_LOCKED: Final = POST_BASIC.replace(_WAITING, f"{_WAITING} SKIP LOCKED")
_NAMES: Final = tuple(_COMPILED.positiontup or ())
