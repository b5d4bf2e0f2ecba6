"""`bulk_create_users`."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import UniqueViolation
from shop.users.models import User
from shop.users.repository import UserRepository
from shop.users.service import bulk_create_users


def rows(count: int) -> list[dict[str, Any]]:
    return [{"email": f"User{n}@example.com", "name": "Ada"} for n in range(count)]


async def test_bulk_create_users_inserts_all_and_returns_their_number(session: AsyncSession) -> None:
    assert await bulk_create_users(session, rows(2_500), chunk_size=1_000) == 2_500
    assert await session.scalar(select(func.count()).select_from(User)) == 2_500
    assert await UserRepository(session).get_by_email("user2499@example.com") is not None


async def test_bulk_create_users_reads_any_iterable_and_keeps_nothing_in_the_session(session: AsyncSession) -> None:
    assert await bulk_create_users(session, (row for row in rows(10)), chunk_size=3) == 10
    assert len(session.identity_map) == 0
    assert await bulk_create_users(session, [], chunk_size=3) == 0


async def test_bulk_create_users_is_all_or_nothing_and_reports_the_rejected_row(session: AsyncSession) -> None:
    with pytest.raises(UniqueViolation) as caught:
        await bulk_create_users(session, [*rows(1_500), *rows(1)])
    assert (caught.value.row_index, caught.value.constraint) == (1_500, "uq_users_email")
    assert await session.scalar(select(func.count()).select_from(User)) == 0  # the session can still be used
