"""Finding transfers, and claiming idempotency keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import ARRAY, LargeBinary, String, TableValuedAlias, any_, column, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.types import TypeEngine

from howdah import AsyncRepository, utcnow
from shop.transfers.models import IdempotencyKey, Transfer

ScopedKey: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the first request under a key, whose digest is `fingerprint`, came to."""

    fingerprint: bytes
    transfer_id: UUID | None
    refusal: str | None


class TransferRepository(AsyncRepository[Transfer]):
    async def reversals_of(self, transfer_ids: Collection[UUID]) -> set[UUID]:
        """Which of these transfers have been reversed."""
        if not transfer_ids:
            return set()
        any_of_them = any_(literal(list(transfer_ids), ARRAY(Transfer.id.type)))
        found = await self.session.scalars(select(Transfer.reverses_id).where(Transfer.reverses_id == any_of_them))
        return {reversed_id for reversed_id in found if reversed_id is not None}


class IdempotencyKeyRepository(AsyncRepository[IdempotencyKey]):
    async def claim(self, fingerprints: Mapping[ScopedKey, bytes]) -> dict[ScopedKey, Outcome]:
        """Claim these (scope, key) pairs, any number, for this transaction; what the ones used before came to.

        They are claimed in one order by everybody, so claims can't deadlock. A pair that a running transaction has
        claimed is waited for: it is free if that one rolls back, and used if it commits.
        """
        if not fingerprints:
            return {}
        given = _as_rows({pair: fingerprints[pair] for pair in sorted(fingerprints)})
        claimed = await self.session.execute(
            insert(IdempotencyKey)
            .from_select(["scope", "key", "fingerprint", "created_at"], select(*given.c, literal(utcnow())))
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.scope, IdempotencyKey.key)
        )
        used = fingerprints.keys() - {(scope, key) for scope, key in claimed}
        if not used:
            return {}
        # a statement of its own: what was committed while the insert waited isn't in the insert's snapshot
        given = _as_rows({pair: fingerprints[pair] for pair in used})
        found = await self.session.execute(
            select(
                IdempotencyKey.scope,
                IdempotencyKey.key,
                IdempotencyKey.fingerprint,
                IdempotencyKey.transfer_id,
                IdempotencyKey.refusal,
            ).join(given, (IdempotencyKey.scope == given.c.scope) & (IdempotencyKey.key == given.c.key))
        )
        return {(row.scope, row.key): Outcome(row.fingerprint, row.transfer_id, row.refusal) for row in found}

    async def settle(self, outcomes: Mapping[ScopedKey, tuple[UUID | None, str | None]]) -> None:
        """Write the outcome of each claimed (scope, key): a transfer's id, or a refusal."""
        rows = [
            {"scope": scope, "key": key, "transfer_id": transfer_id, "refusal": refusal}
            for (scope, key), (transfer_id, refusal) in outcomes.items()
        ]
        if rows:
            await self.session.execute(update(IdempotencyKey), rows)


def _as_rows(fingerprints: Mapping[ScopedKey, bytes]) -> TableValuedAlias:
    """The pairs and their fingerprints as a table to select from: three parameters, however many they are."""
    columns: dict[str, tuple[TypeEngine[Any], list[Any]]] = {
        "scope": (String(), [scope for scope, _ in fingerprints]),
        "key": (String(), [key for _, key in fingerprints]),
        "fingerprint": (LargeBinary(), list(fingerprints.values())),
    }
    arrays = [literal(values, ARRAY(kind)) for kind, values in columns.values()]
    names = [column(name, kind) for name, (kind, _) in columns.items()]
    return func.unnest(*arrays).table_valued(*names).render_derived(name="given")
