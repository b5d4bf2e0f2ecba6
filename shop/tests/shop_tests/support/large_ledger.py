"""A ledger with many transfers, to test the plans of queries."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shop_tests.support.trigger_bypass import disable_triggers

ACCOUNTS, TRANSFERS = 100, 20_000

_STATEMENTS = (
    # With new, empty files. Otherwise the costs of a plan would depend on the pages that other tests have left.
    "TRUNCATE accounts, transfers, entries, pending_transfers CASCADE",
    """
    INSERT INTO accounts (id, name, currency, balance, held, allows_negative, overdraft_limit, state, metadata,
        entry_count, revision, created_at, updated_at)
    SELECT lpad(to_hex(i), 32, '0')::uuid, 'Account', 'GBP', 0, 0, true, 0, 'open', '{}', 400, 0, '2026-01-01Z', now()
    FROM generate_series(0, 99) AS i
    """,
    """
    INSERT INTO transfers (id, from_account_id, from_entry_number, to_account_id, to_entry_number, amount, currency,
        effective_at, created_at, metadata)
    SELECT ('a' || lpad(to_hex(n), 31, '0'))::uuid, lpad(to_hex(n % 100), 32, '0')::uuid, 2 * (n / 100) + 2,
        lpad(to_hex((n + 1) % 100), 32, '0')::uuid, 2 * (n / 100) + 1, 1, 'GBP', at, at,
        CASE WHEN n % 10 = 0 THEN jsonb_build_object('region', 'north', 'invoice', n::text) END
    FROM generate_series(0, 19999) AS n, LATERAL (SELECT '2026-01-01Z'::timestamptz + n * interval '1 minute') AS t (at)
    """,
    """
    INSERT INTO entries (account_id, entry_number, transfer_id, amount, balance_after, created_at)
    SELECT from_account_id, from_entry_number, id, -1, 0, created_at FROM transfers
    UNION ALL SELECT to_account_id, to_entry_number, id, 1, 1, created_at FROM transfers
    """,
    """
    INSERT INTO pending_transfers (id, from_account_id, to_account_id, amount, currency, state, expires_at, created_at,
        settled_at)
    SELECT ('b' || lpad(to_hex(n), 31, '0'))::uuid, lpad(to_hex(n % 100), 32, '0')::uuid,
        lpad(to_hex((n + 1) % 100), 32, '0')::uuid, 1, 'GBP', state, now() + interval '1 day', '2026-01-01Z',
        CASE WHEN state <> 'pending' THEN now() END
    FROM generate_series(0, 1999) AS n,
        LATERAL (SELECT CASE WHEN n % 50 = 0 THEN 'pending' ELSE 'voided' END) AS s (state)
    """,
    "ANALYZE accounts, transfers, entries, pending_transfers",
)


async def create_large_ledger(session: AsyncSession) -> UUID:
    """Replace the ledger by 20,000 transfers, one per minute, between 100 accounts, and 2,000 holds. Returns an account
    with 400 entries."""
    await disable_triggers(session)
    for statement in _STATEMENTS:
        await session.execute(text(statement))
    return UUID(int=7)
