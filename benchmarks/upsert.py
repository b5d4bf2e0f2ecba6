"""upsert: insert or update many rows. Half of the rows exist. They are matched by a unique column, not by the key."""

from __future__ import annotations

from typing import Any

from advanced_alchemy.repository import SQLAlchemyAsyncRepository

from benchmarks import table_data
from benchmarks.comparison import Comparison, Contender, Goal, check_equal
from benchmarks.tables import User
from howdah import AsyncRepository, utcnow, uuid7

BASELINE_SQL = """
    INSERT INTO users (id, email, name, country, created_at, updated_at, version)
    SELECT id, email, name, country, $5, $5, 1
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS input (id, email, name, country)
    ON CONFLICT (email) DO UPDATE
    SET name = excluded.name, country = excluded.country, updated_at = excluded.updated_at, version = users.version + 1
"""
PEER_SHARE = 10
"""advanced-alchemy processes one tenth of the rows, because all of them would take minutes. Ratios compare the time per
row."""


class Repository(SQLAlchemyAsyncRepository[User]):
    model_type = User


class Upsert(Comparison):
    name = "upsert"
    description = (
        "insert or update {size} users by email from dicts, in one transaction; every other user exists already"
    )
    unit = "rows"

    async def set_up(self) -> None:
        driver = self.connections.driver
        self.rows = [row | {"name": row["name"].upper()} for row in table_data.user_rows(self.count)]
        before = table_data.user_rows(self.count)[::2]
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
            Contender("howdah upsert_many", "howdah", self.run_howdah, self.count),
            Contender("asyncpg INSERT … ON CONFLICT", "baseline", self.run_baseline, self.count),
            Contender(
                "advanced-alchemy upsert_many",
                "peer",
                self.run_advanced_alchemy,
                max(1, self.count // PEER_SHARE),
                omission="it doesn't increment the version of existing rows",
            ),
        ]

    def goals(self) -> list[Goal]:
        return [Goal("howdah upsert_many", "times as fast", 3, "advanced-alchemy upsert_many")]

    async def reset(self, contender: Contender) -> None:
        driver = self.connections.driver
        self.input = self.rows[: contender.units]
        await driver.execute("TRUNCATE users, orders")
        await driver.execute("INSERT INTO users SELECT * FROM users_before ORDER BY id")
        await driver.execute("VACUUM ANALYZE users")

    async def run_howdah(self) -> None:
        async with self.connections.database.begin() as session:
            done = await AsyncRepository(session, User).upsert_many(self.input, on=["email"])
        existing = (len(self.input) + 1) // 2
        check_equal(
            "created, updated, unchanged",
            (done.created, done.updated, done.unchanged),
            (len(self.input) - existing, existing, 0),
        )

    async def run_baseline(self) -> None:
        columns = ([row[name] for row in self.input] for name in ("email", "name", "country"))
        async with self.connections.driver.transaction():
            await self.connections.driver.execute(BASELINE_SQL, [uuid7() for _ in self.input], *columns, utcnow())

    async def run_advanced_alchemy(self) -> None:
        async with self.connections.sessions() as db, db.begin():
            users = [User(**row) for row in self.input]
            await Repository(session=db).upsert_many(users, match_fields=["email"])

    async def verify(self, contender: Contender, returned: Any) -> None:
        found = await self.connections.driver.fetchrow(
            """
            SELECT count(*), count(*) FILTER (
                WHERE now.name = input.name AND now.country = input.country AND CASE WHEN before.id IS NULL
                    THEN now.version = 1 AND now.created_at > $5
                    ELSE now.id = before.id AND now.version = $4 AND now.created_at = before.created_at
                        AND now.updated_at > before.updated_at END
            )
            FROM users now LEFT JOIN users_before before USING (email)
            JOIN unnest($1::text[], $2::text[], $3::text[]) AS input (email, name, country) USING (email)
            """,
            *([row[name] for row in self.input] for name in ("email", "name", "country")),
            1 if contender.omission else 2,
            await self.connections.driver.fetchval("SELECT max(created_at) FROM users_before"),
        )
        check_equal("number of users, and of correct users", tuple(found), (contender.units, contender.units))
