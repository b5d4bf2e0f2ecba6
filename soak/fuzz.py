"""Compare the service with its OpenAPI description: schemathesis generates valid and invalid requests.

All checks of schemathesis are on, for every operation, and for sequences of operations. A failure is printed with a
curl command. `--seed` repeats a run: it prints the seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from shop.identity.principals import Role
from soak.identity import sign_in
from soak.server import shop_server
from soak.service import running_service

_ROOT: Final = Path(__file__).parents[1]
_MAX_SEED: Final = 2**32 - 1


def run_schemathesis(address: str, *, authorization: str, seed: int, examples: int, phases: str | None = None) -> int:
    """Run schemathesis against this address, and return its exit code. Failures are printed."""
    command: list[str | Path] = [
        Path(sys.executable).with_name("schemathesis"),
        *("--no-color", "run", f"{address}/openapi.json", "--checks", "all", "--continue-on-failure"),
        *("--header", f"Authorization: {authorization}"),
        *("--seed", str(seed), "--max-examples", str(examples)),
        # The warnings are about requests that were rejected. The hooks say which rejections are expected.
        *("--warnings", "off", "--suppress-health-check", "all", "--generation-database", "none"),
        *(() if phases is None else ("--phases", phases)),
    ]
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "soak.fuzz_hooks", "PYTHONPATH": path}
    return subprocess.run(command, env=environment, check=False).returncode


def find_errors(log: Path) -> list[str]:
    """The entries of the service's log with the level error. There must be none, whatever the requests were."""
    entries = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    return [line for line in entries if json.loads(line).get("level") in ("error", "critical")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="by default a random one")
    parser.add_argument("--examples", type=int, default=100, help="the most requests for each operation and phase")
    parser.add_argument("--phases", help="some of examples,coverage,fuzzing,stateful")
    parser.add_argument("--role", choices=list(Role), default=Role.ADMIN, help="the role of the user who is signed in")
    parser.add_argument("--url", help="a running service; by default one is started with a database of its own")
    parser.add_argument("--authorization", help="the header Authorization for a service that was started elsewhere")
    options = parser.parse_args(argv)
    seed = random.randint(0, _MAX_SEED) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    authorization = options.authorization or sign_in(Role(options.role))["Authorization"]
    run = partial(
        run_schemathesis,
        authorization=authorization,
        seed=seed,
        examples=options.examples,
        phases=options.phases,
    )
    if options.url is not None:
        return run(options.url)
    with _started() as (address, log):
        code = run(address)
        errors = find_errors(log)
    for entry in errors:
        print(entry)
    return code or bool(errors)


@contextmanager
def _started() -> Iterator[tuple[str, Path]]:
    """The address and the log of `shop serve` on a temporary PostgreSQL."""
    with shop_server() as server, running_service(server.url, server.folder) as service:
        asyncio.run(service.wait_until_ready())
        yield service.address, server.folder / "service.log"


if __name__ == "__main__":
    sys.exit(main())
