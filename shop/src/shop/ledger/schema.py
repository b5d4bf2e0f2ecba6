"""Compare the ledger's tables, functions and triggers, and the policies and rights of all tables, with `catalog.txt`.

`catalog.txt` describes a database that was created from the models and from the files in `sql/`.
`shop migrate --write-catalog` writes the file. `shop migrate --check` and a test compare it with such a database.
`shop check`, `shop serve` and `/readyz` compare the database of the service with the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import unified_diff
from functools import cache
from pathlib import Path
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from howdah.alembic.catalog import CatalogEntry, compare_catalogs, read_catalog
from shop.ledger.models import LEDGER_TABLES
from shop.ledger.triggers import list_function_names
from shop.roles import SERVICE_LOGIN, SERVICE_ROLES

CATALOG_FILE: Final = Path(__file__).with_name("catalog.txt")
_HEAD: Final = "--- "
_PREFACE: Final = """\
The ledger's tables with their columns, constraints, unique indexes and triggers, its functions, and the policies and
rights of all tables, as PostgreSQL describes them. Generated: change models.py or sql/, then run
`shop migrate --write-catalog`.
"""
# Triggers, policies and settings that are not in `catalog.txt` are reported, because they could change how the ledger's
# statements work. A database may have additional functions, columns and indexes.
_UNKNOWN_KINDS: Final = ("trigger ", "policy ", "setting ")
# A later release may replace these under the same name. It compares them with its own `catalog.txt`.
_REPLACEABLE_KINDS: Final = ("function ", "trigger ", "constraint ", "index ", "policy ", "rights ")
# These entries of all tables are compared, and not only those of the ledger's tables.
_SECURITY_KINDS: Final = ("table ", "policy ", "rights ")
# A right of these roles that isn't in `catalog.txt` is reported, on any table. The rights of other roles aren't
# compared, because the operator decides about them.
_SERVICE_RIGHTS: Final = tuple(f"rights of {role} on " for role in ("PUBLIC", SERVICE_LOGIN, *SERVICE_ROLES))
# No migration adds settings, so they are reported in every database.
_SETTING: Final = "setting "
_RIGHTS: Final = "rights "


@dataclass(frozen=True, slots=True)
class SchemaReport:
    """How a database differs from `catalog.txt`.

    `defects` has the objects of `catalog.txt` that are missing, disabled, not valid, or changed. `unknown` has
    triggers, policies and settings that are not in `catalog.txt`.
    """

    defects: list[str]
    unknown: list[str]

    @property
    def has_differences(self) -> bool:
        return bool(self.defects or self.unknown)

    @property
    def lacks_seals(self) -> bool:
        """Whether the seals can't be checked, because their table, a column or a digest function is missing."""
        needed = ("column ", "table ", "function digest_of_", "function hash_of_seal")
        return any(each.startswith(needed) and each.endswith(": missing") for each in self.defects)

    def __str__(self) -> str:
        return "; ".join([*self.defects, *self.unknown])


class SchemaMismatch(Exception):
    """The ledger's tables, functions and triggers in the database differ from `catalog.txt`."""

    def __init__(self, report: SchemaReport) -> None:
        self.report = report
        super().__init__(
            f"the database differs from the ledger's schema: {report}. Restore the definitions of "
            f"{CATALOG_FILE} (enable a disabled trigger with ALTER TABLE … ENABLE TRIGGER …), then run shop check"
        )


async def compare_schema(db: AsyncSession, *, is_newer: bool = False) -> SchemaReport:
    """Compare the ledger's part of the database, and the policies and rights of all tables, with `catalog.txt`. This is
    one query, which takes a few milliseconds.

    `is_newer` means that a later release has migrated the database. Then functions, triggers, constraints, indexes,
    policies and rights may have other definitions, and there may be more of them. But none may be missing, disabled or
    not valid, and the tables and columns of this release must not have changed.
    """
    expected = expected_catalog()
    whole = await read_catalog(db)
    found = {name: entry for name, entry in whole.items() if _is_described(name) and not name.startswith(_RIGHTS)}
    rights = {name: entry for name, entry in whole.items() if name.startswith(_SERVICE_RIGHTS)}
    defects: list[str] = []
    unknown = [] if is_newer else [f"{name}: unknown" for name in rights if name not in expected]
    for line in compare_catalogs(found | {name: rights[name] for name in rights if name in expected}, expected):
        if line.endswith(": unknown"):
            if line.startswith(_SETTING if is_newer else _UNKNOWN_KINDS):
                unknown.append(line)
        elif not (is_newer and line.startswith(_REPLACEABLE_KINDS) and line.endswith(": changed")):
            defects.append(line)
    return SchemaReport(defects, unknown)


def verify_schema(url: str, *, is_newer: bool = False) -> None:
    """Raise `SchemaMismatch` if the database at `url` differs from `catalog.txt`. Its revision must be the newest one
    of this release, or a newer one (`is_newer`)."""

    async def compare() -> SchemaReport:
        async with Database(url, pool_size=1, application_name="shop") as database, database.session() as session:
            return await compare_schema(session, is_newer=is_newer)

    report = asyncio.run(compare())
    if report.has_differences:
        raise SchemaMismatch(report)


async def find_schema_problem(database: Database, *, is_newer: bool = False) -> str | None:
    """The reason why the service isn't ready, if the database differs from `catalog.txt`. Otherwise None."""
    async with database.session(read_only=True) as session:
        report = await compare_schema(session, is_newer=is_newer)
    return (
        f"the database differs from the ledger's schema, run shop check: {report}" if report.has_differences else None
    )


def describe_catalog(found: Mapping[str, CatalogEntry]) -> str:
    """The text of `catalog.txt`: the entries with `is_guarded` of the ledger's tables and functions, and the policies
    and rights of all tables."""
    return _PREFACE + "".join(
        f"\n{_HEAD}{name}\n{entry.definition}\n"
        for name, entry in found.items()
        if entry.is_guarded and _is_described(name) and not name.startswith(_SETTING)
    )


def _is_described(name: str) -> bool:
    """Whether `catalog.txt` has the entries of this kind and table. Settings are compared, but not described."""
    kind, _, rest = name.partition(" ")
    if kind == "function":
        return rest.partition("(")[0] in list_function_names()
    return name.startswith((*_SECURITY_KINDS, _SETTING)) or rest.rpartition(" ")[2] in LEDGER_TABLES


def find_catalog_differences(found: Mapping[str, CatalogEntry]) -> list[str]:
    """The lines to remove from `catalog.txt` and to add to it, so that it describes this catalog."""
    old, new = CATALOG_FILE.read_text(encoding="utf-8"), describe_catalog(found)
    return list(unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]


@cache
def expected_catalog() -> dict[str, CatalogEntry]:
    """The entries of `catalog.txt`, by name."""
    sections = CATALOG_FILE.read_text(encoding="utf-8").split(f"\n{_HEAD}")[1:]
    named = (section.partition("\n") for section in sections)
    return {name: CatalogEntry(definition.removesuffix("\n")) for name, _, definition in named}
