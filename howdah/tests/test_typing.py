"""The types of the public API, checked by mypy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import howdah

pytest.importorskip("mypy")

TESTS = Path(__file__).parent
WRONG = """
from typing import assert_type
from howdah import JsonViewReader
from howdah_tests.support.sample_models import User, UserRepository

async def wrong(users: UserRepository) -> None:
    assert_type(await users.get(1), User)
    (await users.list()).emial

async def wrong_viewers(readers: JsonViewReader[User, int]) -> None:
    await readers.get(1)
    await readers.page(viewer="1")
"""


@pytest.mark.timeout(300)
def test_the_api_has_the_declared_types(tmp_path: Path) -> None:
    """Control: mypy finds the errors in a second file, and no others."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    library = Path(howdah.__file__).parents[1]
    installed = "site-packages" in library.parts
    options = ["--strict", f"--config-file={os.devnull}", "--no-error-summary", "--follow-imports=silent"]
    cache = TESTS.parents[1] / ".mypy_cache" / "typing"
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            *options,
            "--cache-dir",
            cache,
            TESTS / "howdah_tests/support/public_api_types.py",
            wrong,
        ],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": os.pathsep.join([str(TESTS)] + [str(library)] * (not installed))},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in checked.stdout.splitlines() if ": error: " in line]
    assert [line.split(":")[0:2] for line in found] == [["wrong.py", n] for n in ("7", "8", "11", "12")], checked
    assert "assert-type" in found[0]
    assert "attr-defined" in found[1]
