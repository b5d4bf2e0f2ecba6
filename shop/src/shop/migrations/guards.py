"""What a database at the newest revision must have for the ledger to be right: triggers, functions, constraints.

`guards.sql` shows them as they are now, one after the other. `shop migrate --guards` writes it, from a database that it
migrates for that.
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
    """`missing`: what isn't there, is disabled, or is another than it must be. `unknown`: triggers that the ledger
    doesn't have, which may do anything."""

    missing: list[str]
    unknown: list[str]

    @property
    def lacks_seals(self) -> bool:
        """The seals can't be read, or nothing computes them."""
        needed = ("column ", "table seals", "function digest_of_", "function hash_of_seal")
        return any(each.startswith(needed) and each.endswith(": missing") for each in self.missing)

    def __str__(self) -> str:
        return "; ".join([*self.missing, *(f"{each}: unknown" for each in self.unknown)])


class MissingGuards(Exception):
    """The database lacks something that keeps the ledger right."""

    def __init__(self, report: GuardsReport) -> None:
        self.report = report
        super().__init__(
            f"the database doesn't keep the ledger as it must: {report}. Put it back as {_FILE} shows it"
            " (a disabled trigger: ALTER TABLE … ENABLE TRIGGER …), then run shop check"
        )


async def compare_guards(db: AsyncSession) -> GuardsReport:
    """How the database differs from `guards.sql`: one query of the catalogue, some milliseconds."""
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
    """Raise `MissingGuards` if the database at `url`, which is at the newest revision, lacks something."""
    report = asyncio.run(_with_database(url, compare_guards))
    if report.missing or report.unknown:
        raise MissingGuards(report)


def differences(url: str) -> str | None:
    """How `guards.sql` differs from the database at `url`, which is at the newest revision, or None."""
    now = asyncio.run(_with_database(url, described))
    return "\n".join(unified_diff(_FILE.read_text(encoding="utf-8").splitlines(), now.splitlines(), n=0)) or None


def write_guards(url: str) -> Path:
    """Write `guards.sql` from the database at `url`, which is at the newest revision; where that is."""
    _FILE.write_text(asyncio.run(_with_database(url, described)), encoding="utf-8")
    expected.cache_clear()
    return _FILE


async def described(db: AsyncSession) -> str:
    """The text of `guards.sql`, as it would be for this database."""
    found = (f"\n{_HEAD}{name}\n{each.definition}\n" for name, each in (await _found(db)).items())
    return _PREFACE + "".join(found)


@cache
def expected() -> dict[str, str]:
    """What `guards.sql` says, by the name of each."""
    sections = _FILE.read_text(encoding="utf-8").split(f"\n{_HEAD}")[1:]
    return {name: definition.removesuffix("\n") for name, _, definition in (each.partition("\n") for each in sections)}


@dataclass(frozen=True, slots=True)
class _Found:
    """`wrong`: disabled, not valid; None if it counts."""

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
