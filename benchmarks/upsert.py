"""upsert: many rows of which half are there already, found by another attribute than the key."""

from __future__ import annotations

from typing import Any

from advanced_alchemy.repository import SQLAlchemyAsyncRepository

from benchmarks import contents
from benchmarks.comparison import Comparison, Contender, Goal, same
from benchmarks.tables import User
from howdah import AsyncRepository, utcnow, uuid7

BY_HAND = """
    INSERT INTO users (id, email, name, country, created_at, updated_at, version)
    SELECT id, email, name, country, $5, $5, 1
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS given (id, email, name, country)
    ON CONFLICT (email) DO UPDATE
    SET name = excluded.name, country = excluded.country, updated_at = excluded.updated_at, version = users.version + 1
"""
SHARE = 10
"""Advanced-alchemy is given one row in so many, and counts by the row: all of them would take minutes."""


class Repository(SQLAlchemyAsyncRepository[User]):
    model_type = User


class Upsert(Comparison):
    name = "upsert"
    work = "insert or update {size} users by email from dicts, every second of them there already, in one transaction"
    unit = "rows"

    async def set_up(self) -> None:
        driver = self.connections.driver
        self.rows = [row | {"name": row["name"].upper()} for row in contents.people(self.count)]
        before = contents.people(self.count)[::2]
        await driver.execute("DROP TABLE IF EXISTS users_before")
        await driver.execute("CREATE TABLE users_before (LIKE users)")
        then = utcnow()
        await driver.copy_records_to_table(
            "users_before",
            records=[(uuid7(), row["email"], row["name"], row["country"], then, then, 1) for row in before],
            columns=["id", "email", "name", "country", "created_at", "updated_at", "version"],
        )

    def contenders(self) -> list[Contender]:
        return [
            Contender("howdah upsert_many", "howdah", self.howdah, self.count),
            Contender("asyncpg INSERT … ON CONFLICT", "limit", self.by_hand, self.count),
            Contender(
                "advanced-alchemy upsert_many",
                "peer",
                self.advanced_alchemy,
                max(1, self.count // SHARE),
                lacks="the version of the rows that were there doesn't move",
            ),
        ]

    def goals(self) -> list[Goal]:
        return [Goal("howdah upsert_many", "times as fast", 3, "advanced-alchemy upsert_many")]

    async def reset(self, contender: Contender) -> None:
        driver = self.connections.driver
        self.given = self.rows[: contender.units]
        await driver.execute("TRUNCATE users, orders")
        await driver.execute("INSERT INTO users SELECT * FROM users_before ORDER BY id")
        await driver.execute("VACUUM ANALYZE users")

    async def howdah(self) -> None:
        async with self.connections.database.begin() as session:
            done = await AsyncRepository(session, User).upsert_many(self.given, on=["email"])
        old = (len(self.given) + 1) // 2
        same(
            "created, updated, unchanged", (done.created, done.updated, done.unchanged), (len(self.given) - old, old, 0)
        )

    async def by_hand(self) -> None:
        columns = ([row[name] for row in self.given] for name in ("email", "name", "country"))
        async with self.connections.driver.transaction():
            await self.connections.driver.execute(BY_HAND, [uuid7() for _ in self.given], *columns, utcnow())

    async def advanced_alchemy(self) -> None:
        async with self.connections.sessions() as db, db.begin():
            users = [User(**row) for row in self.given]
            await Repository(session=db).upsert_many(users, match_fields=["email"])

    async def verify(self, contender: Contender, returned: Any) -> None:
        found = await self.connections.driver.fetchrow(
            """
            SELECT count(*), count(*) FILTER (
                WHERE now.name = given.name AND now.country = given.country AND CASE WHEN before.id IS NULL
                    THEN now.version = 1 AND now.created_at > $5
                    ELSE now.id = before.id AND now.version = $4 AND now.created_at = before.created_at
                        AND now.updated_at > before.updated_at END
            )
            FROM users now LEFT JOIN users_before before USING (email)
            JOIN unnest($1::text[], $2::text[], $3::text[]) AS given (email, name, country) USING (email)
            """,
            *([row[name] for row in self.given] for name in ("email", "name", "country")),
            1 if contender.lacks else 2,
            await self.connections.driver.fetchval("SELECT max(created_at) FROM users_before"),
        )
        same("users, and those that are as they should be", tuple(found), (contender.units, contender.units))
