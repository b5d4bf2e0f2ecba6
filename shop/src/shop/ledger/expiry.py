"""Expired holds. They reserve nothing and count as voided, even if the stored state is still `pending`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias, assert_never
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    DateTime,
    SQLColumnExpression,
    Uuid,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession

from shop.ledger.models import PendingTransfer, TransferState
from shop.ledger.writing import update_loaded_account

_Column: TypeAlias = SQLColumnExpression[Any]


class AccountAfterVoiding(NamedTuple):
    """An account after its expired holds were voided.

    `voided` is the number of these holds. The other fields are the new values of the account.
    """

    id: UUID
    held: int
    revision: int
    updated_at: datetime
    voided: int


async def void_expired_holds(
    session: AsyncSession, account_ids: Sequence[UUID], at: datetime | None = None
) -> list[AccountAfterVoiding]:
    """Void the expired holds of these accounts, and return the accounts that had one. `at` is the current time by
    default.

    This transaction must have locked the accounts.
    """
    rows = await session.execute(VOID_EXPIRED, {"ids": list(account_ids), "at": at})
    accounts = [AccountAfterVoiding(**row._asdict()) for row in rows]
    for account in accounts:
        update_loaded_account(session, account, ("held", "revision", "updated_at"))
    return accounts


def has_expired(stored_state: _Column, expires_at: _Column) -> ColumnElement[bool]:
    """Whether a hold with this stored state has expired and isn't voided yet."""
    return _is_stored_as(TransferState.PENDING, stored_state) & (expires_at <= func.statement_timestamp())


def has_state(state: TransferState, stored_state: _Column, expires_at: _Column) -> ColumnElement[bool]:
    """Whether the current state of a hold is `state`. An expired hold counts as voided, even if the stored state is
    `pending`."""
    is_stored = _is_stored_as(state, stored_state)
    match state:
        case TransferState.PENDING:
            return is_stored & (expires_at > func.statement_timestamp())
        case TransferState.POSTED:
            return is_stored
        case TransferState.VOIDED:
            return is_stored | has_expired(stored_state, expires_at)
        case _:
            assert_never(state)


def current_state(stored_state: _Column, expires_at: _Column) -> ColumnElement[Any]:
    """The state of a hold at the time of the statement; see `has_state`."""
    voided: ColumnElement[Any] = literal_column(f"CAST('{TransferState.VOIDED}' AS varchar)")
    return case((not_(has_expired(stored_state, expires_at)), stored_state), else_=voided)


def _is_stored_as(state: TransferState, stored_state: _Column) -> ColumnElement[bool]:
    return stored_state == literal_column(f"'{state.value}'")  # a literal, so that PostgreSQL can use partial indexes


ACCOUNTS_WITH_EXPIRED_HOLDS: Final = (
    select(PendingTransfer.from_account_id)
    .where(has_expired(PendingTransfer.state, PendingTransfer.expires_at))
    .order_by(PendingTransfer.expires_at)
)
VOID_EXPIRED: Final = text("""
    WITH voided AS (
        UPDATE pending_transfers SET state = 'voided', settled_at = coalesce(:at, statement_timestamp())
        WHERE from_account_id = ANY (:ids) AND state = 'pending'
            AND expires_at <= coalesce(:at, statement_timestamp())
        RETURNING from_account_id, amount
    ), released AS (
        SELECT from_account_id, sum(amount) AS amount, count(*) AS voided FROM voided GROUP BY from_account_id
    )
    UPDATE accounts AS account
    SET held = account.held - released.amount, updated_at = coalesce(:at, statement_timestamp())
    FROM released WHERE account.id = released.from_account_id
    RETURNING account.id, account.held, account.revision, account.updated_at, released.voided
    """).bindparams(bindparam("ids", type_=ARRAY(Uuid())), bindparam("at", type_=DateTime(timezone=True)))
