"""bulk-create: insert many rows and return their keys."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from sqlalchemy import insert

from benchmarks import reference, table_data
from benchmarks.comparison import Comparison, Contender, Goal, check_equal
from benchmarks.tables import User
from howdah import AsyncRepository, utcnow, uuid7

COLUMNS = ("id", "email", "name", "country", "created_at", "updated_at", "version")


class Repository(SQLAlchemyAsyncRepository[User]):
    model_type = User


class BulkCreate(Comparison):
    name = "bulk-create"
    description = "insert {size} users from dicts in one transaction, and return their ids"
    unit = "rows"

    async def set_up(self) -> None:
        self.rows = table_data.user_rows(self.count)
        self.checksum = await table_data.checksum_of_rows(self.connections.driver, self.rows)

    def contenders(self) -> list[Contender]:
        return [
            Contender("howdah create_many", "howdah", self.run_howdah, self.count),
            Contender("asyncpg COPY of ready-made tuples", "baseline", self.run_copy, self.count),
            Contender("reference bulk_create_users", "reference", self.run_reference, self.count, self._slow_rounds),
            Contender("advanced-alchemy add_many", "peer", self.run_advanced_alchemy, self.count, self._slow_rounds),
            Contender("SQLAlchemy Core insert, RETURNING", "peer", self.run_core, self.count, self._slow_rounds),
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal("howdah create_many", "times as fast", 0.8, "asyncpg COPY of ready-made tuples"),
            Goal("howdah create_many", "times as fast", 6, "reference bulk_create_users"),
            Goal("howdah create_many", "times as fast", 8, "advanced-alchemy add_many"),
        ]

    @property
    def _slow_rounds(self) -> int:
        return max(self.requested_rounds, min(50, 20_000 // self.count))

    def rounds(self) -> int:
        return max(3 * self.requested_rounds, self._slow_rounds)  # a run is short (0.5 s), so it is noisy

    async def reset(self, contender: Contender) -> None:
        await table_data.empty_tables(self.connections.driver)
        if contender.role == "baseline":  # the tuples are built here, so that the measured time doesn't include it
            now = utcnow()
            self.tuples = [(uuid7(), row["email"], row["name"], row["country"], now, now, 1) for row in self.rows]

    async def run_howdah(self) -> list[UUID]:
        async with self.connections.database.begin() as session:
            return (await AsyncRepository(session, User).create_many(self.rows)).keys

    async def run_copy(self) -> list[UUID]:
        async with self.connections.driver.transaction():
            await self.connections.driver.copy_records_to_table("users", records=self.tuples, columns=COLUMNS)
        return [row[0] for row in self.tuples]

    async def run_reference(self) -> int:
        async with self.connections.sessions() as db, db.begin():
            return await reference.bulk_create_users(db, self.rows)

    async def run_advanced_alchemy(self) -> list[UUID]:
        async with self.connections.sessions() as db, db.begin():
            users = await Repository(session=db).add_many([User(**row) for row in self.rows])
            return [user.id for user in users]

    async def run_core(self) -> list[UUID]:
        statement = insert(User.__table__).returning(User.id, sort_by_parameter_order=True)  # type: ignore[arg-type]
        async with self.connections.engine.begin() as connection:
            return list((await connection.execute(statement, self.rows)).scalars())

    async def verify(self, contender: Contender, returned: Any) -> None:
        driver = self.connections.driver
        await table_data.check_new_users(driver, self.count)
        check_equal("checksum of the users", await table_data.checksum_of_users(driver), self.checksum)
        if contender.role == "reference":
            check_equal("number of rows", returned, self.count)
            return
        emails = dict(await driver.fetch("SELECT id, email FROM users"))
        check_equal(
            "ids in the order of the rows", [emails.get(id) for id in returned], [row["email"] for row in self.rows]
        )
