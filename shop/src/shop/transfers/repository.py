"""Finding transfers, and claiming idempotency keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from uuid import UUID

from sqlalchemy import select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from howdah import AsyncRepository
from shop.transfers.models import IdempotencyKey, Transfer


class TransferRepository(AsyncRepository[Transfer]):
    async def reversals_of(self, transfer_ids: Collection[UUID]) -> set[UUID]:
        """Which of these transfers have been reversed."""
        if not transfer_ids:
            return set()
        reversed_ids = select(Transfer.reverses_id).where(Transfer.reverses_id.in_(transfer_ids))
        return {found for found in await self.session.scalars(reversed_ids) if found is not None}


class IdempotencyKeyRepository(AsyncRepository[IdempotencyKey]):
    async def claim(self, fingerprints: Mapping[tuple[str, str], bytes]) -> dict[tuple[str, str], IdempotencyKey]:
        """Claim these (scope, key) pairs for this transaction; the ones that were used before, with their outcome.

        They are claimed in one order by everybody, so claims can't deadlock. A pair that a running transaction has
        claimed is waited for: it is free if that one rolls back, and used if it commits.
        """
        if not fingerprints:
            return {}
        rows = [
            {"scope": scope, "key": key, "fingerprint": fingerprints[scope, key]} for scope, key in sorted(fingerprints)
        ]
        claimed = await self.session.execute(
            insert(IdempotencyKey)
            .values(rows)
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.scope, IdempotencyKey.key)
        )
        used = set(fingerprints) - {(scope, key) for scope, key in claimed}
        if not used:
            return {}
        # a statement of its own: what was committed while the insert waited isn't in the insert's snapshot
        found = await self.session.scalars(
            select(IdempotencyKey)
            .where(tuple_(IdempotencyKey.scope, IdempotencyKey.key).in_(sorted(used)))
            .execution_options(populate_existing=True)
        )
        return {(each.scope, each.key): each for each in found}

    async def settle(self, outcomes: Mapping[tuple[str, str], tuple[UUID | None, str | None]]) -> None:
        """Write the outcome of each claimed (scope, key): a transfer's id, or a refusal."""
        rows = [
            {"scope": scope, "key": key, "transfer_id": transfer_id, "refusal": refusal}
            for (scope, key), (transfer_id, refusal) in outcomes.items()
        ]
        if rows:
            await self.session.execute(update(IdempotencyKey), rows)
