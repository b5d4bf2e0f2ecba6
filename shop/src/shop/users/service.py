"""The view of users, and bulk creation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import JsonView, bulk
from shop.users.models import User
from shop.users.schemas import UserOut

USER_VIEW: Final = JsonView(User, UserOut)


async def bulk_create_users(db: AsyncSession, users_data: Iterable[Mapping[str, Any]], chunk_size: int = 1000) -> int:
    """Insert all users or none, and return their number. No `User` objects are added to the session.

    `users_data` may be any iterable. At most `chunk_size` rows are in memory at a time. Email addresses are converted
    to lower case. Raises `IntegrityViolation`, such as `UniqueViolation`, with the `row_index` of the rejected row.
    """
    rows = ({**row, "email": row["email"].lower()} if "email" in row else row for row in users_data)
    return (await bulk.insert_many(db, User, rows, chunk_size=chunk_size, keys=False)).count
