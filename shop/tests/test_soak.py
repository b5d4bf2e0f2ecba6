"""The modules of `make soak`, which no other test runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = [
    "bad_day",
    "check_at_scale",
    "coalescer",
    "crash_ledger",
    "fuzz",
    "opposed_batches",
    "opposed_transfers",
    "stops",
]


HELP = """
import contextlib, io, runpy, sys
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        runpy.run_module("soak." + module, run_name="__main__", alter_sys=True)
    print(module, output.getvalue().startswith("usage:"))
"""


def test_every_module_starts_and_prints_its_usage() -> None:
    """In one other process: importing Shop takes seconds, and a module may declare tables that Shop doesn't have."""
    finished = subprocess.run(
        [sys.executable, "-c", HELP, *MODULES], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines() == [f"{module} True" for module in MODULES]


def test_every_module_with_a_command_is_listed() -> None:
    commands = {path.stem for path in (ROOT / "soak").glob("*.py") if "def main(" in path.read_text()}
    commands |= {path.parent.name for path in (ROOT / "soak").glob("*/__main__.py")}
    assert commands == set(MODULES)
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"python -m soak.{module}" in makefile for module in MODULES)
