"""Requests to the ledger, and their results: `TransferRequest`, `TransferRecord`, `TransferResult`, `Refusal`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from operator import attrgetter
from typing import Final, NamedTuple, Self, TypeAlias
from uuid import UUID

import orjson

from shop.ledger.models import TransferState

MAX_AMOUNT: Final = 2**62  # half of the largest bigint
MAX_BALANCE: Final = 2**63 - 1  # the largest bigint
MAX_LINKED: Final = 100
MAX_PENDING_SECONDS: Final = 30 * 86_400  # 30 days

ScopedKey: TypeAlias = tuple[str, str]


class Refusal(StrEnum):
    """Why a transfer was not posted. The codes are part of the API and don't change."""

    AMOUNT_OUT_OF_RANGE = "amount_out_of_range"
    SAME_ACCOUNT = "same_account"
    UNKNOWN_ACCOUNT = "unknown_account"
    CURRENCY_MISMATCH = "currency_mismatch"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    BALANCE_OUT_OF_RANGE = "balance_out_of_range"
    LIMIT_EXCEEDED = "limit_exceeded"
    ACCOUNT_FROZEN = "account_frozen"
    ACCOUNT_CLOSED = "account_closed"
    ALREADY_REVERSED = "already_reversed"
    EXCEEDS_REVERSIBLE_AMOUNT = "exceeds_reversible_amount"
    REVERSAL_MISMATCH = "reversal_mismatch"
    NOT_POSTED = "not_posted"
    REVERSAL_BEFORE_ORIGINAL = "reversal_before_original"
    UNKNOWN_PENDING = "unknown_pending"
    ALREADY_POSTED = "already_posted"
    ALREADY_VOIDED = "already_voided"
    PENDING_EXPIRED = "pending_expired"
    EXCEEDS_HELD_AMOUNT = "exceeds_held_amount"
    NOT_PAYEE = "not_payee"
    COUNTERPARTY_UNAVAILABLE = "counterparty_unavailable"
    LINKED_TRANSFER_FAILED = "linked_transfer_failed"
    KEY_REUSED = "key_reused"


class TransferRefused(ValueError):
    """The ledger decided not to post a transfer. No money was moved. `code` says why."""

    def __init__(self, code: Refusal) -> None:
        self.code = code
        super().__init__(_EXPLANATIONS[code])


_EXPLANATIONS: Final[dict[Refusal, str]] = {
    Refusal.AMOUNT_OUT_OF_RANGE: f"the amount must be from 1 to {MAX_AMOUNT}",
    Refusal.SAME_ACCOUNT: "both accounts are the same: name two different accounts",
    Refusal.UNKNOWN_ACCOUNT: "one of the accounts doesn't exist: check both account ids",
    Refusal.CURRENCY_MISMATCH: (
        "the accounts have different currencies, or the order has another currency than the accounts: use other "
        "accounts"
    ),
    Refusal.INSUFFICIENT_FUNDS: (
        "the amount is more than the available balance plus the overdraft limit: fund the account, then send the "
        "request with a new idempotency key"
    ),
    Refusal.BALANCE_OUT_OF_RANGE: "a balance would be outside the range of 64-bit integers: send a smaller amount",
    Refusal.LIMIT_EXCEEDED: (
        "the receiving account's balance would be higher than its balance_limit: send a smaller amount, or raise the "
        "limit and send the request with a new idempotency key"
    ),
    Refusal.ACCOUNT_FROZEN: (
        "one of the accounts is frozen: set its state to open, then send the request with a new idempotency key"
    ),
    Refusal.ACCOUNT_CLOSED: "one of the accounts is closed and can't be opened again: use another account",
    Refusal.ALREADY_REVERSED: "the whole amount of the transfer has been reversed already: nothing is left to reverse",
    Refusal.EXCEEDS_REVERSIBLE_AMOUNT: (
        "the amount is more than is left to reverse: send a smaller amount, or none to reverse all that is left"
    ),
    Refusal.REVERSAL_MISMATCH: (
        "no transfer with this id goes between these accounts in the opposite direction: check the id and the accounts"
    ),
    Refusal.NOT_POSTED: (
        "the transfer to reverse is pending or voided, and only a posted transfer can be reversed: void it if it is "
        "pending"
    ),
    Refusal.REVERSAL_BEFORE_ORIGINAL: (
        "a reversal can't take effect before the transfer that it reverses: send a later effective_at, or leave it out"
    ),
    Refusal.UNKNOWN_PENDING: (
        "no pending transfer with this id goes between these accounts: check the id and the accounts"
    ),
    Refusal.ALREADY_POSTED: "the transfer has been posted already: reverse it to return the money",
    Refusal.ALREADY_VOIDED: "the pending transfer has been voided already: create a new transfer to move the money",
    Refusal.PENDING_EXPIRED: "the pending transfer has expired and can't be posted: create a new transfer",
    Refusal.EXCEEDS_HELD_AMOUNT: (
        "the amount is more than the pending transfer holds: send a smaller amount, or none to post the whole hold"
    ),
    Refusal.NOT_PAYEE: (
        "only the owner of the receiving account may post, void or reverse this transfer: ask the payee"
    ),
    Refusal.COUNTERPARTY_UNAVAILABLE: (
        "the other account can't take part in this transfer, and only its owner can see why: ask the owner, then send "
        "the request with a new idempotency key"
    ),
    Refusal.LINKED_TRANSFER_FAILED: (
        "another transfer of the linked chain was refused, so none of them was posted: correct that one, then send "
        "the chain with a new idempotency key"
    ),
    Refusal.KEY_REUSED: "the idempotency key was used for another request: send this request with a new key",
}


