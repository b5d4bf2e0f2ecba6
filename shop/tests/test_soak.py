"""The modules of `make soak`, which no other test runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = ["check_at_scale", "coalescer", "crash_ledger", "opposed_batches", "opposed_transfers"]


@pytest.mark.parametrize("module", MODULES)
def test_help_prints_the_usage(module: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", f"soak.{module}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("usage:")


def test_every_module_with_a_command_is_listed() -> None:
    commands = {path.stem for path in (ROOT / "soak").glob("*.py") if "def main(" in path.read_text()}
    assert commands == set(MODULES)
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"python -m soak.{module}" in makefile for module in MODULES)
