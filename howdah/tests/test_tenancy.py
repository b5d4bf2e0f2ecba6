"""A tenant's settings apply to every way to read, and stay on no connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from howdah import Database
from howdah_tests.support.tenants import (
    READS,
    SETTING,
    TENANTS,
    NoteView,
    Read,
    by_view_key,
    create_notes,
    in_a_read,
    in_a_session,
    in_autocommit,
    scoped,
)


@pytest.fixture
async def tenants_url(committed_url: str) -> AsyncIterator[str]:
    async with create_notes(committed_url) as url:
        yield url


@pytest.fixture
async def tenants(tenants_url: str) -> AsyncIterator[Database]:
    """A database with few connections, whose role the policies apply to."""
    async with Database(tenants_url, pool_size=2, max_overflow=1) as database:
        yield database


async def test_each_tenant_sees_only_its_own_rows_by_every_way_to_read(tenants: Database) -> None:
    async with NoteView.open(tenants) as notes:
        for read in READS:
            for tenant in (*TENANTS, *TENANTS):
                assert await read(*scoped(tenants, notes, tenant)) == {tenant}, read
            assert await read(tenants, notes) == set(), read


async def test_concurrent_tenants_on_few_connections_see_only_their_own_rows(tenants: Database) -> None:
    async def check(read: Read, tenant: int | None) -> None:
        database, reader = (tenants, notes) if tenant is None else scoped(tenants, notes, tenant)
        assert await read(database, reader) == (set() if tenant is None else {tenant}), read

    async with NoteView.open(tenants) as notes:
        await asyncio.gather(*(check(read, tenant) for read in READS for tenant in (*TENANTS, None)))
    assert tenants.pool_status().in_use == 0


@pytest.mark.parametrize("read", [in_a_session, in_a_read, in_autocommit, by_view_key])
async def test_control_a_session_level_setting_reaches_the_next_user_of_the_connection(
    tenants_url: str, read: Read
) -> None:
    async with Database(tenants_url, pool_size=1, max_overflow=0) as database, NoteView.open(database) as notes:
        async with database.session() as session:
            await session.execute(text(f"SELECT set_config('{SETTING}', '1', false)"))
            await session.commit()
        assert await read(database, notes) == {1}
