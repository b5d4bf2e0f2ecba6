"""Check the ledger (`shop check`).

The checks read whole tables, each a few times. The memory of the client and of the server is bounded.

This module compares the rows with each other. `shop.ledger.seals` compares them with their seals, and
`shop.ledger.schema` compares the database's triggers, functions and constraints with their definitions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from shop.ledger import seals
from shop.ledger.models import Account, Entry, Transfer
from shop.ledger.schema import compare_schema
from shop.ledger.seals import Link

_MAX_FINDINGS: Final = 20
"""The largest number of findings of each kind in a report."""

# A check has no timeout. Its memory use is limited by `work_mem`: PostgreSQL writes larger sorts and hash tables to
# temporary files. `effective_cache_size` is small, so that the planner avoids index scans, which would read many
# entries one by one from disk.
_SETTINGS: Final = {
    "statement_timeout": "0",
    "work_mem": "'64MB'",
    # Each check reads whole tables. After a bulk load the statistics may be those of an empty table, and a nested loop
    # that is planned with them reads a table once for each row of another one.
    "enable_nestloop": "off",
    "hash_mem_multiplier": "1",
    "max_parallel_workers_per_gather": "0",
    "random_page_cost": "4",
    "effective_cache_size": "'64MB'",
}

# Each query returns a row for each violation: the kind of fault, and a finding in one line of text.
_CHECKS: Final = {
    "accounts": """
        SELECT fault, finding
        FROM accounts a
        LEFT JOIN (
            SELECT from_account_id, sum(amount) AS total FROM pending_transfers WHERE state = 'pending' GROUP BY 1
        ) p ON p.from_account_id = a.id
        CROSS JOIN LATERAL (VALUES
            (
                'held amounts differ from the pending transfers', a.held <> coalesce(p.total, 0),
                format('account %s: %s held, %s pending', a.id, a.held, coalesce(p.total, 0))
            ),
            (
                'overdrafts exceed the overdraft limit',
                a.balance::numeric - a.held < -a.overdraft_limit AND NOT a.allows_negative,
                format('account %s: %s, %s of it held', a.id, a.balance, a.held)
            ),
            (
                'balances are above the balance limit', a.balance > a.balance_limit,
                format('account %s: %s', a.id, a.balance)
            )
        ) AS rules (fault, is_violated, finding)
        WHERE is_violated
        """,
    "currencies": """
        SELECT 'currencies don''t sum to zero' AS fault, format('%s: %s', currency, sum(balance)) AS finding
        FROM accounts GROUP BY currency HAVING sum(balance) <> 0
        """,
    # Reads the entries once, in the order of the primary key. For each account it computes the values that its row must
    # have, and finds the first wrong entry.
    "entries of accounts": """
        SELECT fault, finding
        FROM accounts a
        FULL JOIN (
            SELECT account_id, count(*) AS entries, max(entry_number) AS last, sum(amount) AS total,
                max(balance_after) FILTER (WHERE next_entry_number IS NULL) AS last_balance,
                min(entry_number) FILTER (WHERE balance_after <> balance_before::numeric + amount) AS wrong_entry,
                min(entry_number) FILTER (WHERE created_at < created_before) AS older_entry
            FROM (
                SELECT account_id, entry_number, amount, balance_after, created_at,
                    lag(balance_after, 1, 0::bigint) OVER w AS balance_before,
                    lag(created_at) OVER w AS created_before,
                    lead(entry_number) OVER w AS next_entry_number
                FROM entries WINDOW w AS (PARTITION BY account_id ORDER BY entry_number)
            ) entry
            GROUP BY account_id
        ) e ON e.account_id = a.id
        CROSS JOIN LATERAL (VALUES
            ('entries have no account', a.id IS NULL, format('account %s: %s entries', e.account_id, e.entries)),
            (
                'balances differ from the sum of the entries', a.balance <> coalesce(e.total, 0),
                format('account %s: balance %s, entries sum to %s', a.id, a.balance, coalesce(e.total, 0))
            ),
            (
                'balances differ from the last entry', a.balance <> e.last_balance,
                format('account %s: balance %s, last entry says %s', a.id, a.balance, e.last_balance)
            ),
            (
                'entry numbers have gaps',
                a.entry_count <> coalesce(e.entries, 0) OR a.entry_count <> coalesce(e.last, 0),
                format(
                    'account %s: entry count %s, %s entries up to %s',
                    a.id, a.entry_count, coalesce(e.entries, 0), coalesce(e.last, 0)
                )
            ),
            (
                'entry balances disagree with the previous entry', e.wrong_entry IS NOT NULL,
                format('account %s: entry %s', e.account_id, e.wrong_entry)
            ),
            (
                'entries are older than the previous entry', e.older_entry IS NOT NULL,
                format('account %s: entry %s', e.account_id, e.older_entry)
            )
        ) AS rules (fault, is_violated, finding)
        WHERE is_violated
        """,
    # Compares the two entries that each transfer must have with the entries that exist.
    "entries of transfers": """
        SELECT
            CASE WHEN e.account_id IS NULL THEN 'transfers lack an entry'
                WHEN t.account_id IS NULL THEN 'entries have no transfer with the same values'
                ELSE 'entries have another time than their transfer' END AS fault,
            format('transfer %s: account %s, entry %s, %s', transfer_id, account_id, entry_number, amount) AS finding
        FROM (
            SELECT id AS transfer_id, from_account_id AS account_id, from_entry_number AS entry_number,
                -amount AS amount, created_at
            FROM transfers
            UNION ALL
            SELECT id, to_account_id, to_entry_number, amount, created_at FROM transfers
        ) t
        FULL JOIN entries e USING (account_id, entry_number, transfer_id, amount)
        WHERE t.account_id IS NULL OR e.account_id IS NULL OR t.created_at <> e.created_at
        """,
    "currencies of transfers": """
        SELECT 'transfers have another currency than their accounts' AS fault,
            format('transfer %s: %s, from %s to %s', t.id, t.currency, debit.currency, credit.currency) AS finding
        FROM (
            SELECT id, currency, from_account_id, to_account_id FROM transfers
            UNION ALL
            SELECT id, currency, from_account_id, to_account_id FROM pending_transfers WHERE state <> 'posted'
        ) t
        JOIN accounts debit ON debit.id = t.from_account_id
        JOIN accounts credit ON credit.id = t.to_account_id
        WHERE t.currency <> debit.currency OR t.currency <> credit.currency
        """,
    "reversals": """
        SELECT fault, finding
        FROM (
            SELECT id, reverses_id, from_account_id, to_account_id, reversed_total, effective_at,
                sum(amount) OVER (PARTITION BY reverses_id ORDER BY reversed_total) AS total
            FROM transfers WHERE reverses_id IS NOT NULL
        ) r
        JOIN transfers t ON t.id = r.reverses_id
        CROSS JOIN LATERAL (VALUES
            (
                'reversals don''t swap the accounts of the original transfer',
                r.from_account_id <> t.to_account_id OR r.to_account_id <> t.from_account_id,
                format('transfer %s reverses %s', r.id, t.id)
            ),
            (
                'reversals exceed the original amount, or their totals are wrong',
                r.total > t.amount OR r.total <> r.reversed_total,
                format('transfer %s: %s, reversed %s', t.id, t.amount, r.total)
            ),
            (
                'reversals take effect before the original transfer', r.effective_at < t.effective_at,
                format('transfer %s reverses %s', r.id, t.id)
            )
        ) AS rules (fault, is_violated, finding)
        WHERE is_violated
        """,
    "pending transfers": """
        SELECT fault, finding
        FROM pending_transfers p
        LEFT JOIN transfers t ON t.id = p.id
        CROSS JOIN LATERAL (VALUES
            (
                'states of pending transfers disagree with the posted transfers',
                (p.state = 'posted') <> (t.id IS NOT NULL),
                format('transfer %s: %s', p.id, p.state)
            ),
            (
                'posted transfers differ from their hold',
                t.id IS NOT NULL AND (
                    t.amount > p.amount
                    OR (t.from_account_id, t.to_account_id, t.currency)
                        <> (p.from_account_id, p.to_account_id, p.currency)
                    OR (t.description, t.metadata) IS DISTINCT FROM (p.description, p.metadata)
                    OR t.effective_at <> p.effective_at OR t.group_id IS DISTINCT FROM coalesce(p.group_id, t.group_id)
                    OR t.created_at < p.settled_at
                ),
                format('transfer %s: %s %s of %s %s', p.id, t.amount, t.currency, p.amount, p.currency)
            )
        ) AS rules (fault, is_violated, finding)
        WHERE is_violated
        """,
    # `posted_by` of a posted hold is the customer who has settled it. An owner never changes.
    "customers": """
        SELECT fault, finding
        FROM (
            SELECT t.id, t.posted_by, t.from_account_id, t.to_account_id, p.settled_by, p.id IS NOT NULL AS is_hold
            FROM transfers t LEFT JOIN pending_transfers p ON p.id = t.id WHERE t.posted_by IS NOT NULL
        ) t
        JOIN accounts debit ON debit.id = t.from_account_id
        CROSS JOIN LATERAL (VALUES
            (
                'transfers were posted by a customer who doesn''t own the account',
                NOT is_hold AND debit.user_id IS DISTINCT FROM t.posted_by,
                format('transfer %s: posted by %s', t.id, t.posted_by)
            ),
            (
                'posted transfers and their holds have another customer',
                is_hold AND settled_by IS DISTINCT FROM t.posted_by,
                format('transfer %s: posted by %s', t.id, t.posted_by)
            )
        ) AS rules (fault, is_violated, finding)
        WHERE is_violated
        UNION ALL
        SELECT 'pending transfers were created or settled by a customer who doesn''t own the account',
            format('transfer %s: posted by %s, settled by %s', p.id, p.posted_by, p.settled_by)
        FROM pending_transfers p
        JOIN accounts debit ON debit.id = p.from_account_id
        JOIN accounts credit ON credit.id = p.to_account_id
        WHERE (p.posted_by IS NOT NULL AND p.posted_by IS DISTINCT FROM debit.user_id)
            OR (p.settled_by IS NOT NULL AND p.settled_by IS DISTINCT FROM credit.user_id)
        """,
    # Times must not be ahead of the database's clock.
    "times": """
        SELECT format('%s have a time in the future', kind) AS fault, format('%s: %s', id, at) AS finding
        FROM (
            SELECT 'accounts' AS kind, id, greatest(created_at, updated_at) AS at FROM accounts
            UNION ALL
            SELECT 'entries', account_id, max(created_at) FROM entries GROUP BY account_id
            UNION ALL
            SELECT 'transfers', id, created_at FROM transfers
            UNION ALL
            SELECT 'pending transfers', id, greatest(created_at, settled_at) FROM pending_transfers
        ) AS rows
        WHERE at > clock_timestamp()
        """,
    # A key is written in the same transaction as its transfer or account, and has the same time. A posted transfer
    # has a later time than its key if `updated_at` of one of its accounts was later than the clock.
    "idempotency keys": """
        SELECT fault, format('key %s', k.key) AS finding
        FROM idempotency_keys k
        LEFT JOIN transfers t ON t.id = k.transfer_id
        LEFT JOIN pending_transfers p ON p.id = k.transfer_id
        LEFT JOIN accounts a ON a.id = k.account_id
        CROSS JOIN LATERAL (VALUES
            (
                'idempotency keys disagree with their transfer or account',
                CASE k.answer
                    WHEN 'posted' THEN t.id IS NULL
                    WHEN 'pending' THEN p.id IS NULL
                    WHEN 'voided' THEN p.state IS DISTINCT FROM 'voided'
                    WHEN 'opened' THEN a.id IS NULL
                END
            ),
            (
                'idempotency keys have another time than their transfer or account',
                CASE k.answer
                    WHEN 'posted' THEN k.created_at > t.created_at OR k.created_at <> p.settled_at
                    WHEN 'pending' THEN k.created_at <> p.created_at
                    WHEN 'voided' THEN k.created_at <> p.settled_at
                    WHEN 'opened' THEN k.created_at > a.created_at
                END
            )
        ) AS rules (fault, is_violated)
        WHERE is_violated
        """,
}

_SCHEMA: Final = "schema"
_COUNTING: Final = "counting"
STEPS: Final = (_SCHEMA, *_CHECKS, *seals.CHECKS, _COUNTING)


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """The result of a check: the numbers of rows, and the faults.

    `faults` has up to 20 findings of each kind. It is empty if the ledger is correct. `seal` is the last link of the
    chain. Pass it as `since` to a later check. That check finds any change of the rows that were sealed up to this
    link.
    """

    accounts: int
    transfers: int
    entries: int
    faults: dict[str, list[str]] = field(default_factory=dict)
    seal: Link | None = None


async def check_ledger(
    db: AsyncSession,
    *,
    since: Link | None = None,
    begin: Callable[[str], None] = lambda _step: None,
    is_newer: bool = False,
) -> LedgerReport:
    """Check the ledger, and report the faults.

    Every balance must follow from its entries, every transfer must balance, and every currency must sum to zero. No row
    may have been changed after it was sealed. The chain of seals must have the link `since`.

    The session must read from one snapshot (`isolation_level="REPEATABLE READ"`). Otherwise concurrent transfers would
    look like faults. Until the transaction ends, the session has no statement timeout and little `work_mem`. `begin` is
    called with each of `STEPS` when that step begins. See `compare_schema` for `is_newer`.
    """
    begin(_SCHEMA)
    schema = await compare_schema(db, is_newer=is_newer)
    for name, value in _SETTINGS.items():
        await db.execute(text(f"SET LOCAL {name} = {value}"))
    faults: defaultdict[str, list[str]] = defaultdict(list)
    faults |= {
        kind: findings[:_MAX_FINDINGS]
        for kind, findings in (
            ("parts of the schema that are missing, disabled or changed", schema.defects),
            ("triggers, policies and settings that the ledger doesn't have", schema.unknown),
        )
        if findings
    }
    for step, check in (_CHECKS | seals.CHECKS).items():
        begin(step)
        if step in seals.CHECKS and schema.lacks_seals:
            continue
        for fault, finding in await db.execute(text(_limit_findings(check))):
            faults[fault].append(finding)
    begin(_COUNTING)
    if since is not None and (schema.lacks_seals or not await seals.has_link(db, since)):
        faults["the chain of seals doesn't contain this seal"].append(str(since))

    async def count(table: type[Account | Transfer | Entry]) -> int:
        return await db.scalar(select(func.count()).select_from(table)) or 0

    return LedgerReport(
        accounts=await count(Account),
        transfers=await count(Transfer),
        entries=await count(Entry),
        faults=dict(faults),
        seal=None if schema.lacks_seals else await seals.last_link(db),
    )


def _limit_findings(check: str) -> str:
    """The query, with at most `_MAX_FINDINGS` rows of each fault."""
    return f"""
        SELECT fault, finding
        FROM (
            SELECT *, row_number() OVER (PARTITION BY fault ORDER BY finding) AS nth FROM ({check}) AS findings
        ) AS numbered
        WHERE nth <= {_MAX_FINDINGS}
        ORDER BY fault, nth
        """  # noqa: S608  # made of the constant queries above