class TransferRequest(NamedTuple):
    """A request to transfer, hold, post, void or reverse an amount.

    `amount` is in the currency's smallest unit. If `currency` is set, both accounts must have it. `effective_at` is the
    time when the transfer takes effect, by default now. The transfer is posted immediately, whatever its `effective_at`
    is.

    At most one of the following fields may be set. `pending_seconds` makes the request a hold, which expires after this
    time unless it is posted or voided. `posts` or `voids` is the id of the pending transfer to post or void. `reverses`
    is the id of the transfer to reverse; the accounts of the request are in the opposite direction. A request that
    posts or reverses may leave out `amount`: then it posts the whole hold, or reverses all that isn't reversed yet. By
    default a reversal takes effect now, or at the `effective_at` of the reversed transfer if that is later. It is
    refused if its own `effective_at` is earlier.

    `linked`: this request and the next one of the list are posted together or not at all. `key` is the idempotency key,
    `scope` is its owner.

    `posted_by` is the customer (`users.id`) on whose behalf the request is posted; None for operators and the system. A
    customer transfers, holds and reverses only from their own accounts, and posts and voids only holds to their own
    accounts (see `shop.ledger.ownership`).
    """

    from_account_id: UUID
    to_account_id: UUID
    amount: int | None
    currency: str | None = None
    description: str | None = None
    reverses: UUID | None = None
    key: str | None = None
    scope: str = ""
    metadata: Mapping[str, str] | None = None
    effective_at: datetime | None = None
    pending_seconds: int | None = None
    posts: UUID | None = None
    voids: UUID | None = None
    linked: bool = False
    posted_by: UUID | None = None

    def fingerprint_fields(self) -> list[object]:
        """The fields from which the fingerprint is computed: all except `key`, `scope`, `linked` and
        `posted_by`.

        A field that was added to the class later is included only if it is set, so that older stored fingerprints stay
        valid.
        """
        contents: list[object] = [
            self.from_account_id,
            self.to_account_id,
            self.amount if self.amount is None or abs(self.amount) < 2**63 else _number_text(self.amount),
            self.currency,
            self.description,
            self.reverses,
        ]
        values = _later_values(self)
        if values.count(None) < len(values):
            later = {name: value for name, value in zip(_LATER_FIELDS, values, strict=True) if value is not None}
            if self.metadata is not None:
                later["metadata"] = dict(self.metadata)  # so that all kinds of mappings have the same fingerprint
            if self.effective_at is not None:
                later["effective_at"] = self.effective_at.astimezone(UTC)
            contents.append(later)
        return contents

    @property
    def is_basic(self) -> bool:
        """Whether this is a basic transfer: no hold, no posting, no voiding, no reversal."""
        return self.pending_seconds is None and self.posts is None and self.voids is None and self.reverses is None


# The fields of the first version are always in the fingerprint. The fields of the key never are. `posted_by` isn't
# either, because `scope` belongs to the same user.
_FIRST_FIELDS: Final = ("from_account_id", "to_account_id", "amount", "currency", "description", "reverses")
_KEY_FIELDS: Final = ("key", "scope", "linked", "posted_by")
_LATER_FIELDS: Final = tuple(name for name in TransferRequest._fields if name not in (*_FIRST_FIELDS, *_KEY_FIELDS))
_later_values: Final = attrgetter(*_LATER_FIELDS)


class NamedTransfer(NamedTuple):
    """A transfer that a request posts, voids or reverses, with its accounts."""

    id: UUID
    from_account_id: UUID
    to_account_id: UUID

    def posting(
        self, amount: int | None = None, *, key: str | None = None, scope: str = "", posted_by: UUID | None = None
    ) -> TransferRequest:
        """The request to post this transfer: `amount`, or the whole hold."""
        return TransferRequest(
            from_account_id=self.from_account_id,
            to_account_id=self.to_account_id,
            amount=amount,
            posts=self.id,
            key=key,
            scope=scope,
            posted_by=posted_by,
        )

    def voiding(self, *, key: str | None = None, scope: str = "", posted_by: UUID | None = None) -> TransferRequest:
        """The request to void this transfer."""
        return TransferRequest(
            from_account_id=self.from_account_id,
            to_account_id=self.to_account_id,
            amount=None,
            voids=self.id,
            key=key,
            scope=scope,
            posted_by=posted_by,
        )

    def reversal(
        self,
        amount: int | None = None,
        *,
        description: str | None = None,
        effective_at: datetime | None = None,
        key: str | None = None,
        scope: str = "",
        posted_by: UUID | None = None,
    ) -> TransferRequest:
        """The request to reverse this transfer: `amount`, or all that isn't reversed yet."""
        return TransferRequest(
            from_account_id=self.to_account_id,
            to_account_id=self.from_account_id,
            amount=amount,
            description=f"reversal of {self.id}" if description is None else description,
            reverses=self.id,
            key=key,
            scope=scope,
            effective_at=effective_at,
            posted_by=posted_by,
        )


