"""Inflict faults on `shop serve` under load, at random, and check that it stays correct.

    python -m soak.bad_day --seconds 300 --seed 1
    python -m soak.bad_day --faults slow-exports,failover       (only these)
    python -m soak.bad_day --list

The run starts a PostgreSQL server, its standby and the service in a temporary directory. It stops them at its end.
Ordinary clients read, list, transfer, order, upload and export all the time. Faults happen in rounds: up to three of
them overlap, then there are 12 s without a fault. The same seed gives the same schedule, whatever happens.

The run passes if all these conditions are met. Otherwise the exit code is 1.

- Each request is answered, or its connection is closed, within the bound of its kind: 15 s, or 30 s for uploads and
  exports. While no fault is active, no connection is closed, and no answer is a 503.
- No answer is a 500. A 503 has `Retry-After`, and errors are problem details.
- `/healthz` answers within 2 s during every fault, except while the service is killed. `/readyz` answers within 12 s:
  with 503 if the database can't be used, and with 200 if it can.
- Within 10 to 20 s after each fault, the service is ready, and it reads and writes.
- During slow clients, large bodies, rolling restarts and logs that nobody reads, at most 5 % of the answers are 503
  (answers that are never read: 40 %). Faults that overlap may each cause their own share. The service ends the
  connections of slow clients.
- Every acknowledged change is stored exactly once, and a repeated key gets the same answer. Uploads are stored as a
  whole or not at all. `shop check` finds no fault.
- At the end the service uses about as much memory, threads, files and connections as before. It never uses 300 MB more.
- The log has no errors, except those of background jobs that had no database, of a full disk, and of a stop while the
  server is frozen.

The fault `full-disk` needs root. The run needs two cores of its own: on a busy machine `--slack 3` multiplies the
bounds.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from soak.bad_day.faults import FAULTS
from soak.bad_day.schedule import MAX_PER_ROUND, PlannedFault, plan_faults

_OPEN_FILES = 8_192


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    options = _build_parser().parse_args(argv)
    if options.list:
        for name, kind in FAULTS.items():
            print(f"{name:20} {(kind.__doc__ or '').splitlines()[0]}")
        return 0
    names = options.faults.split(",") if options.faults else list(FAULTS)
    if unknown := set(names) - FAULTS.keys():
        print(f"unknown faults: {', '.join(sorted(unknown))}; --list shows all", file=sys.stderr)
        return 2
    groups = {name: FAULTS[name].groups for name in names}
    planned = plan_faults(options.seed, options.seconds, groups, max_per_round=1 if options.alone else MAX_PER_ROUND)
    print(f"seed {options.seed}: {len(planned)} faults")
    if options.plan:
        _print_plan(planned)
        return 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_OPEN_FILES, hard), hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    from soak.bad_day.run import Options, run

    chosen = Options(
        seed=options.seed,
        slack=options.slack,
        load=options.load,
        idle_seconds=options.idle,
        address=options.address,
        log=options.log,
    )
    return 0 if run(planned, chosen) else 1


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m soak.bad_day", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300, help="how long new faults are started")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--faults", metavar="NAME,…", help="only these faults")
    parser.add_argument("--alone", action="store_true", help="one fault at a time, to find the one that breaks a rule")
    parser.add_argument("--list", action="store_true", help="list the faults, and do nothing")
    parser.add_argument("--plan", action="store_true", help="print the schedule, and do nothing")
    parser.add_argument("--slack", type=float, default=1.0, help="multiplies the bounds, for a busy machine")
    parser.add_argument("--load", type=float, default=1.0, help="divides the pauses of the ordinary clients")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds without requests before leaks are counted")
    parser.add_argument(
        "--address",
        choices=("moving", "hosts"),
        default="moving",
        help="how the service finds the primary: one address that moves, or two hosts with target_session_attrs",
    )
    parser.add_argument("--log", type=Path, help="keep the log of the service in this file")
    return parser


def _print_plan(planned: list[PlannedFault]) -> None:
    for each in planned:
        print(f"t={each.start} s {each.name} for {each.seconds} s")


if __name__ == "__main__":
    sys.exit(main())
