"""What can be asked of the ledger, and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple, Self, TypeAlias
from uuid import UUID

import orjson

from shop.ledger.models import TransferState

MAX_AMOUNT: Final = 2**62  # two of them still fit the column
MAX_LINKED: Final = 100
MAX_PENDING_SECONDS: Final = 30 * 86_400

ScopedKey: TypeAlias = tuple[str, str]


class Refusal(StrEnum):
    """Why a transfer isn't made. The codes are part of the interface and stay."""

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
    LINKED_TRANSFER_FAILED = "linked_transfer_failed"
    KEY_REUSED = "key_reused"


class TransferRefused(ValueError):
    """The rules of the books don't allow the transfer; nothing was moved."""

    def __init__(self, code: Refusal) -> None:
        self.code = code
        super().__init__(_EXPLANATIONS[code])


_EXPLANATIONS: Final[dict[Refusal, str]] = {
    Refusal.AMOUNT_OUT_OF_RANGE: f"the amount must be from 1 to {MAX_AMOUNT}",
    Refusal.SAME_ACCOUNT: "the two accounts are the same",
    Refusal.UNKNOWN_ACCOUNT: "there is no such account",
    Refusal.CURRENCY_MISMATCH: "the accounts, or the order, are in different currencies",
    Refusal.INSUFFICIENT_FUNDS: "what is free of the balance, and what the account may be overdrawn, don't cover it",
    Refusal.BALANCE_OUT_OF_RANGE: "a balance would be larger than can be kept",
    Refusal.LIMIT_EXCEEDED: "the balance would be more than the account may hold",
    Refusal.ACCOUNT_FROZEN: "one of the accounts is frozen",
    Refusal.ACCOUNT_CLOSED: "one of the accounts is closed",
    Refusal.ALREADY_REVERSED: "the whole of the transfer has been reversed already",
    Refusal.EXCEEDS_REVERSIBLE_AMOUNT: "that is more than is left of the transfer to be reversed",
    Refusal.REVERSAL_MISMATCH: "there is no such transfer to be reversed between these accounts",
    Refusal.NOT_POSTED: "the transfer is pending or voided, and only a posted one can be reversed",
    Refusal.REVERSAL_BEFORE_ORIGINAL: "a reversal can't take effect before the transfer that it reverses",
    Refusal.UNKNOWN_PENDING: "there is no such pending transfer between these accounts",
    Refusal.ALREADY_POSTED: "the pending transfer has been posted already",
    Refusal.ALREADY_VOIDED: "the pending transfer has been voided already",
    Refusal.PENDING_EXPIRED: "the time of the pending transfer is over",
    Refusal.EXCEEDS_HELD_AMOUNT: "that is more than the pending transfer holds",
    Refusal.LINKED_TRANSFER_FAILED: "a transfer that this one is linked to was refused",
    Refusal.KEY_REUSED: "the idempotency key was used for another request",
}


class TransferRequest(NamedTuple):
    """`amount` is in the smallest unit. `currency`, if given, must be that of both accounts. `effective_at` is the time
    when the transfer takes effect, now by default. The transfer is posted now in any case.

    A request has at most one of these: `pending_seconds` holds the amount for at most that time, until it is posted or
    voided. `posts` and `voids` name a pending transfer. `reverses` names a transfer that this one returns, in the
    opposite direction. To post or reverse without an `amount` means the whole amount that is left. A reversal takes
    effect now, or together with the transfer that it reverses if that is later. It is refused if its `effective_at` is
    before that of the reversed transfer.

    `linked`: this request and the next one of the list are posted together or not at all. `key` is the idempotency key,
    `scope` is its owner.
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

    def asked(self) -> list[object]:
        """The contents of the fingerprint: all but the key. A newer field is left out if it isn't used, so that old
        keys keep their fingerprints."""
        asked: list[object] = [
            self.from_account_id,
            self.to_account_id,
            self.amount if self.amount is None or abs(self.amount) < 2**63 else _digits(self.amount),
            self.currency,
            self.description,
            self.reverses,
        ]
        if not (self.is_basic and self.metadata is None and self.effective_at is None and self.reverses is None):
            later = ("metadata", "effective_at", "pending_seconds", "posts", "voids")
            if given := {name: value for name in later if (value := getattr(self, name)) is not None}:
                if self.metadata is not None:
                    given["metadata"] = dict(self.metadata)  # so that all kinds of mappings have the same fingerprint
                if self.effective_at is not None:
                    given["effective_at"] = self.effective_at.astimezone(UTC)
                asked.append(given)
        return asked

    @property
    def is_basic(self) -> bool:
        """Whether this is a basic transfer: no hold, no posting, no voiding, no reversal."""
        return self.pending_seconds is None and self.posts is None and self.voids is None and self.reverses is None


class NamedTransfer(NamedTuple):
    """A transfer that a request names, with its accounts."""

    id: UUID
    from_account_id: UUID
    to_account_id: UUID

    def posting(self, amount: int | None = None, *, key: str | None = None, scope: str = "") -> TransferRequest:
        """The request that posts it: `amount`, or the whole hold."""
        return TransferRequest(self.from_account_id, self.to_account_id, amount, posts=self.id, key=key, scope=scope)

    def voiding(self, *, key: str | None = None, scope: str = "") -> TransferRequest:
        """The request that voids it."""
        return TransferRequest(self.from_account_id, self.to_account_id, None, voids=self.id, key=key, scope=scope)

    def reversal(
        self,
        amount: int | None = None,
        *,
        description: str | None = None,
        effective_at: datetime | None = None,
        key: str | None = None,
        scope: str = "",
    ) -> TransferRequest:
        """The request that reverses it: `amount`, or all that isn't reversed yet."""
        return TransferRequest(
            self.to_account_id,
            self.from_account_id,
            amount,
            description=f"reversal of {self.id}" if description is None else description,
            reverses=self.id,
            key=key,
            scope=scope,
            effective_at=effective_at,
        )


