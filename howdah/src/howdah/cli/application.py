"""All commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from howdah.cli.database import commands as database_commands
from howdah.cli.migrate import app as migrate_commands
from howdah.cli.new import new
from howdah.cli.reporting import ReportingGroup

app = typer.Typer(
    cls=ReportingGroup,
    help="Create a service, run a database for development, and migrate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(database_commands, name="db")
app.add_typer(migrate_commands, name="migrate")
app.command()(new)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import version

        typer.echo(version("howdah"))
        raise typer.Exit


@app.callback()
def _add_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """The options of `howdah` itself."""
