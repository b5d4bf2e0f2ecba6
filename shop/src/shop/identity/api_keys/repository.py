"""Read the keys of a batch, and write their last uses. Both run as the system, not as the user of a key."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ARRAY, String, Uuid, any_, bindparam, cast, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah import Database
from shop.identity.api_keys.models import ApiKey
from shop.identity.models import Credential
from shop.identity.principals import Role

# Other processes also write the last use of the same key. A recent time is not written again.
_MIN_AGE: Final = timedelta(seconds=30)

_now = func.statement_timestamp()
_ids = bindparam("ids", type_=ARRAY(Uuid()))

# The database's clock decides whether a key has expired, so the clocks of the servers don't matter.
_READ: Final = (
    select(
        ApiKey.id,
        ApiKey.prefix,
        ApiKey.user_id,
        ApiKey.secret_hash,
        ApiKey.scopes,
        Credential.role,
        (func.extract("epoch", ApiKey.expires_at - _now)).label("seconds_left"),
    )
    .outerjoin(Credential, Credential.user_id == ApiKey.user_id)
    .where(
        ApiKey.prefix == any_(bindparam("prefixes", type_=ARRAY(String()))),
        ApiKey.revoked_at.is_(None),
        ApiKey.expires_at > _now,
    )
)

# Rows that another process is writing are skipped, because it writes nearly the same time. So no statement waits.
_WRITE_LAST_USED: Final = (
    update(ApiKey)
    .where(
        ApiKey.id.in_(
            select(ApiKey.id)
            .where(
                ApiKey.id == any_(_ids),
                or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < _now - _MIN_AGE),
            )
            .order_by(ApiKey.id)
            .with_for_update(key_share=True, skip_locked=True)
        )
    )
    .values(last_used_at=_now)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key that is neither revoked nor expired, with the current role of its user."""

    id: UUID
    user_id: UUID
    secret_hash: bytes
    scopes: Sequence[str]
    role: Role
    seconds_left: float


async def read_keys(connection: AsyncConnection, prefixes: Sequence[str]) -> dict[str, StoredKey]:
    """The valid keys with these prefixes."""
    rows = await connection.execute(_READ, {"prefixes": list(prefixes)})
    return {
        row.prefix: StoredKey(
            id=row.id,
            user_id=row.user_id,
            secret_hash=row.secret_hash,
            scopes=row.scopes,
            role=Role.CUSTOMER if row.role is None else row.role,
            seconds_left=float(row.seconds_left),
        )
        for row in rows
    }


async def write_last_used(database: Database, ids: Collection[UUID]) -> None:
    """Set `last_used_at` of these keys to the current time."""
    async with database.autocommit() as connection:
        await connection.execute(_WRITE_LAST_USED, {"ids": list(ids)})


async def delete_old_keys(database: Database, *, older_than: timedelta) -> int:
    """Delete keys that were revoked or have expired longer ago than this. Returns their number."""
    ended_at = func.least(ApiKey.revoked_at, ApiKey.expires_at)  # LEAST ignores NULL
    async with database.begin() as session:
        result = await session.execute(
            delete(ApiKey).where(ended_at < cast(_now, ApiKey.expires_at.type) - older_than).returning(ApiKey.id)
        )
        return len(result.all())
