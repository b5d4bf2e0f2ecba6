"""`make bench`: run the comparisons, show them, and write their figures to a file."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import results
from benchmarks.access import Access
from benchmarks.authentication import Authentication
from benchmarks.bulk_create import BulkCreate
from benchmarks.bulk_update_rows import BulkUpdateRows
from benchmarks.bulk_update_status import BulkUpdateStatus
from benchmarks.comparison import Comparison
from benchmarks.few_rows import FewRows
from benchmarks.get_user import GetUser, Servers
from benchmarks.log_and_metrics import LogAndMetrics
from benchmarks.memory import Memory
from benchmarks.overhead import Overhead
from benchmarks.overload import Overload
from benchmarks.pages import Pages
from benchmarks.pool import Pool, PoolWaits
from benchmarks.postgres import embedded_server, new_database, open_connections, read_settings
from benchmarks.rate_limits import RateLimitCosts
from benchmarks.retail_import import RetailImport
from benchmarks.roles import Roles
from benchmarks.runner import Options, run_comparisons
from benchmarks.shop_http import ShopHttp
from benchmarks.sign_in import SignIn
from benchmarks.slow_clients import SlowClients
from benchmarks.summary import Summary
from benchmarks.terminal import Terminal
from benchmarks.transfers import Transfers, TransfersOverHttp
from benchmarks.upsert import Upsert
from howdah.embedded import EmbeddedPostgres

COMPARISONS: Final[tuple[type[Comparison], ...]] = (
    BulkCreate,
    BulkUpdateStatus,
    BulkUpdateRows,
    Upsert,
    FewRows,
    Pages,
    Summary,
    Overhead,
    Roles,
    Access,
    LogAndMetrics,
    Pool,
    PoolWaits,
    RateLimitCosts,
    GetUser,
    Servers,
    ShopHttp,
    Authentication,
    SignIn,
    Transfers,
    TransfersOverHttp,
    SlowClients,
    Overload,
    Memory,
    RetailImport,
)

LARGE: Final = 10_000_000
"""The number of rows of the comparison `memory` with `--large`."""


async def _run(server: EmbeddedPostgres, kinds: Sequence[type[Comparison]], options: Options) -> bool:
    async with new_database(server) as url, open_connections(url) as connections:
        version = await connections.driver.fetchval("SHOW server_version")
        environment = results.Environment(version, await read_settings(connections.driver))
        return await run_comparisons(connections, environment, kinds, options, Terminal())


def main() -> None:
    """Run the command."""
    names = [each.name for each in COMPARISONS]
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME[,NAME]", default=",".join(names), help=", ".join(names))
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, short windows, one round; not to be published"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of a comparison; noisy comparisons run more")
    parser.add_argument("--size", metavar="N[,N]", default="", help="sizes to use instead of the comparisons' own")
    parser.add_argument("--large", action="store_true", help=f"run the comparison memory with {LARGE:,} rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument(
        "--with",
        type=Path,
        metavar="FILE",
        dest="merge_with",
        help="keep this file's figures of all other comparisons",
    )
    parser.add_argument("--verbose", action="store_true", help="show the tracebacks of failures")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    unknown = [name for name in chosen if name not in names]
    if unknown:
        parser.error(f"no such comparison: {', '.join(unknown)}; choose from {', '.join(names)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}: must be at least 1")
    if arguments.quick and (arguments.merge_with or arguments.large):
        parser.error("--quick can't be combined with --with or --large")
    sizes = [int(size.replace("_", "")) for size in arguments.size.split(",") if size]
    if any(size < 1 for size in sizes):
        parser.error(f"--size {arguments.size}: must be at least 1")
    options = Options(
        sizes={Memory.name: LARGE} if arguments.large else sizes,
        rounds=arguments.rounds,
        is_quick=arguments.quick,
        file=arguments.json,
        merge_with=arguments.merge_with,
    )
    logging.basicConfig(level=logging.ERROR)
    if arguments.verbose:  # not the root logger, because an active logger of an engine slows down its statements
        logging.getLogger("benchmarks").setLevel(logging.INFO)
    # Container images often set this. Then each process would compile all modules again, which takes seconds.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    kinds = [each for each in COMPARISONS if each.name in chosen]
    try:
        if arguments.quick and arguments.json is not None:
            results.check_quick_file(arguments.json)
        with embedded_server() as server:
            is_complete = asyncio.run(_run(server, kinds, options))
    except results.NotPublishable as error:
        parser.error(str(error))
    sys.exit(0 if is_complete else 1)


if __name__ == "__main__":
    main()
