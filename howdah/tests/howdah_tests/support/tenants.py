"""Two tenants with notes, a role that row-level security applies to, and every way to read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from pydantic import BaseModel
from sqlalchemy import MetaData, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from howdah import AsyncRepository, Database, JsonView, JsonViewReader, bulk, run_transaction
from howdah.tenancy import TenantPolicy

SETTING = "app.tenant_id"
TENANTS = (1, 2)
ROWS = 6
"""The number of notes. Each tenant has half of them."""


class Base(DeclarativeBase):
    metadata = MetaData()


class Note(Base):
    __tablename__ = "notes"
    __table_args__ = (TenantPolicy("tenant_id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[int]


class NoteOut(BaseModel):
    id: int
    tenant_id: int


NoteView = JsonView(Note, NoteOut)

NoteReader = JsonViewReader[Note]
Read = Callable[[Database, NoteReader], Awaitable[set[int]]]


@asynccontextmanager
async def create_notes(url: str) -> AsyncIterator[str]:
    """The URL of a role without rights of its own. The table and its rows are those of the URL's role."""
    role = make_url(url).database
    async with Database(url) as owner:
        async with owner.begin() as session:
            await (await session.connection()).run_sync(Base.metadata.create_all)
            await session.execute(text(f'CREATE ROLE "{role}" LOGIN'))
            await session.execute(text(f'GRANT ALL ON notes TO "{role}"'))
            rows = [{"id": n, "tenant_id": TENANTS[n % 2]} for n in range(ROWS)]
            await bulk.insert_many(session, Note, rows)
        yield make_url(url).set(username=role).render_as_string(hide_password=False)
        async with owner.begin() as session:
            await session.execute(text(f'DROP OWNED BY "{role}"'))
            await session.execute(text(f'DROP ROLE "{role}"'))
            await (await session.connection()).run_sync(Base.metadata.drop_all)


def parse_tenant(body: bytes) -> int:
    return NoteOut.model_validate_json(body).tenant_id


async def in_a_session(database: Database, notes: NoteReader) -> set[int]:
    async with database.session() as session:
        return set(await session.scalars(select(Note.tenant_id)))


async def in_a_read_only_session(database: Database, notes: NoteReader) -> set[int]:
    async with database.session(read_only=True, isolation_level="REPEATABLE READ") as session:
        return set(await session.scalars(select(Note.tenant_id)))


async def in_begin(database: Database, notes: NoteReader) -> set[int]:
    async with database.begin() as session:
        return set(await session.scalars(select(Note.tenant_id)))


async def in_the_second_transaction(database: Database, notes: NoteReader) -> set[int]:
    async with database.session() as session:
        await session.execute(select(1))
        await session.commit()
        await session.execute(select(1))
        await session.rollback()
        return set(await session.scalars(select(Note.tenant_id)))


async def after_a_savepoint(database: Database, notes: NoteReader) -> set[int]:
    async with database.session() as session:
        savepoint = await session.begin_nested()
        await session.execute(text("SELECT set_config('app.tenant_id', '', true)"))
        await savepoint.rollback()
        return set(await session.scalars(select(Note.tenant_id)))


async def in_run_transaction(database: Database, notes: NoteReader) -> set[int]:
    return set(await run_transaction(database, lambda session: session.scalars(select(Note.tenant_id))))


async def in_a_factory_session(database: Database, notes: NoteReader) -> set[int]:
    async with database.session_factory() as session:
        return set(await session.scalars(select(Note.tenant_id)))


async def by_the_engine(database: Database, notes: NoteReader) -> set[int]:
    async with database.engine.connect() as connection:
        return set(await connection.scalars(select(Note.tenant_id)))


async def in_a_read(database: Database, notes: NoteReader) -> set[int]:
    return set(await database.read(lambda connection: connection.scalars(select(Note.tenant_id))))


async def in_autocommit(database: Database, notes: NoteReader) -> set[int]:
    async with database.autocommit() as connection:
        await connection.execute(select(1))
        return set(await connection.scalars(select(Note.tenant_id)))


async def by_repository(database: Database, notes: NoteReader) -> set[int]:
    async with database.session() as session:
        page = await AsyncRepository(session, Note).page(select(Note))
        return {note.tenant_id for note in page.items}


async def by_repository_stream(database: Database, notes: NoteReader) -> set[int]:
    async with database.session() as session:
        return {note.tenant_id async for note in AsyncRepository(session, Note).stream(batch=1)}


async def by_view_key(database: Database, notes: NoteReader) -> set[int]:
    bodies = await asyncio.gather(*(notes.get(n) for n in range(ROWS)), return_exceptions=True)
    return {parse_tenant(body) for body in bodies if isinstance(body, bytes)}


async def by_view_keys(database: Database, notes: NoteReader) -> set[int]:
    return {parse_tenant(body) for body in await notes.get_many(range(ROWS))}


async def by_view_page(database: Database, notes: NoteReader) -> set[int]:
    page = await notes.page(limit=1)
    rest = await notes.page(after=page.next, count=True) if page.next else page
    return {parse_tenant(body) for body in (*page.items, *rest.items)}


async def by_view_stream(database: Database, notes: NoteReader) -> set[int]:
    return {parse_tenant(line) async for line in notes.stream(batch=1)}


READS: list[Read] = [
    in_a_session,
    in_a_read_only_session,
    in_begin,
    in_the_second_transaction,
    after_a_savepoint,
    in_run_transaction,
    in_a_factory_session,
    by_the_engine,
    in_a_read,
    in_autocommit,
    by_repository,
    by_repository_stream,
    by_view_key,
    by_view_keys,
    by_view_page,
    by_view_stream,
]


def scoped(database: Database, notes: NoteReader, tenant: int) -> tuple[Database, NoteReader]:
    """The database and the view reader of one tenant."""
    own = database.with_settings({SETTING: tenant})
    return own, notes.scoped(own)
