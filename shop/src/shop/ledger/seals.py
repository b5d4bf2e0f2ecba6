"""The chain of seals: link new seals to it, and check rows against their seals.

The SQL function `link_seals` numbers the seals and computes their hashes. A hash depends on all seals up to its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop.ledger.seal_models import Seal

_BATCH_SIZE: Final = 10_000
"""The largest number of seals that one transaction links."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link of the chain, written `POSITION:HASH`. The hash is computed from all seals up to this one."""

    position: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.position}:{self.hash.hex()}"

    @classmethod
    def parse(cls, value: str) -> Link:
        """The inverse of `str`. Raises `ValueError` for a text that isn't a link."""
        match = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9a-fA-F]{64})", value.strip())
        if match is None:
            raise ValueError(f"{value!r} isn't a seal: write POSITION:HASH, as `shop check` printed it")
        return cls(int(match[1]), bytes.fromhex(match[2]))


async def link_seals(database: Database) -> int:
    """Append the committed seals that aren't linked yet to the chain, and return their number.

    Concurrent calls wait for each other. Transfers don't wait for them.
    """
    linked = 0
    while True:
        async with database.begin() as session:
            batch_count = await session.scalar(text("SELECT link_seals(:max_seals)"), {"max_seals": _BATCH_SIZE}) or 0
        linked += batch_count
        if batch_count < _BATCH_SIZE:
            return linked


async def last_link(db: AsyncSession) -> Link | None:
    """The last link of the chain; None if there is none."""
    last = select(Seal.position, Seal.hash).where(Seal.position.is_not(None)).order_by(Seal.position.desc()).limit(1)
    row = (await db.execute(last)).one_or_none()
    if row is None or row.position is None or row.hash is None:
        return None
    return Link(row.position, row.hash)


async def has_link(db: AsyncSession, link: Link) -> bool:
    """Whether the chain has this hash at this position."""
    return bool(await db.scalar(select(Seal.hash == link.hash).where(Seal.position == link.position)))


def _build_changeable_rows_query(name: str, table: str, revision: str) -> str:
    """The query that checks rows that can change. Each seal of a row must continue the previous seal of that row, and
    the row must agree with its last seal.

    `revision` is an SQL expression. `name` is the word for one row in the findings.
    """
    return f"""
        SELECT fault, finding
        FROM (SELECT id, {revision} AS revision, digest_of_{table.removesuffix("s")}(t) AS digest FROM {table} t) t
        FULL JOIN (
            SELECT sealed.*, lag(digest) OVER w AS digest_before, lag(revision) OVER w AS revision_before,
                lead(revision) OVER w IS NULL AS is_last
            FROM seals
            CROSS JOIN LATERAL unnest(ids, revisions, digests, previous_digests)
                AS sealed (id, revision, digest, before)
            WHERE subject = '{table}' WINDOW w AS (PARTITION BY sealed.id ORDER BY revision)
        ) s USING (id)
        CROSS JOIN LATERAL (VALUES
            (
                'sealed {name}s are missing', t.digest IS NULL AND s.is_last,
                format('{name} %s', id)
            ),
            ('{name}s are not sealed', s.digest IS NULL, format('{name} %s', id)),
            (
                '{name}s differ from their last seal',
                s.is_last AND (t.digest <> s.digest OR t.revision < s.revision),
                format('{name} %s: revision %s, sealed up to %s', id, t.revision, s.revision)
            ),
            (
                '{name}s were changed between two seals',
                s.revision_before IS NOT NULL
                    AND (s.before IS DISTINCT FROM s.digest_before OR s.revision = s.revision_before),
                format('{name} %s: between revision %s and %s', id, s.revision_before, s.revision)
            )
        ) AS rules (fault, is_violated, finding)
        WHERE is_violated
        """  # noqa: S608  # made of the constants below


# Each query returns a row for each violation, as in `shop.ledger.check`. SQL functions compute the digests.
# `shop.ledger.schema` compares these functions with their definitions.
CHECKS: Final = {
    "chain of seals": """
        SELECT fault, finding
        FROM (
            SELECT position, hash, lag(position, 1, 0::bigint) OVER w AS position_before,
                hash_of_seal(lag(hash) OVER w, s) AS expected_hash
            FROM seals s WHERE position IS NOT NULL WINDOW w AS (ORDER BY position)
        ) link
        CROSS JOIN LATERAL (VALUES
            (
                'the chain of seals has gaps', position <> position_before + 1,
                format('seal %s comes after %s', position, position_before)
            ),
            (
                'seals disagree with the previous seal', hash <> expected_hash,
                format('seal %s', position)
            )
        ) AS rules (fault, is_violated, finding)
        WHERE is_violated
        """,
    "sealed transfers": """
        SELECT
            CASE WHEN t.digest IS NULL THEN 'sealed transfers are missing'
                WHEN s.digest IS NULL THEN 'transfers are not sealed'
                ELSE 'transfers differ from their seal' END AS fault,
            format('transfer %s', id) AS finding
        FROM (SELECT id, digest_of_transfer(t) AS digest FROM transfers t) t
        FULL JOIN (
            SELECT sealed.* FROM seals CROSS JOIN LATERAL unnest(ids, digests) AS sealed (id, digest)
            WHERE subject = 'transfers'
        ) s USING (id)
        WHERE t.digest IS DISTINCT FROM s.digest
        """,
    "sealed audit events": """
        SELECT
            CASE WHEN e.digest IS NULL THEN 'sealed audit events are missing'
                WHEN s.digest IS NULL THEN 'audit events are not sealed'
                ELSE 'audit events differ from their seal' END AS fault,
            format('audit event %s', id) AS finding
        FROM (SELECT id, digest_of_audit_event(e) AS digest FROM audit_events e) e
        FULL JOIN (
            SELECT sealed.* FROM seals CROSS JOIN LATERAL unnest(ids, digests) AS sealed (id, digest)
            WHERE subject = 'audit_events'
        ) s USING (id)
        WHERE e.digest IS DISTINCT FROM s.digest
        """,
    "sealed pending transfers": _build_changeable_rows_query(
        "pending transfer", "pending_transfers", "(state <> 'pending')::int::bigint"
    ),
    "sealed accounts": _build_changeable_rows_query("account", "accounts", "revision"),
    # A missing key isn't a fault, because old keys are deleted.
    "sealed idempotency keys": """
        SELECT 'idempotency keys are not sealed, or differ from their seal' AS fault, format('key %s', key) AS finding
        FROM (SELECT key, digest_of_idempotency_key(k) AS digest FROM idempotency_keys k) k
        LEFT JOIN (
            SELECT unnest(digests) AS digest FROM seals WHERE subject = 'idempotency_keys'
        ) s USING (digest)
        WHERE s.digest IS NULL
        """,
}
