"""What the commands print on standard error: the database that they use, and errors in one line."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from howdah.errors import HowdahError


class CommandError(Exception):
    """An error that the caller of the command can correct. The message says how."""


class ReportingGroup(TyperGroup):
    """Commands that report errors of the caller and of the server on standard error, with exit code 1.

    Other errors are bugs, and have a traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CommandError, HowdahError) as error:
            typer.secho(f"error: {_first_message(error)}", err=True, fg="red")
            raise typer.Exit(1) from error


def _first_message(error: Exception) -> str:
    """The message of the driver, without the statement and the link that SQLAlchemy adds."""
    original = getattr(error, "orig", None) or error
    return str(original.__cause__ or original).strip() or type(error).__name__
