"""Print the errors of the commands on standard error."""

from __future__ import annotations

from typing import Any, Final

import typer
from typer.core import TyperGroup

from howdah.errors import ConnectionFailed, HowdahError

# The packages of the extra that only some commands import.
_PACKAGES: Final = frozenset({"alembic", "mako"})


class CommandError(Exception):
    """An error that the caller of the command can correct. The message says how."""


class ReportingGroup(TyperGroup):
    """Commands that report errors of the caller and of the server on standard error, with exit code 1.

    Other errors are bugs, and have a traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        cause: Exception
        try:
            return super().invoke(ctx)
        except (CommandError, HowdahError) as error:
            message, cause = describe_error(error), error
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _PACKAGES:
                raise
            message, cause = f"this command needs the package {package}: pip install 'howdah[cli]'", error
        typer.secho(f"error: {message}", err=True, fg="red")
        raise typer.Exit(1) from cause


def describe_error(error: Exception) -> str:
    """The message of an error, without SQLAlchemy's link. For a failed connection it has the driver's reason."""
    if not isinstance(error, ConnectionFailed):
        return str(error).partition("\n(Background on this error")[0]
    driver_error = error.orig or error
    reason = str(driver_error.__cause__ or driver_error).strip() or type(driver_error).__name__
    return f"the database can't be reached: {reason}. howdah db start starts the embedded server"
