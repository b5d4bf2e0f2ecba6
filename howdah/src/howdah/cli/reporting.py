"""What the commands print on standard error: the database that they use, and errors in one line."""

from __future__ import annotations

from typing import Any

import typer
from sqlalchemy import URL, make_url
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


def report_database(url: str | URL) -> None:
    """Print the database on standard error: its name, its server and its user, without the password."""
    typer.echo(f"database: {describe_database(url)}", err=True)


def describe_database(url: str | URL) -> str:
    """`shop on db.example.com:5432, user app`, or the directory of the socket instead of the host."""
    parsed = make_url(url)
    hosts = parsed.query.get("host", parsed.host or "the default host")
    server = hosts if isinstance(hosts, str) else ", ".join(hosts)
    port = f":{parsed.port}" if parsed.port is not None else ""
    user = f", user {parsed.username}" if parsed.username else ""
    return f"{parsed.database or 'the default database'} on {server}{port}{user}"


def _first_message(error: Exception) -> str:
    """The message of the driver, without the statement and the link that SQLAlchemy adds."""
    original = getattr(error, "orig", None) or error
    return str(original.__cause__ or original).strip() or type(error).__name__
