"""`make bench`: run the comparisons, show them, and write them down."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.status import Status

from benchmarks import contents, report, results
from benchmarks.bulk_create import BulkCreate
from benchmarks.bulk_update_rows import BulkUpdateRows
from benchmarks.bulk_update_status import BulkUpdateStatus
from benchmarks.comparison import Comparison, measure
from benchmarks.few_rows import FewRows
from benchmarks.get_user import GetUser, Servers
from benchmarks.memory import Memory
from benchmarks.overhead import Overhead
from benchmarks.pages import Pages
from benchmarks.retail_import import RetailImport
from benchmarks.server import connections, embedded_server, new_database, settings
from benchmarks.summary import Summary
from benchmarks.transfers import Transfers, TransfersOverHttp
from benchmarks.upsert import Upsert

COMPARISONS: Final[tuple[type[Comparison], ...]] = (
    BulkCreate,
    BulkUpdateStatus,
    BulkUpdateRows,
    Upsert,
    FewRows,
    Pages,
    Summary,
    Overhead,
    GetUser,
    Servers,
    Transfers,
    TransfersOverHttp,
    Memory,
    RetailImport,
)

LARGE: Final = 10_000_000
"""Rows of `memory` under `--large`."""


async def run(
    url: str,
    chosen: Sequence[type[Comparison]],
    *,
    sizes: Sequence[int],
    rounds: int,
    file: Path | None,
    before: Path | None,
) -> None:
    """What is done is written down after each comparison, so that an end before time leaves it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print("Ratios are medians over the rounds, in brackets the least and the most.")
    done: list[results.Result] = []
    left_out: dict[str, str] = {}
    async with connections(url) as connected:
        place = results.Place(await connected.driver.fetchval("SHOW server_version"), await settings(connected.driver))
        for kind in chosen:
            for size in sizes or [kind.size]:
                await contents.empty(connected.driver)
                comparison = kind(connected, size)
                reason = await comparison.left_out()
                if reason is not None:
                    left_out[kind.name] = reason
                    console.print(f"\n[bold]{kind.name}[/] is left out: {reason}")
                    break
                with console.status(f"{kind.name}: making the data") as status:

                    def say(text: str, name: str = kind.name, status: Status = status) -> None:
                        status.update(f"{name}: {text}")

                    try:
                        await comparison.set_up()
                        figures = await measure(comparison, rounds=comparison.rounds(rounds), say=say)
                    finally:
                        await comparison.tear_down()
                done.append(results.Result(comparison, figures))
                so_far = results.as_dict(place, done, left_out)
                report.show(console, so_far["comparisons"][-1])
                if file is not None:
                    results.write(file, so_far if before is None else results.with_others_of(before, so_far))
    goals = [outcome for each in done for outcome in each.outcomes()]
    console.print(f"\n{sum(outcome.met for outcome in goals)} of {len(goals)} goals met")


def main() -> None:
    names = [each.name for each in COMPARISONS]
    options = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    options.add_argument("--only", metavar="NAME[,NAME]", default=",".join(names), help=", ".join(names))
    options.add_argument("--rounds", type=int, default=5, help="after a warm-up; small sizes have more")
    options.add_argument("--size", metavar="N[,N]", default="", help="in place of each comparison's own")
    options.add_argument("--large", action="store_true", help=f"memory with {LARGE:,} rows")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options.add_argument("--with", type=Path, metavar="FILE", dest="before", help="and its figures of the others")
    given = options.parse_args()
    unknown = [name for name in given.only.split(",") if name not in names]
    if unknown:
        options.error(f"no such comparison: {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [each for each in COMPARISONS if each.name in given.only.split(",")]
    sizes = [int(size.replace("_", "")) for size in given.size.split(",") if size]

    async def in_a_database() -> None:
        async with new_database(server) as url:
            await run(url, chosen, sizes=sizes, rounds=given.rounds, file=given.json, before=given.before)

    if given.large:
        Memory.size = LARGE
    with embedded_server() as server:
        asyncio.run(in_a_database())


if __name__ == "__main__":
    main()
