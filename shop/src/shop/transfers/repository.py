"""Finding transfers, and writing the books: three statements for any number of requests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    LargeBinary,
    String,
    Uuid,
    any_,
    bindparam,
    column,
    func,
    select,
    text,
)
from sqlalchemy.orm import aliased, attributes
from sqlalchemy.orm.util import identity_key
from sqlalchemy.types import TypeEngine

from howdah import AsyncRepository
from shop.accounts.models import Account, AccountState, Entry
from shop.transfers.models import IdempotencyKey, Transfer

ScopedKey: TypeAlias = tuple[str, str]


class PostedTransfer(NamedTuple):
    """A transfer's row. No mapped object: making one is most of the time in which a transfer is decided."""

    id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount: int
    currency: str
    description: str | None
    reverses_id: UUID | None
    reversed_total: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the first request under a key, whose digest is `fingerprint`, came to."""

    fingerprint: bytes
    transfer_id: UUID | None
    refusal: str | None


@dataclass(slots=True)
class LockedAccount:
    """An account's row as it stands under the lock, and then as it is to be."""

    id: UUID
    currency: str
    balance: int
    allows_negative: bool
    overdraft_limit: int
    balance_limit: int | None
    state: AccountState
    version: int
    moved: bool = False


@dataclass(slots=True)
class Reversible:
    """A transfer that is to be reversed, and how much of it has been."""

    id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount: int
    taken_back: int


@dataclass(slots=True)
class Writing:
    """What a call of `post_transfers` amounts to."""

    at: datetime
    transfers: list[PostedTransfer] = field(default_factory=list)
    entries: list[tuple[UUID, int, UUID, int, int]] = field(default_factory=list)
    """Account, version, transfer, amount, balance after."""
    accounts: list[LockedAccount] = field(default_factory=list)
    keys: dict[ScopedKey, Outcome] = field(default_factory=dict)


class TransferRepository(AsyncRepository[Transfer]):
    async def lock_accounts(self, ids: Iterable[UUID]) -> dict[UUID, LockedAccount]:
        """Those of the accounts that exist, locked in key order until the transaction ends."""
        rows = await self.session.execute(LOCK, {"ids": list(ids)})
        return {row.id: LockedAccount(*row) for row in rows}

    async def outcomes_of(self, keys: Collection[ScopedKey]) -> dict[ScopedKey, Outcome]:
        """What came of these (scope, key) pairs, any number, of those that were used before."""
        if not keys:
            return {}
        found = await self.session.execute(
            OUTCOMES, {"scopes": [scope for scope, _ in keys], "keys": [key for _, key in keys]}
        )
        return {(row.scope, row.key): Outcome(row.fingerprint, row.transfer_id, row.refusal) for row in found}

    async def posted(self, transfer_ids: Collection[UUID]) -> dict[UUID, PostedTransfer]:
        """These transfers."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_POSTED, {"ids": list(transfer_ids)})
        return {row.id: PostedTransfer(*row) for row in rows}

    async def reversible(self, transfer_ids: Collection[UUID]) -> dict[UUID, Reversible]:
        """Those of these transfers that exist, and how much of each has been taken back."""
        if not transfer_ids:
            return {}
        rows = await self.session.execute(_REVERSIBLE, {"ids": list(transfer_ids)})
        return {row.id: Reversible(*row) for row in rows}

    async def write(self, writing: Writing) -> bool:
        """Write transfers, entries, balances and keys in one statement. False if one of the keys was used meanwhile by
        a transaction that this one didn't wait for: then the whole transaction must be rolled back and begun again."""
        keys = sorted(writing.keys)  # in one order for all, so that two can't wait for each other
        outcomes = [writing.keys[pair] for pair in keys]
        values = {
            **_columns("t", _TRANSFER, writing.transfers),
            **_columns("e", _ENTRY, writing.entries),
            **_columns("a", _BALANCE, [(each.id, each.balance, each.version) for each in writing.accounts]),
            **_columns(
                "k",
                _KEY,
                [
                    (*pair, each.fingerprint, each.transfer_id, each.refusal)
                    for pair, each in zip(keys, outcomes, strict=True)
                ],
            ),
            "at": writing.at,
        }
        (new_keys,) = (await self.session.execute(WRITE, values)).one()
        self._show_held(writing)
        return bool(new_keys == len(keys))

    def _show_held(self, writing: Writing) -> None:
        """What objects of the session hold is what was written."""
        held = self.session.identity_map
        if not held:
            return
        for account in writing.accounts:
            instance = held.get(identity_key(Account, account.id))
            if instance is not None:
                attributes.set_committed_value(instance, "balance", account.balance)
                attributes.set_committed_value(instance, "version", account.version)
                attributes.set_committed_value(instance, "updated_at", writing.at)


