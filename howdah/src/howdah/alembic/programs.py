"""Find and run development tools: the linter, and the formatter of new migrations."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_TIMEOUT_SECONDS: Final = 60.0


def find_program(name: str) -> str | None:
    """The path of a program in this Python environment, or in PATH."""
    installed = Path(sys.executable).with_name(name)
    return str(installed) if installed.exists() else shutil.which(name)


def format_files(files: Sequence[Path]) -> None:
    """Sort the imports of new migrations, remove unused ones, and format them, if ruff is installed.

    The project's configuration of ruff is used. An error of ruff leaves the files as they are.
    """
    ruff = find_program("ruff")
    if ruff is None:
        return
    for arguments in (["check", "--fix", "--select", "I001,F401"], ["format"]):
        subprocess.run(
            [ruff, *arguments, "--quiet", *files], capture_output=True, check=False, timeout=_TIMEOUT_SECONDS
        )
