"""A schema for each tenant: by `search_path` and by `schema_translate_map`, for reads, writes and COPY."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
from pydantic import BaseModel
from sqlalchemy import MetaData, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from howdah import (
    AsyncRepository,
    Database,
    InvalidStatement,
    JsonView,
    JsonViewReader,
    SchemaChanged,
    bulk,
    run_transaction,
)
from howdah.testing import assert_statements


class Base(DeclarativeBase):
    metadata = MetaData()


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


class ItemOut(BaseModel):
    id: int
    name: str


ItemView = JsonView(Item, ItemOut)
SCHEMAS = ("one", 'Two, "x"')
"""The second name would be a list of two schemas if it weren't quoted."""


def by_search_path(database: Database, schema: str) -> Database:
    return database.with_settings(search_path=[schema])


def by_translation(database: Database, schema: str) -> Database:
    return database.with_settings(schema_translate_map={None: schema})


Scope = Callable[[Database, str], Database]
both = pytest.mark.parametrize("scope", [by_search_path, by_translation])


@pytest.fixture
async def database(committed_url: str) -> AsyncIterator[Database]:
    """A database with the same table in two schemas. The column `name` has a row with the name of its schema."""
    async with Database(committed_url, pool_size=2, max_overflow=0) as database:
        for number, schema in enumerate(SCHEMAS):
            scoped = by_translation(database, schema)
            async with scoped.begin() as session:
                connection = await session.connection()
                quoted = schema.replace('"', '""')
                await connection.execute(text(f'CREATE SCHEMA "{quoted}"'))
                await connection.run_sync(Base.metadata.create_all)
                await bulk.insert_many(session, Item, [{"id": 1, "name": schema}, {"id": 2 + number, "name": schema}])
        yield database


async def read_names(database: Database, items: JsonViewReader[Item]) -> set[str]:
    """What every way to read finds, with parameters, so that statements are cached."""
    found: set[str] = set()
    async with database.session() as session:
        found |= set(await session.scalars(select(Item.name).where(Item.id > 0)))
        found |= {item.name async for item in AsyncRepository(session, Item).stream()}
    found |= set(await database.read(lambda connection: connection.scalars(select(Item.name).where(Item.id > 0))))
    async with database.autocommit() as connection:
        found |= set(await connection.scalars(select(Item.name).where(Item.id > 0)))
    reader = items.scoped(database)
    found.add(ItemOut.model_validate_json(await reader.get(1)).name)
    found |= {ItemOut.model_validate_json(body).name for body in await reader.get_many([1, 2, 3])}
    found |= {ItemOut.model_validate_json(body).name for body in (await reader.page(limit=5)).items}
    found |= {ItemOut.model_validate_json(line).name async for line in reader.stream()}
    return found


@both
async def test_a_cached_statement_reads_the_schema_of_its_caller(database: Database, scope: Scope) -> None:
    """On the same connections, with the caches of asyncpg, SQLAlchemy and the kept connections."""
    async with ItemView.open(database) as items:
        for _ in range(3):
            for schema in SCHEMAS:
                assert await read_names(scope(database, schema), items) == {schema}
        concurrent = await asyncio.gather(*(read_names(scope(database, schema), items) for schema in SCHEMAS * 4))
        assert concurrent == [{schema} for schema in SCHEMAS * 4]


@both
async def test_copy_writes_into_the_schema_of_its_session(database: Database, scope: Scope) -> None:
    rows = [{"id": n, "name": "copied"} for n in range(100, 200)]
    for schema in SCHEMAS:
        with assert_statements(database, 1) as sent:
            async with scope(database, schema).begin() as session:
                await bulk.insert_many(session, Item, rows)
        assert sent[0].startswith("COPY "), sent
        counts = {each: await count_copied(database, each) for each in SCHEMAS}
        assert counts == {each: 100 if each in SCHEMAS[: SCHEMAS.index(schema) + 1] else 0 for each in SCHEMAS}


async def count_copied(database: Database, schema: str) -> int:
    quoted = schema.replace('"', '""')
    async with database.session() as session:
        return int(await session.scalar(text(f"SELECT count(*) FROM \"{quoted}\".items WHERE name = 'copied'")) or 0)


async def test_a_schema_whose_table_has_other_types_is_read_or_rejected_but_never_misread(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("CREATE SCHEMA three"))
        await session.execute(text("CREATE TABLE three.items (id bigint PRIMARY KEY, name text NOT NULL)"))
        await session.execute(text("INSERT INTO three.items VALUES (1, 'three'), (5000000000, 'large')"))
    first, third = by_search_path(database, "one"), by_search_path(database, "three")

    async def ids(scoped: Database) -> list[int] | None:
        try:
            async with scoped.session() as session:
                return [*await session.scalars(select(Item.id).where(Item.id > 0).order_by(Item.id))]
        except SchemaChanged:
            return None

    expected = {"one": [1, 2], "three": [1, 5_000_000_000]}
    found = [(schema, await ids(scoped)) for _ in range(4) for schema, scoped in (("one", first), ("three", third))]
    assert all(ids in (expected[schema], None) for schema, ids in found)
    assert None in [ids for _, ids in found], "the statement was prepared for one schema and executed in the other"

    async def ids_in(session: AsyncSession) -> list[int]:
        return [*await session.scalars(select(Item.id).where(Item.id > 0).order_by(Item.id))]

    assert await run_transaction(third, ids_in) == expected["three"]
    assert await run_transaction(first, ids_in) == expected["one"]


async def test_control_a_database_without_a_schema_finds_no_table(database: Database) -> None:
    async with database.session() as session:
        with pytest.raises(InvalidStatement):
            await session.execute(select(Item))


@both
async def test_a_bound_database_reads_and_writes_the_schema_of_its_session(database: Database, scope: Scope) -> None:
    async with database.engine.connect() as connection, ItemView.open(database.bound_to(connection)) as items:
        bound = database.bound_to(connection)
        for schema in SCHEMAS:
            scoped = scope(bound, schema)
            async with scoped.begin() as session:
                await bulk.insert_many(session, Item, [{"id": n, "name": schema} for n in range(50, 90)])
            async with scoped.session() as session:
                assert set(await session.scalars(select(Item.name))) == {schema}
            assert ItemOut.model_validate_json(await items.scoped(scoped).get(50)).name == schema
        async with bound.session() as session:
            with pytest.raises(InvalidStatement):
                await session.execute(select(Item))


async def test_after_an_error_a_bound_database_reads_the_schema_of_its_caller(database: Database) -> None:
    async with database.engine.connect() as connection:
        bound = database.bound_to(connection)
        scoped = bound.with_settings(schema_translate_map={None: SCHEMAS[0]})

        async def fail(_connection: object) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await scoped.read(fail)
        options = await connection.run_sync(lambda sync: sync.get_execution_options())
        assert not options.get("schema_translate_map")


def translate(schema: str) -> Mapping[str | None, str | None]:
    return {None: schema}


async def test_an_execution_option_of_one_session_does_not_reach_the_next(database: Database) -> None:
    async with database.session() as session:
        await session.connection(execution_options={"schema_translate_map": translate("one")})
        assert set(await session.scalars(select(Item.name))) == {"one"}
    async with by_translation(database, SCHEMAS[1]).session() as session:
        assert set(await session.scalars(select(Item.name))) == {SCHEMAS[1]}
