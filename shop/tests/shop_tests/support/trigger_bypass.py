"""Changes that the triggers would reject."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop import tables
from shop.ledger.models import PendingTransfer

_LOCK_CHAIN: Final = "pg_advisory_xact_lock(495622122611)"

_MAX_TABLES_BYTES: Final = 8 << 20
_TABLES: Final = [table.name for table in reversed(tables.Base.metadata.sorted_tables)]

EMPTY_TABLES: Final = f"""
DO $$ BEGIN
PERFORM set_config('session_replication_role', 'replica', true), {_LOCK_CHAIN};
IF {" + ".join(f"pg_relation_size('{name}')" for name in _TABLES)} > {_MAX_TABLES_BYTES} THEN
    TRUNCATE {", ".join(_TABLES)};
ELSE
    {"".join(f"DELETE FROM {name};" for name in _TABLES)}
END IF;
END $$
"""
"""The statement that deletes every row of Shop's tables.

DELETE is faster for few rows. But it leaves dead rows, which nothing removes, because the server of the tests runs
without autovacuum. Later tests would read them again and again, so large tables are truncated.
"""


async def disable_triggers(session: AsyncSession) -> None:
    """Disable all triggers, those of foreign keys included, until `enable_triggers` or the end of the transaction."""
    await session.execute(text("SET LOCAL session_replication_role = replica"))


async def enable_triggers(session: AsyncSession) -> None:
    """Enable the triggers again."""
    await session.execute(text("SET LOCAL session_replication_role = origin"))


async def expire(stored: Database, *ids: UUID) -> None:
    """Change `expires_at` of these pending transfers so that they have expired. They are not voided."""
    async with stored.begin() as session:
        await disable_triggers(session)
        statement = update(PendingTransfer).where(PendingTransfer.id.in_(ids))
        await session.execute(statement.values(expires_at=PendingTransfer.expires_at - timedelta(days=1)))
        await reseal_pending_transfers(session)


async def reseal_pending_transfers(session: AsyncSession) -> None:
    """Recompute the seals of pending transfers that were changed without triggers."""
    await disable_triggers(session)
    await _lock_chain_of_seals(session)
    await session.execute(text("UPDATE seals SET position = NULL, hash = NULL"))
    await session.execute(
        text("""
        UPDATE seals SET digests = (
            SELECT array_agg(
                CASE WHEN p.id IS NULL THEN sealed.digest ELSE digest_of_pending_transfer(p) END ORDER BY place
            )
            FROM unnest(seals.ids, seals.digests) WITH ORDINALITY AS sealed (id, digest, place)
            LEFT JOIN pending_transfers p ON p.id = sealed.id AND p.state = 'pending'
        )
        WHERE subject = 'pending_transfers' AND previous_digests IS NULL
        """)
    )


async def empty_tables(session: AsyncSession) -> None:
    """Delete every row of Shop's tables."""
    await session.execute(text(EMPTY_TABLES))


async def _lock_chain_of_seals(session: AsyncSession) -> None:
    """Take the lock of link_seals(), so that no other process continues the old chain of seals."""
    await session.execute(text(f"SELECT {_LOCK_CHAIN}"))