class TransferRecord(NamedTuple):
    """A transfer's row. It is not a mapped object: to create one would take most of the time of a decision.

    The versions are the numbers of its two entries. A pending or voided transfer has none. The balances are those of
    its accounts after these entries. `held_amount` is the amount that the transfer held or still holds, None if it was
    never pending. `reversed_amount` is the part of it that has been reversed. It is 0 in the result of the request that
    made the transfer, and in every replay.
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
    state: TransferState = TransferState.POSTED
    expires_at: datetime | None = None
    held_amount: int | None = None
    from_balance: int | None = None
    to_balance: int | None = None
    reversed_amount: int = 0


class _Result(NamedTuple):
    transfer: TransferRecord | None
    refusal: Refusal | None
    replayed: bool


class TransferResult(_Result):
    """Either a transfer or a refusal. `replayed`: it is the answer to an earlier request under the same key.

    Raises `ValueError` for neither or both.
    """

    __slots__ = ()

    def __new__(
        cls, transfer: TransferRecord | None = None, refusal: Refusal | None = None, replayed: bool = False
    ) -> Self:
        if (transfer is None) is (refusal is None):
            raise ValueError(f"a result is a transfer or a refusal, not {transfer!r} and {refusal!r}")
        return super().__new__(cls, transfer, refusal, replayed)

    def again(self) -> TransferResult:
        """The same result as a replay."""
        return TransferResult(self.transfer, self.refusal, replayed=True)

    def unwrap(self) -> TransferRecord:
        """The transfer; raises `TransferRefused`."""
        if self.refusal is not None:
            raise TransferRefused(self.refusal)
        assert self.transfer is not None
        return self.transfer


def chains(requests: Sequence[TransferRequest]) -> Iterator[Sequence[TransferRequest]]:
    """The requests, grouped into chains of linked ones. Raises `ValueError` if the last one is linked, if more than 100
    are linked, or if only some of the linked ones have keys."""
    first = 0
    for number, request in enumerate(requests, start=1):
        if request.linked:
            continue
        length = number - first
        if length == 1:
            yield (request,)
        else:
            if length > MAX_LINKED:
                raise ValueError(f"at most {MAX_LINKED} transfers are linked, not {length}")
            chain = requests[first:number]
            if len({each.key is None for each in chain}) > 1:
                raise ValueError("either all linked transfers have keys or none: otherwise they couldn't be sent again")
            yield chain
        first = number
    if first < len(requests):
        raise ValueError("the last request is linked to a next one, and there is none")


def linked_keys(key: str) -> list[str]:
    """The keys of a chain's transfers: the client's key for the first one, and that key with a number for the others.

    The key and the number are separated by a space, which a client's key can't have.
    """
    return [key, *(f"{key} {place}" for place in range(1, MAX_LINKED))]


def fingerprints(chain: Sequence[TransferRequest]) -> list[bytes]:
    """A digest of what each asks for; of linked ones also of all that they are linked to."""
    if len(chain) == 1:
        return [hashlib.sha256(_dumped(chain[0].asked())).digest()]
    together = _dumped([request.asked() for request in chain])
    return [hashlib.sha256(together + b"%d" % place).digest() for place in range(len(chain))]


def _digits(number: int) -> str:
    """Hexadecimal for a large number: Python doesn't write more than 4,300 decimal digits."""
    return str(number) if number.bit_length() < 10_000 else hex(number)


def _dumped(asked: list[object]) -> bytes:
    return orjson.dumps(asked, default=str, option=orjson.OPT_SORT_KEYS)
