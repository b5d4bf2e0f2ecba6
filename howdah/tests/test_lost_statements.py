"""`DEALLOCATE ALL` and `DISCARD ALL` remove the prepared statements that the driver keeps."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from howdah import Database, SchemaChanged, run_transaction

PID = text("SELECT pg_backend_pid()")


async def pid(connection: AsyncConnection) -> int:
    found: int = (await connection.scalars(PID)).one()
    return found


async def test_the_connection_is_replaced_after_the_first_error(real_database: Database) -> None:
    async with real_database.session() as session:
        first = await session.scalar(PID)
        await session.execute(text("DEALLOCATE ALL"))
        await session.commit()
    async with real_database.session() as session:
        with pytest.raises(SchemaChanged) as caught:
            await session.execute(PID)
        assert caught.value.sqlstate == "26000"
    async with real_database.session() as session:
        assert await session.scalar(PID) != first


@pytest.mark.parametrize("statement", ["DEALLOCATE ALL", "DISCARD ALL"])
async def test_a_read_and_a_transaction_are_repeated_on_another_connection(
    real_database: Database, statement: str
) -> None:
    async def poison() -> int:
        async with real_database.autocommit() as connection:
            found = await pid(connection)
            await connection.exec_driver_sql(statement)
            return found

    async def work(session: AsyncSession) -> int:
        return await pid(await session.connection())

    poisoned = await poison()
    assert await real_database.read(pid) != poisoned
    async with real_database.session() as session:
        first = await pid(await session.connection())
        await session.execute(text("DEALLOCATE ALL"))
        await session.commit()
    assert await run_transaction(real_database, work) != first
