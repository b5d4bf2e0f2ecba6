"""Writing the books: one statement for any number of transfers, which PostgreSQL makes the entries and balances of, and
one each for what is held no longer, and anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import ARRAY, BigInteger, Boolean, DateTime, LargeBinary, String, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import attributes
from sqlalchemy.orm.util import identity_key
from sqlalchemy.types import TypeEngine

from howdah import UniqueViolation
from shop.ledger.models import Account, AnswerKind, IdempotencyKey, PendingTransfer, Transfer, TransferState
from shop.ledger.posting import PostingContext
from shop.ledger.requests import TransferResult
from shop.ledger.snapshots import Hold

_Kinds = dict[str, TypeEngine[Any]]


class KeyInUse(Exception):
    """Another transaction has used one of the idempotency keys meanwhile: roll this one back, and begin it again."""


async def write(session: AsyncSession, books: PostingContext) -> None:
    """Write what was decided under locks. Raises `KeyInUse` if one of the keys was used meanwhile by a transaction
    that this one didn't wait for."""
    if settled := books.settled():  # first, for others may take what it leaves free
        states = {"settled": [each.id for each in settled], "states": [each.state.value for each in settled]}
        await _write_held(session, books, settled, _SETTLE, states)
    with _keys_not_in_use():
        await session.execute(WRITE, _shared_values(books))
    if books.holds:  # last, for it may hold what others have brought
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
        await _write_held(session, books, books.holds, _HOLD, _columns("h", _HELD, rows))
    for account in books.moved():
        show(session, account, ("balance", "held", "entry_count", "revision", "updated_at"))


def values_to_write(books: PostingContext, assumed: Sequence[tuple[UUID, int, int | None]]) -> dict[str, Any]:
    """The parameters of `write_if_unchanged`. Read them right after the decision, because the next decision changes the accounts.
    `assumed`: id, entry count and revision (None for 0) of each account that the decision assumed."""
    return _shared_values(books) | _columns("a", _ASSUMED, assumed)


class Written(NamedTuple):
    """Whether the statement wrote anything, and the database's time."""

    written: bool
    at: datetime


async def write_if_unchanged(connection: AsyncConnection, values: Mapping[str, Any]) -> Written:
    """Write the optimistic decision by one statement, which waits for no account. It writes nothing unless

    - all accounts still have the versions and revisions that the decision assumed,
    - no other transaction has locked one of them,
    - the decision's time isn't ahead of the database's clock, nor more than ten seconds behind.

    Raises `KeyInUse`."""
    with _keys_not_in_use():
        return Written(*(await connection.execute(WRITE_IF_UNCHANGED, values)).one())


async def _write_held(
    session: AsyncSession, books: PostingContext, holds: Iterable[Hold], statement: Any, values: Mapping[str, Any]
) -> None:
    accounts = [books.accounts[id_] for id_ in sorted({each.from_account_id for each in holds})]
    given = {"a_id": [each.id for each in accounts], "a_held": [each.held for each in accounts], "at": books.at}
    for id_, revision, updated_at in await session.execute(statement, {**values, **given}):
        account = books.accounts[id_]
        account.revision, account.updated_at = revision, max(account.updated_at, updated_at)


def show(session: AsyncSession, account: Any, names: Iterable[str]) -> None:
    """Copy these attributes to the session's object of this account, if it has one. They are what was written."""
    kept = session.identity_map
    if kept and (instance := kept.get(identity_key(Account, account.id))) is not None:
        for name in names:
            attributes.set_committed_value(instance, name, getattr(account, name))


@contextmanager
def _keys_not_in_use() -> Iterator[None]:
    try:
        yield
    except UniqueViolation as error:
        if error.constraint != "pk_idempotency_keys":
            raise
        raise KeyInUse from error


def _shared_values(books: PostingContext) -> dict[str, Any]:
    """The parameters that all the writing statements share."""
    values = _columns("t", _TRANSFER, [each[: len(_TRANSFER)] for each in books.transfers])
    for name in ("t_effective_at", "t_created_at"):
        values[name] = _without([None if each is books.at else each for each in values[name]])
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
            _kind_if_unusual(outcome.result),
        )
        for (scope, key), outcome in sorted(
            books.keys.items()
        )  # in one order for all, or two could wait for each other
    ]
    return values | _columns("k", _KEY, keys) | shared


def _kind_if_unusual(result: TransferResult) -> str | None:
    """The kind of the answer, or None for a posted transfer and a refusal, which `_write` derives."""
    transfer = result.transfer
    return None if transfer is None or transfer.state is TransferState.POSTED else transfer.state.value


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
    ]


