"""Find the statements that turn one schema into another one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from howdah.alembic.catalog import (
    CatalogEntry,
    catalog_parameters,
    catalog_query,
    compare_catalogs,
    without_undeclared_rights,
)
from howdah.alembic.environment import Environment, str_url
from howdah.alembic.running import run_blocking
from howdah.alembic.sql_files import execute_sql_files
from howdah.database import Database

# The order in which objects are created. They are dropped in the opposite order.
_KINDS: Final = (
    "schema",
    "extension",
    "type",
    "sequence",
    "table",
    "column",
    "options",
    "storage",
    "function",
    "view",
    "constraint",
    "index",
    "trigger",
    "firing",
    "policy",
    "rights",
    "comment",
)
# These are created before the tables that use them.
_BEFORE_TABLES: Final = ("schema", "extension", "type", "sequence")
# These are dropped before tables, because an object of these kinds may depend on a table.
_BEFORE_DROPS: Final = ("trigger", "policy", "view", "function")


@dataclass(frozen=True, slots=True)
class SchemaObject:
    """An entry of the catalog, and the statements that create, drop or alter it."""

    entry: CatalogEntry
    subject: str
    create_sql: str | None
    drop_sql: str | None
    alter_sql: tuple[str, ...]


Schema = Mapping[str, SchemaObject]


def read_schema(connection: Connection, environment: Environment) -> dict[str, SchemaObject]:
    """The objects that the migrations manage, by name."""
    rows = connection.execute(catalog_query("*"), catalog_parameters(None, environment.schemas))
    return {
        row.name: SchemaObject(
            CatalogEntry(row.definition, row.problem, row.is_guarded),
            row.subject,
            row.create_sql,
            row.drop_sql,
            tuple(row.alter_sql or ()),
        )
        for row in rows
        if environment.is_managed(row.subject)
    }


def read_expected_schema(url: str, environment: Environment) -> dict[str, SchemaObject]:
    """The schema that the models and the .sql files define. Blocks.

    It is created in the empty database at `url`, read, and rolled back.
    """

    def create(connection: Connection) -> dict[str, SchemaObject]:
        for schema in environment.schemas or ():
            if schema:
                connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
        for extension in environment.extensions:
            connection.execute(text(f'CREATE EXTENSION IF NOT EXISTS "{extension}"'))
        for statement in environment.role_statements:
            connection.exec_driver_sql(statement)
        environment.metadata.create_all(connection)
        if environment.sql is not None:
            execute_sql_files(connection, environment.sql)
        return read_schema(connection, environment)

    return _call(url, create)


def read_schema_at(url: str, environment: Environment) -> dict[str, SchemaObject]:
    """`read_schema` for the database at `url`. Blocks."""
    return _call(url, lambda connection: read_schema(connection, environment))


def _call(url: str, work: Callable[[Connection], dict[str, SchemaObject]]) -> dict[str, SchemaObject]:
    async def run() -> dict[str, SchemaObject]:
        async with (
            Database(str_url(url), pool_size=1, application_name="howdah migrate") as database,
            database.engine.connect() as connection,
        ):
            return await connection.run_sync(work)  # closing the connection rolls back

    return run_blocking(run())


def is_changed(found: SchemaObject, expected: SchemaObject) -> bool:
    """Whether the definitions differ."""
    return any(compare_catalogs({"": found.entry}, {"": expected.entry}))


def compare_schemas(found: Schema, expected: Schema) -> list[str]:
    """The differences, as lines of `compare_catalogs` with the changed definitions."""
    return list(
        compare_catalogs(
            {name: each.entry for name, each in found.items()},
            {name: each.entry for name, each in expected.items()},
            show_changes=True,
        )
    )


@dataclass(frozen=True, slots=True)
class Change:
    """A statement that creates, drops or alters an object. `definition` is None for a statement that drops."""

    name: str
    subject: str
    sql: str
    definition: str | None

    @property
    def kind(self) -> str:
        """The kind of the object, such as `constraint`."""
        return self.name.partition(" ")[0]

    @property
    def own_name(self) -> str:
        """The name of a constraint or index, without its table."""
        return self.name.removeprefix(f"{self.kind} ").removesuffix(f" on {self.subject}")


def changes_before(found: Schema, expected: Schema) -> Iterator[Change]:
    """Changes to make before tables are created or dropped: create types and sequences, drop functions and views."""
    for name in _sorted(expected, _BEFORE_TABLES, without=found):
        yield from _create(name, expected[name])
    for name in reversed(_sorted(found, _BEFORE_DROPS, without=expected)):
        yield from _drop(name, found[name])


def changes_after(found: Schema, expected: Schema) -> Iterator[Change]:
    """The changes that remove the differences: drops, alterations, new objects. Not every change has a statement."""
    found = without_undeclared_rights(found, expected)
    changed = {name for name, each in expected.items() if name in found and is_changed(found[name], each)}
    altered = {name for name in changed if expected[name].alter_sql}
    replaced = changed - altered
    for name in reversed(_sorted({name: found[name] for name in found if name not in expected or name in replaced})):
        yield from _drop(name, found[name])
    for name in sorted(altered):
        for sql in expected[name].alter_sql:
            if sql not in found[name].alter_sql:
                yield Change(name, expected[name].subject, sql, expected[name].entry.definition)
    for name in _sorted({name: expected[name] for name in expected if name not in found or name in replaced}):
        yield from _create(name, expected[name])


def _create(name: str, each: SchemaObject) -> Iterator[Change]:
    if each.create_sql is not None:
        yield Change(name, each.subject, each.create_sql, each.entry.definition)


def _drop(name: str, each: SchemaObject) -> Iterator[Change]:
    if each.drop_sql is not None:
        yield Change(name, each.subject, each.drop_sql, None)


def _sorted(schema: Schema, kinds: Collection[str] = _KINDS, *, without: Schema | None = None) -> list[str]:
    """The names of the objects of these kinds, in the order of their creation."""

    def rank(name: str) -> tuple[int, bool, str]:
        definition = schema[name].entry.definition
        return _KINDS.index(name.partition(" ")[0]), definition.startswith("FOREIGN KEY"), name

    chosen = (name for name in schema if name.partition(" ")[0] in kinds and name not in (without or ()))
    return sorted(chosen, key=rank)
