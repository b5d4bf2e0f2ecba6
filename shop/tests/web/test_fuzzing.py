"""A short run of `make fuzz`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from howdah import Database
from shop_tests.support.identity import ADMIN, sign_in

ROOT = Path(__file__).parents[3]


@pytest.mark.timeout(300)  # half a minute if the machine is idle
@pytest.mark.parametrize("phases", ["coverage", "examples,fuzzing,stateful"])  # two tests, for two workers
def test_generated_requests_get_the_responses_of_the_description(service: str, stored: Database, phases: str) -> None:
    """The seed and the number of examples are fixed, so that each run sends the same requests."""
    command = [
        sys.executable,
        "-m",
        "soak.fuzz",
        "--url",
        service,
        "--seed",
        "1",
        "--examples",
        "2",
        "--phases",
        phases,
    ]
    command += ["--authorization", sign_in(ADMIN.role, ADMIN.user_id)["Authorization"]]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
