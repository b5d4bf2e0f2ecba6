"""The changes of the schema that a running release survives, and others. docs/guides/migrations.md lists them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from pydantic import BaseModel
from sqlalchemy import CheckConstraint, Enum, ForeignKey, String, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from howdah import (
    AsyncRepository,
    CheckViolation,
    Database,
    InvalidStatement,
    JsonView,
    JsonViewReader,
    NotNullViolation,
    PolicyViolation,
    UniqueViolation,
    UUIDv7PrimaryKey,
    Versioned,
    bulk,
    paginate,
    run_transaction,
)
from howdah_tests.support.migration_projects import empty_database, run

ROWS = 30  # enough for COPY


class Base(DeclarativeBase):
    pass


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


class ReleasedTeam(Base):
    __tablename__ = "teams"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class ReleasedTicket(UUIDv7PrimaryKey, Versioned, Base):
    __tablename__ = "tickets"
    __table_args__ = (CheckConstraint("votes >= 0", name="votes_not_negative"),)

    title: Mapped[str] = mapped_column(String(50), unique=True)
    votes: Mapped[int]
    level: Mapped[Level] = mapped_column(
        Enum(Level, name="level", values_callable=lambda kind: [each.value for each in kind])
    )
    note: Mapped[str | None]
    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"))
    team: Mapped[ReleasedTeam] = relationship()


class TicketOut(BaseModel):
    id: UUID
    title: str
    votes: int
    level: Level
    note: str | None
    version: int


Reader = JsonViewReader[ReleasedTicket]


async def use(database: Database, reader: Reader, name: str) -> None:
    """Read and write as the running release does: one row, many rows, pages and views."""

    def row(number: int, **more: Any) -> dict[str, Any]:
        return {"title": f"{name} {number}", "votes": number, "level": Level.LOW, "team_id": 1} | more

    async def write(session: AsyncSession) -> UUID:
        tickets = AsyncRepository(session, ReleasedTicket)
        created = await tickets.create(**row(-1, votes=1))
        await tickets.update(created, votes=2)
        inserted = await bulk.insert_many(session, ReleasedTicket, [row(number) for number in range(ROWS)])
        changes = [{"id": key, "note": "changed"} for key in inserted.keys]
        await bulk.update_many(session, ReleasedTicket, changes)
        upserted = [row(number, votes=7) for number in range(2 * ROWS)]
        await bulk.upsert_many(session, ReleasedTicket, upserted, on=["title"], update=["votes"])
        await tickets.delete(await tickets.get_one_by(title=f"{name} 0"))
        return created.id

    key = await run_transaction(database, write)

    async def read(session: AsyncSession) -> None:
        (await session.scalars(select(ReleasedTicket))).all()
        ticket = await AsyncRepository(session, ReleasedTicket).get_one(key)
        assert (ticket.votes, ticket.level) == (2, Level.LOW)
        mine = select(ReleasedTicket).where(ReleasedTicket.title.startswith(f"{name} "))
        page = await paginate(session, mine.order_by(ReleasedTicket.title), limit=100)
        assert len(page.items) == 2 * ROWS
        assert {type(each.votes) for each in page.items} == {int}

    await run_transaction(database, read)
    assert json.loads(await reader.get(key))["votes"] == 2


@pytest.fixture(scope="module")
def database_of_module(postgres_url: str) -> Iterator[str]:
    """A database whose connections are those of a role that row-level security applies to."""
    with empty_database(postgres_url) as url:
        role = make_url(url).database
        run(url, f'CREATE ROLE "{role}" LOGIN', f'GRANT ALL ON SCHEMA public TO "{role}"')
        yield url
        run(url, f'DROP OWNED BY "{role}" CASCADE', f'DROP ROLE "{role}"')


@pytest_asyncio.fixture
async def owner(database_of_module: str) -> AsyncIterator[Database]:
    """The database with the schema of the running release."""
    role = make_url(database_of_module).database
    async with Database(database_of_module, pool_size=1) as database:
        async with database.begin() as session:
            await session.execute(text("DROP SCHEMA public CASCADE"))
            await session.execute(text("CREATE SCHEMA public"))
            await (await session.connection()).run_sync(Base.metadata.create_all)
            await session.execute(text(f'GRANT ALL ON SCHEMA public TO "{role}"'))
            await session.execute(text(f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{role}"'))
            await session.execute(text("INSERT INTO teams (id) VALUES (1)"))
        yield database


@pytest_asyncio.fixture
async def running(owner: Database) -> AsyncIterator[tuple[Database, Reader]]:
    """The running release. Its connections have prepared their statements on the old schema."""
    url = owner.engine.url.set(username=owner.engine.url.database)
    async with Database(url, pool_size=3) as database, JsonView(ReleasedTicket, TicketOut).open(database) as reader:
        await use(database, reader, "before")
        yield database, reader


async def change(owner: Database, statements: Sequence[str]) -> None:
    """Execute the statements of a migration."""
    for statement in statements:
        async with owner.begin() as session:
            await session.execute(text(statement))


SURVIVED = {
    "a nullable column": ["ALTER TABLE tickets ADD COLUMN place text"],
    "a NOT NULL column with a default": ["ALTER TABLE tickets ADD COLUMN kind text NOT NULL DEFAULT 'new'"],
    "a generated column": ["ALTER TABLE tickets ADD COLUMN size int GENERATED ALWAYS AS (length(note)) STORED"],
    "a table with a foreign key": ["CREATE TABLE comments (id int, ticket_id uuid REFERENCES tickets)"],
    "an index": ["CREATE INDEX ON tickets (votes)"],
    "a unique index that the old rows satisfy": ["CREATE UNIQUE INDEX ON tickets (title, votes)"],
    "a CHECK that the old rows satisfy": ["ALTER TABLE tickets ADD CHECK (votes < 1000)"],
    "a foreign key that the old rows satisfy": [
        "CREATE TABLE levels (votes int PRIMARY KEY)",
        "INSERT INTO levels SELECT generate_series(0, 100)",
        "ALTER TABLE tickets ADD FOREIGN KEY (votes) REFERENCES levels",
    ],
    "a trigger that changes only new columns": [
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.place := NEW.note; RETURN NEW; END $$",
        "CREATE TRIGGER fill BEFORE INSERT OR UPDATE ON tickets FOR EACH ROW EXECUTE FUNCTION fill()",
    ],
    "a value of an enum type that no row has": ["ALTER TYPE level ADD VALUE 'highest'"],
    "a longer text column": ["ALTER TABLE tickets ALTER COLUMN title TYPE varchar(100)"],
    "int becomes bigint": ["ALTER TABLE tickets ALTER COLUMN votes TYPE bigint"],
    "a policy that allows everything": [
        "CREATE POLICY everything ON tickets USING (true)",
        "ALTER TABLE tickets ENABLE ROW LEVEL SECURITY",
    ],
    "NOT NULL for a column that the release always writes": ["ALTER TABLE tickets ALTER COLUMN level SET NOT NULL"],
    "a dropped index": ["DROP INDEX ix"],
    "a dropped CHECK": ["ALTER TABLE tickets DROP CONSTRAINT votes_not_negative"],
    "a dropped table that the release doesn't have": ["DROP TABLE other"],
}

BREAKS: dict[str, tuple[type[Exception], list[str]]] = {
    "a NOT NULL column without a default": (
        NotNullViolation,
        [
            "ALTER TABLE tickets ADD COLUMN place text",
            "UPDATE tickets SET place = ''",
            "ALTER TABLE tickets ALTER COLUMN place SET NOT NULL",
        ],
    ),
    "a renamed column": (InvalidStatement, ["ALTER TABLE tickets RENAME COLUMN votes TO points"]),
    "a dropped column": (InvalidStatement, ["ALTER TABLE tickets DROP COLUMN note"]),
    "a renamed table": (InvalidStatement, ["ALTER TABLE tickets RENAME TO issues"]),
    "a dropped table": (InvalidStatement, ["DROP TABLE tickets"]),
    "another type": (
        AssertionError,  # the values are texts now
        [
            "ALTER TABLE tickets DROP CONSTRAINT votes_not_negative",
            "ALTER TABLE tickets ALTER COLUMN votes TYPE text",
        ],
    ),
    "NOT NULL for a column that the release leaves out": (
        NotNullViolation,
        ["UPDATE tickets SET note = ''", "ALTER TABLE tickets ALTER COLUMN note SET NOT NULL"],
    ),
    "a CHECK that its rows violate": (
        CheckViolation,
        ["ALTER TABLE tickets ADD CHECK (title LIKE 'before%')"],
    ),
    "a unique constraint that its rows violate": (
        UniqueViolation,
        ["DELETE FROM tickets WHERE votes > 0", "ALTER TABLE tickets ADD UNIQUE (votes)"],
    ),
    "a policy that hides its rows": (
        PolicyViolation,
        [
            "CREATE POLICY mine ON tickets USING (title LIKE 'before%')",
            "ALTER TABLE tickets ENABLE ROW LEVEL SECURITY",
        ],
    ),
    "a value of an enum type that a row has": (
        LookupError,
        ["ALTER TYPE level ADD VALUE 'highest'", "UPDATE tickets SET level = 'highest' WHERE votes = 2"],
    ),
}


async def test_the_running_release_survives_these_changes(owner: Database, running: tuple[Database, Reader]) -> None:
    await change(owner, ["CREATE INDEX ix ON tickets (note)", "CREATE TABLE other (id int)"])
    for name, statements in SURVIVED.items():
        await change(owner, statements)
        try:
            await use(*running, name)
        except Exception as error:
            error.add_note(f"after the change: {name}")
            raise
    await asyncio.gather(*(use(*running, f"concurrent {number}") for number in range(5)))


@pytest.mark.parametrize("name", BREAKS)
async def test_control_the_running_release_does_not_survive_these_changes(
    owner: Database, running: tuple[Database, Reader], name: str
) -> None:
    expected, statements = BREAKS[name]
    await change(owner, statements)
    with pytest.raises(expected):
        await use(*running, "after")
