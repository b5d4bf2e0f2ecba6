"""Write a decision: one statement for transfers and idempotency keys, one for settled holds, and one for new holds.

PostgreSQL creates the entries and the balances from the new transfers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson
from sqlalchemy import ARRAY, JSON, BigInteger, Column, DateTime, String, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import attributes
from sqlalchemy.orm.util import identity_key
from sqlalchemy.types import TypeEngine

from howdah import Base
from shop.ledger.lock_waits import LOCK_WAIT_MS, KeyLocked, raise_key_in_use, raise_locked_for_long
from shop.ledger.models import Account, AnswerKind, IdempotencyKey, PendingTransfer, Transfer, TransferState
from shop.ledger.posting import PostingContext
from shop.ledger.requests import TransferRecord, TransferResult
from shop.ledger.snapshots import Hold


async def write(session: AsyncSession, context: PostingContext, *, waits_for_keys: bool = True) -> None:
    """Write what was decided under locks.

    Raises `KeyInUse` if another transaction has used one of the keys without locking the same accounts. If that
    transaction hasn't ended, the statement waits for it, or raises `KeyLocked` if `waits_for_keys` is False.
    """
    if settled := context.settled_holds():  # first, because a new transfer may need the released amounts
        values = {
            "settled": [hold.id for hold in settled],
            "states": [hold.state.value for hold in settled],
            "settled_by": [hold.settled_by for hold in settled],
        }
        await _write_holds(session, context, settled, _SETTLE_HOLDS, values)
    if waits_for_keys:
        with raise_key_in_use():
            await session.execute(WRITE, _values_to_write(context))
    else:
        with raise_key_in_use(), raise_locked_for_long(KeyLocked):
            await session.execute(_WRITE_WITHOUT_WAIT, _values_to_write(context))
    if context.holds:  # last, because a new hold may reserve amounts of the new transfers
        await _write_holds(session, context, context.holds, _INSERT_HOLDS, _hold_values(context.holds))
    for account in context.changed_accounts():
        update_loaded_account(session, account, ("balance", "held", "entry_count", "revision", "updated_at"))


def _values_to_write(context: PostingContext) -> dict[str, Any]:
    """The parameters with the transfers and keys to write.

    The time of the context is sent once, and None in the arrays stands for it. If all transfers have the same currency,
    it is sent once and its array is empty.
    """
    fields: dict[str, Sequence[Any]] = dict.fromkeys(TransferRecord._fields, ())
    if context.transfers:
        fields = dict(zip(TransferRecord._fields, zip(*context.transfers, strict=True), strict=True))
    for name in ("effective_at", "created_at"):
        fields[name] = [None if moment is context.at else moment for moment in fields[name]]
    fields["details"] = [to_json(details) for details in fields["details"]]
    currencies = set(fields["currency"])
    if len(currencies) == 1:
        fields["currency"] = []
    shared = {"currency": currencies.pop() if currencies else None, "at": context.at}
    return TRANSFER_PARAMETERS.values(fields) | _key_values(context) | shared


def update_loaded_account(session: AsyncSession, account: Any, names: Iterable[str]) -> None:
    """If the session has an object of this account, set these attributes to the written values."""
    loaded = session.identity_map
    if loaded and (instance := loaded.get(identity_key(Account, account.id))) is not None:
        for name in names:
            attributes.set_committed_value(instance, name, getattr(account, name))


async def _write_holds(
    session: AsyncSession, context: PostingContext, holds: Iterable[Hold], statement: Any, values: Mapping[str, Any]
) -> None:
    """Execute the statement, and copy the new revisions and times of the holds' accounts to the context."""
    accounts = [context.accounts[id_] for id_ in sorted({hold.from_account_id for hold in holds})]
    account_values = {"a_id": [each.id for each in accounts], "a_held": [each.held for each in accounts]}
    for row in await session.execute(statement, {**values, **account_values, "at": context.at}):
        account = context.accounts[row.id]
        account.revision, account.updated_at = row.revision, max(account.updated_at, row.updated_at)


