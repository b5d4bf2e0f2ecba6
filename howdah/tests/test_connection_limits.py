"""The pools of all processes are compared with the connections that PostgreSQL accepts."""

from __future__ import annotations

import pytest
from sqlalchemy import make_url, text

from howdah import Database, PoolsTooLarge, Unavailable, check_connection_limits


async def read_limit(url: str) -> int:
    """The connections that the test server accepts from logins without special rights."""
    async with Database(url, pool_size=1) as database, database.session() as session:
        total, *reserved = [
            await session.scalar(text("SELECT current_setting(:name, true)"), {"name": name})
            for name in ("max_connections", "superuser_reserved_connections", "reserved_connections")
        ]
    return int(str(total)) - sum(int(each or 0) for each in reserved)


async def test_pools_that_fit_exactly_are_accepted(database_url: str) -> None:
    limit = await read_limit(database_url)
    async with (
        Database(database_url, pool_size=limit - 30, max_overflow=10) as large,
        Database(database_url, pool_size=20, max_overflow=0) as small,
    ):
        await check_connection_limits([large, small])
        with pytest.raises(PoolsTooLarge, match=rf"one process could open {limit + 20} connections .* by at least 20"):
            await check_connection_limits([large, small, small])


async def test_one_worker_more_is_counted_because_workers_are_replaced(database_url: str) -> None:
    limit = await read_limit(database_url)
    async with Database(database_url, pool_size=limit // 4, max_overflow=0) as database:
        await check_connection_limits([database], workers=3)
        problem = (
            rf"4 workers, and one more while a worker is replaced, could open {5 * (limit // 4)} connections "
            rf"\({limit // 4} in each process\), but PostgreSQL \(max_connections = \d+\) accepts {limit} of them: "
            r"raise max_connections of PostgreSQL by at least \d+, or lower MY_POOL, or run at most 3 workers"
        )
        with pytest.raises(PoolsTooLarge, match=problem):
            await check_connection_limits([database], workers=4, advice="MY_POOL")


async def test_the_limit_of_the_login_counts(committed_url: str) -> None:
    """The limit doesn't apply to superusers, so the fixture's own login is accepted."""
    login = make_url(committed_url).set(username="howdah_limited").render_as_string(hide_password=False)
    async with Database(committed_url) as owner:
        async with owner.begin() as session:
            await session.execute(text("DROP ROLE IF EXISTS howdah_limited"))
            await session.execute(text("CREATE ROLE howdah_limited LOGIN CONNECTION LIMIT 5"))
        async with Database(login, pool_size=5, max_overflow=0) as limited:
            await check_connection_limits([limited, owner])
        async with Database(login, pool_size=6, max_overflow=0) as limited:
            with pytest.raises(PoolsTooLarge, match="the login accepts 5 of them: raise CONNECTION LIMIT of the login"):
                await check_connection_limits([limited])
        async with owner.begin() as session:
            await session.execute(text("DROP ROLE howdah_limited"))


async def test_a_database_behind_a_transaction_pooler_is_not_asked() -> None:
    async with Database("postgresql://nobody@127.0.0.1:1/none", pooler="transaction", pool_size=10_000) as database:
        await check_connection_limits([database])
    async with Database("postgresql://nobody@127.0.0.1:1/none", pool_size=10_000) as database:
        with pytest.raises(Unavailable):
            await check_connection_limits([database])
