"""Writing the books: one statement for any number of transfers, two if some are pending or settled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson
from sqlalchemy import ARRAY, BigInteger, Boolean, DateTime, LargeBinary, String, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import attributes
from sqlalchemy.orm.util import identity_key
from sqlalchemy.types import TypeEngine

from howdah import UniqueViolation
from shop.accounts.models import Account, Entry
from shop.transfers.books import BookAccount, Books
from shop.transfers.models import IdempotencyKey, PendingTransfer, Transfer

_Kinds = dict[str, TypeEngine[Any]]


class KeyInUse(Exception):
    """Another transaction has used one of the idempotency keys meanwhile: roll this one back, and begin it again."""


async def write(session: AsyncSession, books: Books) -> None:
    """Write what was decided under locks. Raises `KeyInUse` if one of the keys was used meanwhile by a transaction
    that this one didn't wait for."""
    holding = bool(books.holds or books.settled())
    if holding:
        await _write_holds(session, books)
    moved = books.moved()
    with _keys_not_in_use():
        await session.execute(WRITE_WITH_HOLDS if holding else WRITE, _values(books, moved, holding=holding))
    _show_held(session, moved, books.at)


def values_to_write(books: Books, assumed: Mapping[UUID, tuple[int, int]]) -> dict[str, Any]:
    """What `write_if` is given: taken at once, for what is decided next changes the accounts further."""
    rows = [
        (id_, books.accounts[id_].balance, books.accounts[id_].version, version, revision or None)
        for id_, (version, revision) in sorted(assumed.items())
    ]
    return _shared_values(books) | _columns("a", _ASSUMED, rows)


async def write_if(connection: AsyncConnection, values: Mapping[str, Any]) -> bool:
    """Write what was decided without locks, if all accounts that it was decided on still have their assumed versions
    and revisions and nobody else has locked one: one statement, which waits for no account. False, and nothing
    written, if not. Raises `KeyInUse`."""
    with _keys_not_in_use():
        return bool((await connection.execute(WRITE_IF, values)).scalar_one())


async def _write_holds(session: AsyncSession, books: Books) -> None:
    rows = [
        (
            each.id,
            each.from_account_id,
            each.to_account_id,
            each.amount,
            each.currency,
            each.description,
            _dumped(each.details),
            each.effective_at,
            each.group_id,
            each.expires_at,
        )
        for each in books.holds
    ]
    settled = books.settled()
    values = _columns("h", _HOLD, rows) | {
        "settled": [each.id for each in settled],
        "states": [each.state.value for each in settled],
        "at": books.at,
    }
    await session.execute(_WRITE_HOLDS, values)


def _show_held(session: AsyncSession, accounts: Iterable[BookAccount], at: datetime) -> None:
    """What objects of the session hold is what was written."""
    kept = session.identity_map
    if not kept:
        return
    for account in accounts:
        instance = kept.get(identity_key(Account, account.id))
        if instance is not None:
            for name in ("balance", "held", "version"):
                attributes.set_committed_value(instance, name, getattr(account, name))
            attributes.set_committed_value(instance, "updated_at", at)


@contextmanager
def _keys_not_in_use() -> Iterator[None]:
    try:
        yield
    except UniqueViolation as error:
        if error.constraint != "pk_idempotency_keys":
            raise
        raise KeyInUse from error


def _values(books: Books, moved: Sequence[BookAccount], *, holding: bool) -> dict[str, Any]:
    rows: Sequence[Sequence[Any]] = [
        (each.id, each.balance, each.version, each.held) if holding else (each.id, each.balance, each.version)
        for each in moved
    ]
    return _shared_values(books) | _columns("a", _ACCOUNT_AND_HELD if holding else _ACCOUNT, rows)


def _shared_values(books: Books) -> dict[str, Any]:
    """The parameters that all the writing statements share."""
    values = _columns("t", _TRANSFER, [each[: len(_TRANSFER) - 2] for each in books.transfers])
    values["t_from_balance"] = [entry[-1] for entry in books.entries[::2]]
    values["t_to_balance"] = [entry[-1] for entry in books.entries[1::2]]
    values["t_effective_at"] = _without([None if each == books.at else each for each in values["t_effective_at"]])
    values["t_metadata"] = [_dumped(each) for each in values["t_metadata"]]
    currencies = set(values["t_currency"])
    if len(currencies) == 1:
        values["t_currency"] = []
    shared = {"currency": currencies.pop() if currencies else None, "at": books.at}
    keys = [
        (
            scope or None,
            key,
            outcome.fingerprint,
            None if outcome.result.transfer is None else outcome.result.transfer.id,
            outcome.result.refusal,
        )
        for (scope, key), outcome in sorted(
            books.keys.items()
        )  # in one order for all, or two could wait for each other
    ]
    return values | _columns("k", _KEY, keys) | shared


def _dumped(details: Mapping[str, str] | None) -> str | None:
    return orjson.dumps(dict(details)).decode() if details else None


