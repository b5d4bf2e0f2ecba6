"""The chain of seals. The database links it, and the hash of the last link depends on everything sealed before."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop.ledger.models import Seal

_LINKED_AT_A_TIME: Final = 10_000


@dataclass(frozen=True, slots=True)
class Link:
    """A link of the chain, written `POSITION:HASH`. The hash is computed from all seals up to this one."""

    position: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.position}:{self.hash.hex()}"

    @classmethod
    def parse(cls, written: str) -> Link:
        """The inverse of `str`. Raises `ValueError` for another text."""
        found = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9a-fA-F]{64})", written.strip())
        if found is None:
            raise ValueError(f"{written!r} isn't a seal: write POSITION:HASH, as `shop check` printed it")
        return cls(int(found[1]), bytes.fromhex(found[2]))


async def link_seals(database: Database) -> int:
    """Append the committed seals that aren't linked yet to the chain, and return their number. Processes that do it at
    the same time wait for each other. Transfers don't wait for it."""
    linked = 0
    while True:
        async with database.begin() as session:
            found = await session.scalar(text("SELECT link_seals(:max_seals)"), {"max_seals": _LINKED_AT_A_TIME}) or 0
        linked += found
        if found < _LINKED_AT_A_TIME:
            return linked


async def last_link(db: AsyncSession) -> Link | None:
    """The last link of the chain; None if there is none."""
    newest = select(Seal.position, Seal.hash).where(Seal.position.is_not(None)).order_by(Seal.position.desc()).limit(1)
    row = (await db.execute(newest)).one_or_none()
    return None if row is None or row.position is None or row.hash is None else Link(row.position, row.hash)


async def has_link(db: AsyncSession, link: Link) -> bool:
    """Whether the chain has this link at this position."""
    return bool(await db.scalar(select(Seal.hash == link.hash).where(Seal.position == link.position)))


def _of_what_changes(name: str, table: str, revision: str) -> str:
    """For rows that can change: each seal continues the one before, and the last one agrees with the table."""
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
                'sealed {name}s that are gone', t.digest IS NULL AND s.is_last,
                format('{name} %s', id)
            ),
            ('{name}s that no seal has', s.digest IS NULL, format('{name} %s', id)),
            (
                '{name}s that differ from their last seal',
                s.is_last AND (t.digest <> s.digest OR t.revision < s.revision),
                format('{name} %s: revision %s, sealed up to %s', id, t.revision, s.revision)
            ),
            (
                '{name}s that changed between two seals',
                s.revision_before IS NOT NULL
                    AND (s.before IS DISTINCT FROM s.digest_before OR s.revision = s.revision_before),
                format('{name} %s: between revision %s and %s', id, s.revision_before, s.revision)
            )
        ) AS told (fault, found, finding)
        WHERE found
        """  # noqa: S608  # of names from below


# Like those of `shop.ledger.check`. The database's functions compute the digests. `shop.ledger.schema` compares these
# functions with their definitions.
CHECKS: Final = {
    "chain of seals": """
        SELECT fault, finding
        FROM (
            SELECT position, hash, lag(position, 1, 0::bigint) OVER w AS position_before,
                hash_of_seal(lag(hash) OVER w, s) AS hash_that_follows
            FROM seals s WHERE position IS NOT NULL WINDOW w AS (ORDER BY position)
        ) link
        CROSS JOIN LATERAL (VALUES
            (
                'gaps in the chain of seals', position <> position_before + 1,
                format('seal %s comes after %s', position, position_before)
            ),
            (
                'seals that don''t follow from the one before', hash <> hash_that_follows,
                format('seal %s', position)
            )
        ) AS told (fault, found, finding)
        WHERE found
        """,
    "sealed transfers": """
        SELECT
            CASE WHEN t.digest IS NULL THEN 'sealed transfers that are gone'
                WHEN s.digest IS NULL THEN 'transfers that no seal has'
                ELSE 'transfers that differ from their seal' END AS fault,
            format('transfer %s', id) AS finding
        FROM (SELECT id, digest_of_transfer(t) AS digest FROM transfers t) t
        FULL JOIN (
            SELECT sealed.* FROM seals CROSS JOIN LATERAL unnest(ids, digests) AS sealed (id, digest)
            WHERE subject = 'transfers'
        ) s USING (id)
        WHERE t.digest IS DISTINCT FROM s.digest
        """,
    "sealed pending transfers": _of_what_changes(
        "pending transfer", "pending_transfers", "(state <> 'pending')::int::bigint"
    ),
    "sealed accounts": _of_what_changes("account", "accounts", "revision"),
    # a missing key isn't a fault: old keys are deleted
    "sealed idempotency keys": """
        SELECT 'idempotency keys that no seal has, or that differ from it' AS fault, format('key %s', key) AS finding
        FROM (SELECT key, digest_of_idempotency_key(k) AS digest FROM idempotency_keys k) k
        LEFT JOIN (
            SELECT unnest(digests) AS digest FROM seals WHERE subject = 'idempotency_keys'
        ) s USING (digest)
        WHERE s.digest IS NULL
        """,
}
