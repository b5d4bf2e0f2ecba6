"""Pending transfers whose time is over: they hold nothing, whether they have been voided yet or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, DateTime, Uuid, and_, any_, bindparam, case, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import attributes

from shop.accounts.models import Account
from shop.transfers.models import PendingTransfer, TransferState
from shop.transfers.writing import show


class Freed(NamedTuple):
    """An account after some of its pending transfers were voided."""

    id: UUID
    held: int
    revision: int
    updated_at: datetime
    voided: int


async def void_expired_of(
    session: AsyncSession, account_ids: Sequence[UUID], at: datetime | None = None
) -> list[Freed]:
    """Void what has expired at `at`, now if not given, of what these accounts hold; those of which something had. The
    accounts must be locked by this transaction."""
    rows = await session.execute(VOID, {"ids": list(account_ids), "at": at})
    freed = [Freed(*row) for row in rows]
    for account in freed:
        show(session, account, ("held", "revision", "updated_at"))
    return freed


async def show_held_now(session: AsyncSession, accounts: Iterable[Account]) -> None:
    """Make `held` of accounts that are only shown leave out what has expired and isn't voided yet. Their rows stay as
    they are. Those that hold something are read again, since balance and held amount must be of one moment."""
    holding = [account.id for account in accounts if account.held]
    if holding:
        for account, expired in await session.execute(_WITH_EXPIRED, {"ids": holding}):
            attributes.set_committed_value(account, "held", account.held - int(expired))


_has_expired: Final = and_(
    PendingTransfer.state == TransferState.PENDING, PendingTransfer.expires_at <= func.statement_timestamp()
)
STATE_NOW: Final[ColumnElement[TransferState]] = case((_has_expired, TransferState.VOIDED), else_=PendingTransfer.state)
"""What a pending transfer is shown as."""

ACCOUNTS_WITH_EXPIRED: Final = (
    select(PendingTransfer.from_account_id).where(_has_expired).order_by(PendingTransfer.expires_at)
)

_WITH_EXPIRED: Final = (
    select(
        Account,
        select(func.coalesce(func.sum(PendingTransfer.amount), 0))
        .where(PendingTransfer.from_account_id == Account.id, _has_expired)
        .scalar_subquery(),
    )
    .where(Account.id == any_(bindparam("ids", type_=ARRAY(Uuid()))))
    .execution_options(populate_existing=True)
)
VOID: Final = text("""
    WITH voided AS (
        UPDATE pending_transfers SET state = 'voided', settled_at = coalesce(:at, statement_timestamp())
        WHERE from_account_id = ANY (:ids) AND state = 'pending'
            AND expires_at <= coalesce(:at, statement_timestamp())
        RETURNING from_account_id, amount
    ), freed AS (
        SELECT from_account_id, sum(amount) AS amount, count(*) AS voided FROM voided GROUP BY from_account_id
    )
    UPDATE accounts AS account
    SET held = account.held - freed.amount, updated_at = coalesce(:at, statement_timestamp())
    FROM freed WHERE account.id = freed.from_account_id
    RETURNING account.id, account.held, account.revision, account.updated_at, freed.voided
    """).bindparams(bindparam("ids", type_=ARRAY(Uuid())), bindparam("at", type_=DateTime(timezone=True)))
