"""The state of the ledger after a run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop.ledger.check import check_ledger

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
