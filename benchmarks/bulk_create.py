"""bulk-create: many new rows, whose keys are known afterwards."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from sqlalchemy import insert

from benchmarks import contents, reference
from benchmarks.comparison import Comparison, Contender, Goal, same
from benchmarks.tables import User
from howdah import AsyncRepository, utcnow, uuid7

COLUMNS = ("id", "email", "name", "country", "created_at", "updated_at", "version")


class Repository(SQLAlchemyAsyncRepository[User]):
    model_type = User


class BulkCreate(Comparison):
    name = "bulk-create"
    work = "create {size} users from dicts in one transaction, and know their ids"
    unit = "rows"

    async def set_up(self) -> None:
        self.rows = contents.people(self.count)
        self.sum = await contents.sum_of_people(self.connections.driver, self.rows)

    def contenders(self) -> list[Contender]:
        return [
            Contender("howdah create_many", "howdah", self.howdah, self.count),
            Contender("asyncpg COPY of ready-made tuples", "limit", self.copy, self.count),
            Contender("reference bulk_create_users", "reference", self.reference, self.count, self.rounds_of_slow),
            Contender("advanced-alchemy add_many", "peer", self.advanced_alchemy, self.count, self.rounds_of_slow),
            Contender("SQLAlchemy Core insert, RETURNING", "peer", self.core, self.count, self.rounds_of_slow),
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal("howdah create_many", "times as fast", 0.8, "asyncpg COPY of ready-made tuples"),
            Goal("howdah create_many", "times as fast", 6, "reference bulk_create_users"),
            Goal("howdah create_many", "times as fast", 8, "advanced-alchemy add_many"),
        ]

    def rounds(self, asked: int) -> int:
        self.rounds_of_slow = max(asked, min(50, 20_000 // self.count))
        return max(3 * asked, self.rounds_of_slow)  # half a second is soon disturbed

    async def reset(self, contender: Contender) -> None:
        await contents.empty(self.connections.driver)
        if contender.role == "limit":
            now = utcnow()
            self.tuples = [(uuid7(), row["email"], row["name"], row["country"], now, now, 1) for row in self.rows]

    async def howdah(self) -> list[UUID]:
        async with self.connections.database.begin() as session:
            return (await AsyncRepository(session, User).create_many(self.rows)).keys

    async def copy(self) -> list[UUID]:
        async with self.connections.driver.transaction():
            await self.connections.driver.copy_records_to_table("users", records=self.tuples, columns=COLUMNS)
        return [row[0] for row in self.tuples]

    async def reference(self) -> int:
        async with self.connections.sessions() as db, db.begin():
            return await reference.bulk_create_users(db, self.rows)

    async def advanced_alchemy(self) -> list[UUID]:
        async with self.connections.sessions() as db, db.begin():
            users = await Repository(session=db).add_many([User(**row) for row in self.rows])
            return [user.id for user in users]

    async def core(self) -> list[UUID]:
        statement = insert(User.__table__).returning(User.id, sort_by_parameter_order=True)  # type: ignore[arg-type]
        async with self.connections.engine.begin() as connection:
            return list((await connection.execute(statement, self.rows)).scalars())

    async def verify(self, contender: Contender, returned: Any) -> None:
        driver = self.connections.driver
        await contents.check_new_users(driver, self.count)
        same("sum of the users", await contents.sum_of_users(driver), self.sum)
        if contender.role == "reference":
            same("rows counted", returned, self.count)
            return
        emails = dict(await driver.fetch("SELECT id, email FROM users"))
        same("ids in the order of the rows", [emails.get(id) for id in returned], [row["email"] for row in self.rows])