def _columns(prefix: str, kinds: _Kinds, rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """A parameter for each column, as `_given` names them."""
    turned = zip(*rows, strict=True) if rows else []
    given = {f"{prefix}_{name}": _without(list(values)) for name, values in zip(kinds, turned, strict=False)}
    return {f"{prefix}_{name}": [] for name in kinds} | given


def _without(values: list[Any]) -> list[Any]:
    """Nothing in place of nothing but None, which is what `unnest` makes of it: most of the time that a parameter takes
    is that of the driver, for each value."""
    return values if values.count(None) < len(values) else []


def _given(prefix: str, kinds: _Kinds) -> str:
    return f"unnest({', '.join(f':{prefix}_{name}' for name in kinds)}) AS given ({', '.join(kinds)})"


def _parameters(*tables: tuple[str, _Kinds]) -> list[Any]:
    return [
        bindparam(f"{prefix}_{name}", type_=ARRAY(kind)) for prefix, kinds in tables for name, kind in kinds.items()
    ] + [bindparam("at", type_=DateTime(timezone=True))]


_TRANSFER: Final[_Kinds] = {
    "id": Uuid(),
    "from_account_id": Uuid(),
    "from_version": BigInteger(),
    "to_account_id": Uuid(),
    "to_version": BigInteger(),
    "amount": BigInteger(),
    "currency": String(),
    "description": String(),
    "metadata": String(),
    "effective_at": DateTime(timezone=True),
    "reverses_id": Uuid(),
    "reversed_total": BigInteger(),
    "group_id": Uuid(),
    "from_balance": BigInteger(),
    "to_balance": BigInteger(),
}
_ACCOUNT: Final[_Kinds] = {"id": Uuid(), "balance": BigInteger(), "version": BigInteger()}
_ACCOUNT_AND_HELD: Final[_Kinds] = {**_ACCOUNT, "held": BigInteger()}
_ASSUMED: Final[_Kinds] = {**_ACCOUNT, "assumed_version": BigInteger(), "assumed_revision": BigInteger()}
_KEY: Final[_Kinds] = {
    "scope": String(),
    "key": String(),
    "fingerprint": LargeBinary(),
    "transfer_id": Uuid(),
    "refusal": String(),
}
_HOLD: Final[_Kinds] = {
    "id": Uuid(),
    "from_account_id": Uuid(),
    "to_account_id": Uuid(),
    "amount": BigInteger(),
    "currency": String(),
    "description": String(),
    "metadata": String(),
    "effective_at": DateTime(timezone=True),
    "group_id": Uuid(),
    "expires_at": DateTime(timezone=True),
}

# Nothing is done unless the accounts are as assumed. Who is waited for could be waiting for us, or take long, so nobody
# is waited for.
_AS_ASSUMED: Final = f"""
        locked AS MATERIALIZED (
            SELECT id, version, revision FROM {Account.__tablename__}
            WHERE id = ANY (:a_id) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
        ), as_assumed AS MATERIALIZED (
            SELECT count(*) = cardinality(:a_id) AS yes
            FROM locked JOIN {_given("a", _ASSUMED)} ON locked.id = given.id
                AND locked.version = assumed_version AND locked.revision = coalesce(assumed_revision, 0)
        ),"""  # noqa: S608  # of names from above


def _write(*, accounts: _Kinds) -> Any:
    """The statement that writes transfers, entries, balances and keys."""
    conditional = accounts is _ASSUMED
    condition = "(SELECT yes FROM as_assumed)" if conditional else "true"
    held = ", held = given.held" if "held" in accounts else ""
    statement = text(f"""
        WITH {_AS_ASSUMED if conditional else ""} given_transfers AS (
            SELECT * FROM {_given("t", _TRANSFER)} WHERE {condition}
        ), new_transfers AS (
            INSERT INTO {Transfer.__tablename__} (
                id, from_account_id, from_version, to_account_id, to_version, amount, currency, description, metadata,
                effective_at, reverses_id, reversed_total, group_id, created_at
            )
            SELECT id, from_account_id, from_version, to_account_id, to_version, amount, coalesce(currency, :currency),
                description, metadata::jsonb, coalesce(effective_at, :at), reverses_id, reversed_total, group_id, :at
            FROM given_transfers
        ), new_entries AS (
            INSERT INTO {Entry.__tablename__} (account_id, version, transfer_id, amount, balance_after, created_at)
            SELECT from_account_id, from_version, id, -amount, from_balance, :at FROM given_transfers
            UNION ALL
            SELECT to_account_id, to_version, id, amount, to_balance, :at FROM given_transfers
        ), new_balances AS (
            UPDATE {Account.__tablename__} AS account
            SET balance = given.balance, version = given.version {held}, updated_at = :at
            FROM {_given("a", accounts)}
            WHERE {condition} AND account.id = given.id {"AND given.version <> assumed_version" if conditional else ""}
        ), new_keys AS (
            INSERT INTO {IdempotencyKey.__tablename__} ({", ".join(_KEY)}, created_at)
            SELECT coalesce(scope, ''), key, fingerprint, transfer_id, refusal, :at
            FROM {_given("k", _KEY)} WHERE {condition}
        )
        SELECT {condition} AS written
        """).bindparams(  # noqa: S608  # of names from above
        *_parameters(("t", _TRANSFER), ("a", accounts), ("k", _KEY)), bindparam("currency", type_=String())
    )
    return statement.columns(written=Boolean)


WRITE: Final = _write(accounts=_ACCOUNT)
WRITE_WITH_HOLDS: Final = _write(accounts=_ACCOUNT_AND_HELD)
WRITE_IF: Final = _write(accounts=_ASSUMED)

_WRITE_HOLDS: Final = text(f"""
    WITH new_holds AS (
        INSERT INTO {PendingTransfer.__tablename__} ({", ".join(_HOLD)}, state, created_at)
        SELECT {", ".join(f"{name}::jsonb" if name == "metadata" else name for name in _HOLD)}, 'pending', :at
        FROM {_given("h", _HOLD)}
    )
    UPDATE {PendingTransfer.__tablename__} AS hold SET state = given.state, settled_at = :at
    FROM unnest(:settled, :states) AS given (id, state) WHERE hold.id = given.id
    """).bindparams(  # noqa: S608  # of names from above
    *_parameters(("h", _HOLD)),
    bindparam("settled", type_=ARRAY(Uuid())),
    bindparam("states", type_=ARRAY(String())),
)
