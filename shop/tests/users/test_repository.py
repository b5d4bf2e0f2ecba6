"""Find users."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.testing import assert_indexed
from shop.users.models import User
from shop.users.repository import UserRepository
from shop.users.schemas import UserPageParameters
from shop_tests.support.query_plans import explain, uses_index


async def test_a_user_is_found_by_address_in_upper_or_lower_case(session: AsyncSession) -> None:
    users = UserRepository(session)
    ada = await users.create(email="ada@example.com", name="Ada")
    assert await users.get_by_email("Ada@Example.COM") is ada
    assert await users.get_by_email("grace@example.com") is None


@pytest.fixture
async def crowd(session: AsyncSession) -> None:
    """Insert 20,000 users of 1,000 countries, one created per minute."""
    insert_users = text("""
        INSERT INTO users (id, email, name, country, created_at, updated_at, version)
        SELECT gen_random_uuid(), n || '@example.com', 'Ada', 'Country ' || n % 1000,
            '2026-01-01T00:00Z'::timestamptz + n * interval '1 minute', now(), 1
        FROM generate_series(1, 20000) AS n
        """)
    # With the collation C this constraint's index could be used for prefixes, too.
    unordered = text("ALTER TABLE users DROP CONSTRAINT uq_users_email")
    for statement in (insert_users, unordered, text("ANALYZE users")):
        await session.execute(statement)


@pytest.mark.usefixtures("crowd")
@pytest.mark.parametrize(
    ("filters", "index", "found"),
    [
        ({"email_prefix": "1234"}, "ix_users_email_prefix", 11),
        ({"country": "Country 7"}, "ix_users_country_id", 20),
        ({"created_before": datetime(2026, 1, 1, 0, 31, tzinfo=UTC)}, "ix_users_created_at", 30),
        (
            {
                "created_from": datetime(2026, 1, 3, tzinfo=UTC),
                "created_before": datetime(2026, 1, 3, 0, 40, tzinfo=UTC),
            },
            "ix_users_created_at",
            40,
        ),
    ],
)
async def test_each_filter_of_users_uses_its_index(
    session: AsyncSession, filters: dict[str, Any], index: str, found: int
) -> None:
    page = partial(UserRepository(session).page, UserPageParameters(**filters).apply(select(User)), limit=50)
    assert len((await page()).items) == found
    assert uses_index(await explain(session, page), index)
    await session.execute(text(f"DROP INDEX {index}"))  # the control
    assert not uses_index(await explain(session, page), index)


async def test_an_index_supports_every_filter_of_the_list(session: AsyncSession) -> None:
    await assert_indexed(session, UserPageParameters)