_TRANSFER: Final[dict[str, TypeEngine[Any]]] = {
    "id": Uuid(),
    "from_account_id": Uuid(),
    "to_account_id": Uuid(),
    "amount": BigInteger(),
    "currency": String(),
    "description": String(),
    "reverses_id": Uuid(),
    "reversed_total": BigInteger(),
    "created_at": DateTime(timezone=True),
}
_ENTRY: Final[dict[str, TypeEngine[Any]]] = {
    "account_id": Uuid(),
    "version": BigInteger(),
    "transfer_id": Uuid(),
    "amount": BigInteger(),
    "balance_after": BigInteger(),
}
_BALANCE: Final[dict[str, TypeEngine[Any]]] = {"id": Uuid(), "balance": BigInteger(), "version": BigInteger()}
_KEY: Final[dict[str, TypeEngine[Any]]] = {
    "scope": String(),
    "key": String(),
    "fingerprint": LargeBinary(),
    "transfer_id": Uuid(),
    "refusal": String(),
}


def _columns(prefix: str, kinds: dict[str, TypeEngine[Any]], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """A parameter for each column, as `_given` names them."""
    turned = zip(*rows, strict=True) if rows else [[]] * len(kinds)
    return {f"{prefix}_{name}": list(values) for name, values in zip(kinds, turned, strict=True)}


def _given(prefix: str, kinds: dict[str, TypeEngine[Any]]) -> str:
    return f"unnest({', '.join(f':{prefix}_{name}' for name in kinds)}) AS given ({', '.join(kinds)})"


LOCK: Final = (
    select(*(getattr(Account, each.name) for each in fields(LockedAccount) if each.name != "moved"))
    .where(Account.id == any_(bindparam("ids", type_=ARRAY(Uuid()))))
    .order_by(Account.id)
    .with_for_update(key_share=True)
)

_POSTED: Final = select(*(getattr(Transfer, name) for name in PostedTransfer._fields)).where(
    Transfer.id == any_(bindparam("ids", type_=ARRAY(Uuid())))
)

_reversal: Final = aliased(Transfer)
_REVERSIBLE: Final = select(
    Transfer.id,
    Transfer.from_account_id,
    Transfer.to_account_id,
    Transfer.amount,
    select(func.coalesce(func.max(_reversal.reversed_total), 0))
    .where(_reversal.reverses_id == Transfer.id)
    .scalar_subquery(),
).where(Transfer.id == any_(bindparam("ids", type_=ARRAY(Uuid()))))

_pairs: Final = (
    func.unnest(bindparam("scopes", type_=ARRAY(String())), bindparam("keys", type_=ARRAY(String())))
    .table_valued(column("scope", String()), column("key", String()))
    .render_derived(name="given")
)
OUTCOMES: Final = select(
    IdempotencyKey.scope,
    IdempotencyKey.key,
    IdempotencyKey.fingerprint,
    IdempotencyKey.transfer_id,
    IdempotencyKey.refusal,
).join(_pairs, (IdempotencyKey.scope == _pairs.c.scope) & (IdempotencyKey.key == _pairs.c.key))

WRITE: Final = (
    text(f"""
        WITH new_transfers AS (
            INSERT INTO {Transfer.__tablename__} ({", ".join(_TRANSFER)})
            SELECT * FROM {_given("t", _TRANSFER)}
        ), new_entries AS (
            INSERT INTO {Entry.__tablename__} ({", ".join(_ENTRY)}, created_at)
            SELECT *, :at FROM {_given("e", _ENTRY)}
        ), new_balances AS (
            UPDATE {Account.__tablename__} AS account
            SET balance = given.balance, version = given.version, updated_at = :at
            FROM {_given("a", _BALANCE)} WHERE account.id = given.id
        ), new_keys AS (
            INSERT INTO {IdempotencyKey.__tablename__} ({", ".join(_KEY)}, created_at)
            SELECT *, :at FROM {_given("k", _KEY)}
            ON CONFLICT DO NOTHING RETURNING 1
        )
        SELECT count(*) AS new_keys FROM new_keys
        """)  # noqa: S608  # of names from above
    .bindparams(
        *(
            bindparam(f"{prefix}_{name}", type_=ARRAY(kind))
            for prefix, kinds in (("t", _TRANSFER), ("e", _ENTRY), ("a", _BALANCE), ("k", _KEY))
            for name, kind in kinds.items()
        ),
        bindparam("at", type_=DateTime(timezone=True)),
    )
    .columns(new_keys=BigInteger)
)