_TRANSFER: Final[_Kinds] = {
    "id": Uuid(),
    "from_account_id": Uuid(),
    "from_entry_number": BigInteger(),
    "to_account_id": Uuid(),
    "to_entry_number": BigInteger(),
    "amount": BigInteger(),
    "currency": String(),
    "description": String(),
    "metadata": String(),
    "effective_at": DateTime(timezone=True),
    "reverses_id": Uuid(),
    "reversed_total": BigInteger(),
    "group_id": Uuid(),
    "created_at": DateTime(timezone=True),
}
_ASSUMED: Final[_Kinds] = {"id": Uuid(), "entry_count": BigInteger(), "revision": BigInteger()}
_KEY: Final[_Kinds] = {
    "scope": String(),
    "key": String(),
    "fingerprint": LargeBinary(),
    "transfer_id": Uuid(),
    "refusal": String(),
    "answer": String(),
}
_HELD: Final[_Kinds] = {
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

# Nothing is written unless the accounts are as assumed and the time is close to the database's clock. Locked accounts
# are skipped: to wait for their transaction could deadlock, or take long.
_AS_ASSUMED: Final = f"""
        locked AS MATERIALIZED (
            SELECT id, entry_count, revision FROM {Account.__tablename__}
            WHERE id = ANY (:a_id) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
        ), as_assumed AS MATERIALIZED (
            SELECT count(*) = cardinality(:a_id)
                AND :at BETWEEN clock_timestamp() - interval '10 seconds' AND clock_timestamp() AS yes
            FROM locked JOIN {_given("a", _ASSUMED)} ON locked.id = given.id
                AND locked.entry_count = given.entry_count AND locked.revision = coalesce(given.revision, 0)
        ),"""  # noqa: S608  # of names from above


def _write(*, as_assumed: bool) -> Any:
    """The statement that writes transfers and keys. A trigger makes the entries and balances."""
    condition = "(SELECT yes FROM as_assumed)" if as_assumed else "true"
    statement = text(f"""
        WITH {_AS_ASSUMED if as_assumed else ""} new_transfers AS (
            INSERT INTO {Transfer.__tablename__} ({", ".join(_TRANSFER)})
            SELECT {", ".join(_GIVEN_AS.get(name, name) for name in _TRANSFER)}
            FROM {_given("t", _TRANSFER)} WHERE {condition}
        ), generate_keys AS (
            INSERT INTO {IdempotencyKey.__tablename__} ({", ".join(_KEY)}, created_at)
            SELECT {", ".join(_KEY_GIVEN_AS.get(name, name) for name in _KEY)}, :at
            FROM {_given("k", _KEY)} WHERE {condition}
        )
        SELECT {condition} AS written, clock_timestamp() AS at
        """).bindparams(  # noqa: S608  # of names from above
        *_parameters(("t", _TRANSFER), *([("a", _ASSUMED)] if as_assumed else []), ("k", _KEY)),
        bindparam("currency", type_=String()),
        bindparam("at", type_=DateTime(timezone=True)),
    )
    return statement.columns(written=Boolean(), at=DateTime(timezone=True))


_GIVEN_AS: Final = {
    "currency": "coalesce(currency, :currency)",
    "metadata": "metadata::jsonb",
    "effective_at": "coalesce(effective_at, :at)",
    "created_at": "coalesce(created_at, :at)",
}

_KEY_GIVEN_AS: Final = {
    "scope": "coalesce(scope, '')",
    "answer": f"""coalesce(
        answer, CASE WHEN refusal IS NULL THEN '{AnswerKind.POSTED.value}' ELSE '{AnswerKind.REFUSED.value}' END
    )""",
}

WRITE: Final = _write(as_assumed=False)
WRITE_IF_UNCHANGED: Final = _write(as_assumed=True)


def _holding(first: str, *, change: str, parameters: Sequence[Any]) -> Any:
    """A statement that changes pending transfers and, where it is `change`, what of their accounts is held."""
    return text(f"""
        WITH first AS ({first})
        UPDATE {Account.__tablename__} AS account SET held = given.held, updated_at = :at
        FROM unnest(:a_id, :a_held) AS given (id, held) WHERE account.id = given.id AND {change}
        RETURNING account.id, revision, account.updated_at
        """).bindparams(  # noqa: S608  # of names from above
        *parameters,
        bindparam("a_id", type_=ARRAY(Uuid())),
        bindparam("a_held", type_=ARRAY(BigInteger())),
        bindparam("at", type_=DateTime(timezone=True)),
    )


_SETTLE: Final = _holding(
    f"""
        UPDATE {PendingTransfer.__tablename__} AS hold SET state = given.state, settled_at = :at
        FROM unnest(:settled, :states) AS given (id, state) WHERE hold.id = given.id
        """,  # noqa: S608  # of names from above
    change="given.held < account.held",
    parameters=[bindparam("settled", type_=ARRAY(Uuid())), bindparam("states", type_=ARRAY(String()))],
)
_HOLD: Final = _holding(
    f"""
        INSERT INTO {PendingTransfer.__tablename__} ({", ".join(_HELD)}, state, created_at)
        SELECT {", ".join(f"{name}::jsonb" if name == "metadata" else name for name in _HELD)}, 'pending', :at
        FROM {_given("h", _HELD)}
        """,  # noqa: S608  # of names from above
    change="given.held > account.held",
    parameters=_parameters(("h", _HELD)),
)