class _ArrayParameters:
    """Columns of a table that a statement receives as arrays, one parameter for each column: `t_amount` for `amount`.

    `names` are attributes of the model. The names and types of the columns come from its table.
    """

    def __init__(self, prefix: str, model: type[Base], names: Iterable[str]) -> None:
        mapped = model.__mapper__.columns
        self.names = tuple(names)
        columns: list[Column[Any]] = [mapped[name] for name in self.names]
        self.columns = tuple(column.name for column in columns)
        self._parameters = {name: f"{prefix}_{column}" for name, column in zip(self.names, self.columns, strict=True)}
        self.bindparams = [
            bindparam(parameter, type_=ARRAY(_element_type(column)))
            for parameter, column in zip(self._parameters.values(), columns, strict=True)
        ]

    def unnest(self, alias: str) -> str:
        """A FROM item with a row for each element of the arrays."""
        parameters = ", ".join(f":{parameter}" for parameter in self._parameters.values())
        return f"unnest({parameters}) AS {alias} ({', '.join(self.columns)})"

    def values(self, arrays: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The parameters, from a list for each attribute. Lists of other attributes are ignored."""
        return {parameter: omit_nulls(arrays[name]) for name, parameter in self._parameters.items()}


def _attribute_names(model: type[Base]) -> list[str]:
    """The attributes of the model that are columns, in the order of the table."""
    return list(model.__mapper__.columns.keys())


def _element_type(column: Column[Any]) -> TypeEngine[Any]:
    """The type in which the values of a column are sent.

    Text, enums and JSON are sent as text without a length, because a cast to `varchar(3)[]` would silently shorten the
    values. The statement converts JSON. Other values have the type of the column.
    """
    return String() if isinstance(column.type, String | JSON) else column.type


def omit_nulls(values: Sequence[Any]) -> list[Any]:
    """Replace a list of None by an empty list. `unnest` pads it with NULLs, and the driver has fewer values to
    encode."""
    return list(values) if values.count(None) < len(values) else []


TRANSFER_PARAMETERS: Final = _ArrayParameters("t", Transfer, _attribute_names(Transfer))
_KEY: Final = _ArrayParameters("k", IdempotencyKey, ("scope", "key", "fingerprint", "transfer_id", "refusal", "answer"))
# The statement sets `state` and `created_at`. `settled_at` and `settled_by` of a new hold are NULL. So no values are
# sent for them.
_NEW_HOLD: Final = _ArrayParameters(
    "h",
    PendingTransfer,
    [
        name
        for name in _attribute_names(PendingTransfer)
        if name not in {"state", "created_at", "settled_at", "settled_by"}
    ],
)


def _check_fields(row: type[Any], parameters: _ArrayParameters) -> None:
    """Raise `TypeError` if a column has no field of the same name in the class of the rows."""
    if missing := set(parameters.names) - set(row.__annotations__):
        raise TypeError(f"{row.__name__} has no field for the columns {sorted(missing)}: add a field for each column")


_check_fields(TransferRecord, TRANSFER_PARAMETERS)
_check_fields(Hold, _NEW_HOLD)


def _key_values(context: PostingContext) -> dict[str, list[Any]]:
    """The parameters with the idempotency keys to write, sorted by scope and key."""
    outcomes = sorted(context.keys.items())  # sorted, because otherwise two transactions could deadlock
    results = [outcome.result for _, outcome in outcomes]
    return _KEY.values(
        {
            "scope": [scope or None for (scope, _), _ in outcomes],
            "key": [key for (_, key), _ in outcomes],
            "fingerprint": [outcome.fingerprint for _, outcome in outcomes],
            "transfer_id": [None if result.transfer is None else result.transfer.id for result in results],
            "refusal": [result.refusal for result in results],
            "answer": [_unusual_answer(result) for result in results],
        }
    )


def _unusual_answer(result: TransferResult) -> str | None:
    """The kind of the answer. None for the two frequent kinds, a posted transfer and a refusal: the statement derives
    these."""
    transfer = result.transfer
    return None if transfer is None or transfer.state is TransferState.POSTED else transfer.state.value


def _hold_values(holds: Sequence[Hold]) -> dict[str, list[Any]]:
    fields: dict[str, Sequence[Any]] = {name: [getattr(hold, name) for hold in holds] for name in _NEW_HOLD.names}
    fields["details"] = [to_json(hold.details) for hold in holds]
    return _NEW_HOLD.values(fields)


def to_json(details: Mapping[str, str] | None) -> str | None:
    return orjson.dumps(dict(details)).decode() if details else None


# SQL expressions for the columns whose values are converted or completed by the statement.
_STORED_AS: Final = {
    "currency": "coalesce(currency, :currency)",
    "metadata": "metadata::jsonb",
    "effective_at": "coalesce(effective_at, :at)",
    "created_at": "coalesce(created_at, :at)",
}

_KEY_STORED_AS: Final = {
    "scope": "coalesce(scope, '')",
    "answer": f"""coalesce(
        answer, CASE WHEN refusal IS NULL THEN '{AnswerKind.POSTED.value}' ELSE '{AnswerKind.REFUSED.value}' END
    )""",
}


def _write_statement(*, waits_for_keys: bool) -> Any:
    """The statement that writes transfers and keys. A trigger creates the entries and balances.

    A transaction waits for another one that has inserted the same key. Without `waits_for_keys`, the statement (and the
    rest of its transaction) waits only for `LOCK_WAIT_MS`, because all requests of the batch wait.
    """
    condition, first = "true", ""
    if not waits_for_keys:
        condition = "(SELECT is_limited FROM wait)"
        first = f"""wait AS MATERIALIZED (
            SELECT set_config('lock_timeout', '{LOCK_WAIT_MS}', true) IS NOT NULL AS is_limited
        ),"""  # built from constants
    return text(f"""
        WITH {first} new_transfers AS (
            INSERT INTO {Transfer.__tablename__} ({", ".join(TRANSFER_PARAMETERS.columns)})
            SELECT {", ".join(_STORED_AS.get(name, name) for name in TRANSFER_PARAMETERS.columns)}
            FROM {TRANSFER_PARAMETERS.unnest("input")} WHERE {condition}
        ), new_keys AS (
            INSERT INTO {IdempotencyKey.__tablename__} ({", ".join(_KEY.columns)}, created_at)
            SELECT {", ".join(_KEY_STORED_AS.get(name, name) for name in _KEY.columns)}, :at
            FROM {_KEY.unnest("input")} WHERE {condition}
        )
        SELECT 1
        """).bindparams(  # noqa: S608  # built from constants
        *TRANSFER_PARAMETERS.bindparams,
        *_KEY.bindparams,
        bindparam("currency", type_=String()),
        bindparam("at", type_=DateTime(timezone=True)),
    )


WRITE: Final = _write_statement(waits_for_keys=True)
_WRITE_WITHOUT_WAIT: Final = _write_statement(waits_for_keys=False)


def _hold_statement(change: str, *, condition: str, parameters: Sequence[Any]) -> Any:
    """A statement that changes pending transfers, and then sets `held` of the accounts for which the condition is
    true."""
    return text(f"""
        WITH changed_holds AS ({change})
        UPDATE {Account.__tablename__} AS account SET held = input.held, updated_at = :at
        FROM unnest(:a_id, :a_held) AS input (id, held) WHERE account.id = input.id AND {condition}
        RETURNING account.id, revision, account.updated_at
        """).bindparams(  # noqa: S608  # built from constants
        *parameters,
        bindparam("a_id", type_=ARRAY(Uuid())),
        bindparam("a_held", type_=ARRAY(BigInteger())),
        bindparam("at", type_=DateTime(timezone=True)),
    )


_SETTLE_HOLDS: Final = _hold_statement(
    f"""
        UPDATE {PendingTransfer.__tablename__} AS hold
        SET state = input.state, settled_at = :at, settled_by = input.settled_by
        FROM unnest(:settled, :states, :settled_by) AS input (id, state, settled_by) WHERE hold.id = input.id
        """,  # noqa: S608  # built from constants
    # `held` is the amount after all decisions. This statement only lowers it; `_INSERT_HOLDS` raises it.
    condition="input.held < account.held",
    parameters=[
        bindparam("settled", type_=ARRAY(Uuid())),
        bindparam("states", type_=ARRAY(String())),
        bindparam("settled_by", type_=ARRAY(Uuid())),
    ],
)
_INSERT_HOLDS: Final = _hold_statement(
    f"""
        INSERT INTO {PendingTransfer.__tablename__} ({", ".join(_NEW_HOLD.columns)}, state, created_at)
        SELECT {", ".join("metadata::jsonb" if name == "metadata" else name for name in _NEW_HOLD.columns)},
            'pending', :at
        FROM {_NEW_HOLD.unnest("input")}
        """,  # noqa: S608  # built from constants
    condition="input.held > account.held",
    parameters=_NEW_HOLD.bindparams,
)
