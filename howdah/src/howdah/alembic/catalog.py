"""Read the definitions of a schema's objects from PostgreSQL's system catalogs, and compare two schemas.

This module doesn't import Alembic, so a service may use it while it runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import unified_diff
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.alembic.running import run_blocking
from howdah.database import Database

EntryT = TypeVar("EntryT")

_TABLE: Final = "table "
_RIGHTS: Final = "rights of "
_DESCRIPTION: Final = "name, definition, problem, is_guarded"
# PostgreSQL shows `state IN ('a', 'b')` as ARRAY['a'::character varying, 'b'::character varying]::text[]. After a
# constraint is created from this text, PostgreSQL shows other casts. All of them are casts between text types, so they
# are ignored.
_TEXT_ARRAY: Final = re.compile(
    r"ARRAY\[('(?:[^']|'')*'(?:::character varying|::text)*(?:, '(?:[^']|'')*'(?:::character varying|::text)*)*)\]"
    r"(?:::text\[\]|::character varying\[\])*"
)
_QUOTED_OR_CAST: Final = re.compile(r"('(?:[^']|'')*')|::character varying|::text")


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A table, column, constraint, index, trigger, policy, view, type, sequence, function, comment or setting, or the
    rights of a role on a table.

    `problem` is set for an object that is disabled or not valid. It is None for other objects.
    `is_guarded` is false for an object that enforces no rule, such as an index that isn't unique.
    """

    definition: str
    problem: str | None = None
    is_guarded: bool = True


async def read_catalog(
    db: AsyncSession, tables: Collection[str] | None = None, *, schemas: Collection[str] | None = None
) -> dict[str, CatalogEntry]:
    """The entries of the schemas, by name. `schemas=None` is the current schema.

    If `tables` isn't None, entries of other tables are left out. Functions and settings are always included. The tables
    of extensions and Alembic's own table are left out.

    This is one query. It takes a few milliseconds.
    """
    rows = await db.execute(catalog_query(_DESCRIPTION), catalog_parameters(tables, schemas))
    return {row.name: CatalogEntry(row.definition, row.problem, row.is_guarded) for row in rows}


def read_whole_catalog(url: str, *, schemas: Collection[str] | None = None) -> dict[str, CatalogEntry]:
    """`read_catalog` for the database at `url`. Blocks."""

    async def read() -> dict[str, CatalogEntry]:
        async with (
            Database(url, pool_size=1, application_name="howdah migrate") as database,
            database.session() as session,
        ):
            return await read_catalog(session, schemas=schemas)

    return run_blocking(read())


def compare_catalogs(
    found: Mapping[str, CatalogEntry], expected: Mapping[str, CatalogEntry], *, show_changes: bool = False
) -> Iterator[str]:
    """Describe each difference in a line such as `table accounts: missing`.

    After the name and the colon, the line has `missing`, `unknown` (not expected), `changed`, or the problem of the
    found entry. With `show_changes`, the changed lines of the definition follow. Of a table that is missing, only the
    table is described, and not its columns, constraints and triggers. The rights on a table are compared if some are
    expected for it.
    """
    found = without_undeclared_rights(found, expected)
    missing_tables = [name.removeprefix(_TABLE) for name in expected if name.startswith(_TABLE) and name not in found]
    parts_of_missing = tuple(f" {word} {table}" for table in missing_tables for word in ("of", "on"))
    for name in sorted({*found, *expected}):
        if name not in found:
            if parts_of_missing and name.endswith(parts_of_missing):
                continue
            yield f"{name}: missing"
        elif name not in expected:
            yield f"{name}: unknown"
        elif found[name].problem != expected[name].problem:
            yield f"{name}: {found[name].problem or 'enabled'}"
        elif normalize(found[name].definition) != normalize(expected[name].definition):
            yield f"{name}: changed"
            if show_changes:
                old, new = expected[name].definition.splitlines(), found[name].definition.splitlines()
                yield from (f"    {line}" for line in list(unified_diff(old, new, n=0, lineterm=""))[2:])


def without_undeclared_rights(found: Mapping[str, EntryT], expected: Mapping[str, Any]) -> dict[str, EntryT]:
    """`found` without the rights on tables for which no rights are expected.

    A project that declares no `TableGrant` gives its rights in another way, such as by `application_role_statements`.
    """
    declared = {_table_of_rights(name) for name in expected if name.startswith(_RIGHTS)}
    return {
        name: each for name, each in found.items() if not name.startswith(_RIGHTS) or _table_of_rights(name) in declared
    }


def _table_of_rights(name: str) -> str:
    return name.rpartition(" on ")[2]


def normalize(definition: str) -> str:
    """The definition without the casts of texts in an array, because PostgreSQL shows them in several ways."""
    return _TEXT_ARRAY.sub(lambda found: "ARRAY[" + _QUOTED_OR_CAST.sub(r"\1", found[1]) + "]", definition)


def catalog_query(columns: str) -> TextClause:
    """The query of `catalog.sql` with these columns."""
    return _query(columns)


def catalog_parameters(tables: Collection[str] | None, schemas: Collection[str] | None) -> dict[str, Any]:
    """The parameters of `catalog_query`."""
    return {
        "tables": None if tables is None else list(tables),
        "schemas": None if schemas is None else list(schemas),
    }


@cache
def _query(columns: str) -> TextClause:
    return text(Path(__file__).with_name("catalog.sql").read_text(encoding="utf-8").replace("{columns}", columns))
