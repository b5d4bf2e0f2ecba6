"""The triggers, functions and constraints that a database at the newest revision must have.

`guards.sql` lists their current definitions. `shop migrate --guards` writes it from a temporary, migrated database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from difflib import unified_diff
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database

_FILE: Final = Path(__file__).with_name("guards.sql")
_TABLES: Final = ["accounts", "entries", "idempotency_keys", "pending_transfers", "seals", "transfers"]
_HEAD: Final = "--- "
_PREFACE: Final = """\
-- The ledger's tables, their constraints and triggers, and the functions, as they are at the newest revision.
-- `shop check`, `shop serve` and /readyz compare the database with it. Written by `shop migrate --guards`.
"""


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class GuardsReport:
    """`missing`: whatever is missing, disabled, invalid or changed. `unknown`: triggers and settings that `guards.sql`
    doesn't have."""

    missing: list[str]
    unknown: list[str]

    @property
    def lacks_seals(self) -> bool:
        """Whether the seals can't be checked: a table, column or digest function is missing."""
        needed = ("column ", "table seals", "function digest_of_", "function hash_of_seal")
        return any(each.startswith(needed) and each.endswith(": missing") for each in self.missing)

    def __str__(self) -> str:
        return "; ".join([*self.missing, *(f"{each}: unknown" for each in self.unknown)])


class MissingGuards(Exception):
    """The database differs from `guards.sql`."""

    def __init__(self, report: GuardsReport) -> None:
        self.report = report
        super().__init__(
            f"the database differs from guards.sql: {report}. Restore what {_FILE} shows"
            " (a disabled trigger: ALTER TABLE … ENABLE TRIGGER …), then run shop check"
        )


async def compare_guards(db: AsyncSession) -> GuardsReport:
    """How the database differs from `guards.sql`. One query of the system catalogs; takes some milliseconds."""
    found = await _found(db)
    missing: list[str] = []
    for name, definition in expected().items():
        if name not in found:
            missing.append(f"{name}: missing")
        elif found[name].wrong is not None:
            missing.append(f"{name}: {found[name].wrong}")
        elif found[name].definition != definition:
            missing.append(f"{name}: changed")
    unknown = [name for name in found if name.startswith(("trigger ", "setting ")) and name not in expected()]
    return GuardsReport(sorted(missing), sorted(unknown))


def verify_guards(url: str) -> None:
    """Raise `MissingGuards` if the database at `url`, which is at the newest revision, differs from `guards.sql`."""
    report = asyncio.run(_with_database(url, compare_guards))
    if report.missing or report.unknown:
        raise MissingGuards(report)


def differences(url: str) -> str | None:
    """How `guards.sql` differs from the database at `url`, which is at the newest revision; None if it doesn't."""
    now = asyncio.run(_with_database(url, described))
    return "\n".join(unified_diff(_FILE.read_text(encoding="utf-8").splitlines(), now.splitlines(), n=0)) or None


def write_guards(url: str) -> Path:
    """Write `guards.sql` from the database at `url`, which is at the newest revision. Return its path."""
    _FILE.write_text(asyncio.run(_with_database(url, described)), encoding="utf-8")
    expected.cache_clear()
    return _FILE


async def described(db: AsyncSession) -> str:
    """The text that `guards.sql` must have for this database."""
    found = (f"\n{_HEAD}{name}\n{each.definition}\n" for name, each in (await _found(db)).items())
    return _PREFACE + "".join(found)


@cache
def expected() -> dict[str, str]:
    """The definitions in `guards.sql`, by name."""
    sections = _FILE.read_text(encoding="utf-8").split(f"\n{_HEAD}")[1:]
    return {name: definition.removesuffix("\n") for name, _, definition in (each.partition("\n") for each in sections)}


@dataclass(frozen=True, slots=True)
class _Found:
    """`wrong` is `disabled` or why it isn't valid; None if it is in force."""

    definition: str
    wrong: str | None


async def _found(db: AsyncSession) -> dict[str, _Found]:
    rows = await db.execute(text(_query()), {"tables": _TABLES})
    return {row.name: _Found(row.definition, row.wrong) for row in rows}


async def _with_database(url: str, read: Callable[[AsyncSession], Awaitable[_T]]) -> _T:
    async with Database(url, pool_size=1, application_name="shop") as database, database.session() as session:
        return await read(session)


@cache
def _query() -> str:
    return Path(__file__).with_name("catalogue.sql").read_text(encoding="utf-8")
