"""The state of the ledger after a run, and its differences from the answers that clients got."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import TextClause, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop import tables  # noqa: F401 (tables refer to each other)
from shop.ledger.check import check_ledger
from shop.ledger.models import IdempotencyKey, Transfer

_BACKENDS_TIMEOUT_SECONDS = 60
_OTHER_BACKENDS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
_DEADLOCKS = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
_BALANCE_TOTAL = text("SELECT sum(balance) FROM accounts")


@dataclass(frozen=True)
class LedgerState:
    """The number of deadlocks, the sum of all balances, and the faults. After a correct run all are zero or empty."""

    deadlocks: int
    """The number since the server was started. A crash of PostgreSQL resets it."""
    balance_total: int
    """0 unless money was created or lost."""
    faults: dict[str, list[str]]
    """The findings of `shop check`, by kind."""

    @property
    def is_correct(self) -> bool:
        return not (self.deadlocks or self.balance_total or self.faults)

    def __str__(self) -> str:
        return (
            f"deadlocks: {self.deadlocks}; sum of all balances: {self.balance_total}; "
            f"faults of the ledger: {self.faults or 'none'}"
        )


@dataclass(frozen=True)
class TransferDifferences:
    """How the transfers differ from the answers. After a correct run all are empty or zero."""

    lost: list[str]
    """The keys of acknowledged transfers that aren't in the ledger as acknowledged."""
    refused_but_posted: list[str]
    unknown: int
    """The number of other transfers of the clients' accounts: posted twice, or never acknowledged."""

    @property
    def are_equal(self) -> bool:
        return not (self.lost or self.refused_but_posted or self.unknown)

    def __str__(self) -> str:
        return (
            f"lost: {len(self.lost)}; refused but posted: {len(self.refused_but_posted)}; "
            f"posted twice, or unknown: {self.unknown}"
        )


async def compare_transfers(
    url: str, accounts: Sequence[str], posted: Mapping[str, tuple[UUID, int]], refused: Collection[str]
) -> TransferDifferences:
    """Compare the transfers from these accounts with the answers.

    `posted` has the id and the amount of each acknowledged transfer by its idempotency key. `refused` has the keys of
    refused transfers. The accounts were funded from an account that isn't among them.
    """
    own = Transfer.from_account_id.in_([UUID(each) for each in accounts])
    async with Database(url) as database, database.session() as session:
        amounts = {row.id: row.amount for row in await session.execute(select(Transfer.id, Transfer.amount).where(own))}
        stored = select(IdempotencyKey.key, IdempotencyKey.transfer_id)
        keys = {row.key: row.transfer_id for row in await session.execute(stored)}
    return TransferDifferences(
        [key for key, (id_, amount) in posted.items() if amounts.get(id_) != amount or keys.get(key) != id_],
        [key for key in refused if keys.get(key) is not None],
        len(amounts) - len(posted),
    )


async def read_ledger_state(url: str) -> LedgerState:
    """Wait until the clients' backends have ended, and check the ledger."""
    async with Database(url, pool_size=1) as database:
        async with asyncio.timeout(_BACKENDS_TIMEOUT_SECONDS):
            await _wait_for_other_backends(database)
        async with database.session(isolation_level="REPEATABLE READ") as session:
            report = await check_ledger(session)
            return LedgerState(
                await _fetch_number(session, _DEADLOCKS), await _fetch_number(session, _BALANCE_TOTAL), report.faults
            )


async def _wait_for_other_backends(database: Database) -> None:
    """Wait because a backend may report its deadlocks to pg_stat_database only when it ends."""
    while True:
        async with database.session() as session:
            if await _fetch_number(session, _OTHER_BACKENDS) == 0:
                return
        await asyncio.sleep(0.05)


async def _fetch_number(session: AsyncSession, statement: TextClause) -> int:
    return int(await session.scalar(statement) or 0)
