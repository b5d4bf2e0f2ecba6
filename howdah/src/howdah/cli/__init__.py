"""The command `howdah`: an embedded database for development, new services, and migrations.

It needs the extra `howdah[cli]`.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command. Without the extra it says what to install, and exits with 1."""
    try:
        import typer  # noqa: F401  # the modules of the commands import it
    except ModuleNotFoundError as error:
        sys.exit(f"the command howdah needs the package {error.name}: pip install 'howdah[cli]'")
    from howdah.cli.application import app

    app()