class TransferRecord(NamedTuple):
    """A transfer's row. It isn't a mapped object, because creating a mapped object would take longer than the rest of a
    decision.

    It has a field for each mapped column of `shop.ledger.models.Transfer`, with the attribute's name. These fields have
    no defaults. So if a column is added, mypy reports each place that creates a record without it.

    `from_user_id` and `to_user_id` are the owners of its accounts, None if they have none or aren't known. A pending or
    voided transfer has no entry numbers. `from_balance` and `to_balance` are the balances of its accounts
    after its entries. `held_amount` is the amount that the transfer held or still holds, None if it was never pending.
    `reversed_amount` is the part of `amount` that has been reversed. It is 0 in the result of the request that posted
    the transfer, and in every replay.
    """

    id: UUID
    from_account_id: UUID
    from_entry_number: int | None
    to_account_id: UUID
    to_entry_number: int | None
    amount: int
    currency: str
    description: str | None
    details: Mapping[str, str] | None
    effective_at: datetime
    reverses_id: UUID | None
    reversed_total: int | None
    group_id: UUID | None
    created_at: datetime
    posted_by: UUID | None
    state: TransferState = TransferState.POSTED
    expires_at: datetime | None = None
    held_amount: int | None = None
    from_balance: int | None = None
    to_balance: int | None = None
    reversed_amount: int = 0
    from_user_id: UUID | None = None
    to_user_id: UUID | None = None


class _Result(NamedTuple):
    transfer: TransferRecord | None
    refusal: Refusal | None
    replayed: bool


class TransferResult(_Result):
    """Either a transfer or a refusal. `replayed`: it is the stored result of an earlier request with the same key.

    Raises `ValueError` for neither or both.
    """

    __slots__ = ()

    def __new__(
        cls, transfer: TransferRecord | None = None, refusal: Refusal | None = None, replayed: bool = False
    ) -> Self:
        if (transfer is None) is (refusal is None):
            raise ValueError(f"pass either transfer or refusal, not {transfer!r} and {refusal!r}")
        return super().__new__(cls, transfer, refusal, replayed)

    def as_replay(self) -> TransferResult:
        """The same result as a replay."""
        return TransferResult(self.transfer, self.refusal, replayed=True)

    def unwrap(self) -> TransferRecord:
        """The transfer; raises `TransferRefused`."""
        if self.refusal is not None:
            raise TransferRefused(self.refusal)
        assert self.transfer is not None
        return self.transfer


def split_into_chains(requests: Sequence[TransferRequest]) -> Iterator[Sequence[TransferRequest]]:
    """The requests, grouped into chains of linked ones. A request that isn't linked is a chain of one.

    Raises `ValueError` if the last request is linked, if a chain has more than 100 requests, or if only some of its
    requests have keys.
    """
    first = 0
    for number, request in enumerate(requests, start=1):
        if request.linked:
            continue
        length = number - first
        if length == 1:
            yield (request,)
        else:
            if length > MAX_LINKED:
                raise ValueError(f"linked: a chain of {length} transfers is too long; link at most {MAX_LINKED}")
            chain = requests[first:number]
            if len({each.key is None for each in chain}) > 1:
                raise ValueError(
                    "key: only some of the linked transfers have a key, so sending the chain again could post twice; "
                    "give a key to all of them or to none"
                )
            yield chain
        first = number
    if first < len(requests):
        raise ValueError("linked: the last request is linked to the next one, and there is none; set linked=False")


def chain_keys(key: str) -> list[str]:
    """The keys of a chain's transfers: the client's key for the first one, and that key with a number for the others.

    The key and the number are separated by a space, which a client's key can't have.
    """
    return [key, *(f"{key} {position}" for position in range(1, MAX_LINKED))]


def compute_fingerprints(chain: Sequence[TransferRequest]) -> list[bytes]:
    """The fingerprint of each request of the chain. If there are several, each fingerprint depends on all requests and
    on the position."""
    if len(chain) == 1:
        return [hashlib.sha256(_to_json(chain[0].fingerprint_fields())).digest()]
    together = _to_json([request.fingerprint_fields() for request in chain])
    return [hashlib.sha256(together + b"%d" % position).digest() for position in range(len(chain))]


def _number_text(number: int) -> str:
    """The number as text. A large number is hexadecimal, because Python raises an error above 4,300 decimal digits."""
    return str(number) if number.bit_length() < 10_000 else hex(number)


def _to_json(contents: list[object]) -> bytes:
    return orjson.dumps(contents, default=str, option=orjson.OPT_SORT_KEYS)
