"""The scripts that `make soak` runs, which no other test does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize("name", ["check-at-scale", "crash-ledger", "opposed-batches", "opposed-transfers"])
def test_says_what_it_does(name: str) -> None:
    told = subprocess.run(
        [sys.executable, SCRIPTS / name, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("usage:")
