"""`howdah db`: an embedded PostgreSQL for development.

One server is shared by all projects of the user. Each project has its own database, with the project's name. So a new
project needs no server or port of its own. The data directory is outside the project, because a server that root starts
runs as another user, which may have no access to the project, and because a clean-up of the project would delete it.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from sqlalchemy import make_url

from howdah.cli.reporting import CommandError

if TYPE_CHECKING:
    from howdah.embedded import EmbeddedPostgres

commands = typer.Typer(help="Run an embedded PostgreSQL for development.", no_args_is_help=True)

DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="HOWDAH_DATA_DIR",
        help="The directory with the server's data",
        show_default="one server for all projects, in the user's data directory",
    ),
]
DatabaseName = Annotated[
    str | None,
    typer.Option("--database", metavar="NAME", help="The database", show_default="the name in pyproject.toml"),
]


@commands.command()
def start(data_dir: DataDir = None, database: DatabaseName = None) -> None:
    """Start the server unless it runs, create the database unless it exists, and print its URL.

    The server runs until `howdah db stop` or a restart of the machine.
    """
    name = database or project_database()
    server = _find_server(data_dir).start()
    try:
        server.ensure_database(name)
        url = _plain_url(server, name)
    finally:
        server.detach()
    _report(server, url)
    typer.echo(url)


@commands.command()
def stop(data_dir: DataDir = None) -> None:
    """Stop the server. The data is kept."""
    server = _find_server(data_dir)
    was_running = server.pid is not None
    typer.echo(f"server: PostgreSQL {server.version} in {server.data_dir}", err=True)
    if not server.shut_down():
        raise CommandError("the server still runs, because other processes use it: it stops when the last one ends")
    typer.echo("stopped" if was_running else "no server was running", err=True)


@commands.command("url")
def print_url(data_dir: DataDir = None, database: DatabaseName = None) -> None:
    """Print the URL of the database, for `Database(url)`, psql and other programs."""
    server = _find_running_server(data_dir)
    with server:
        url = _plain_url(server, database or project_database())
    _report(server, url)
    typer.echo(url)


@commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context, data_dir: DataDir = None, database: DatabaseName = None) -> None:
    """Run psql on the database. Other options are passed to psql: `howdah db psql -c "SELECT 1"`."""
    server = _find_running_server(data_dir)
    program = server.bin_dir / "psql"
    if not program.exists():
        raise CommandError(
            f"the server's wheel has no psql at {program}: install PostgreSQL's client programs, and run "
            'psql "$(howdah db url)"'
        )
    with server:
        url = _plain_url(server, database or project_database())
        _report(server, url)
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C cancels psql's query, and doesn't end this process
        finished = subprocess.run([str(program), *context.args, url], check=False)
    raise typer.Exit(finished.returncode)


def project_database() -> str:
    """The name of the project in the nearest `pyproject.toml`, with `_` for other characters; otherwise `postgres`."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            name = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}).get("name", "")
        except ValueError as error:
            raise CommandError(f"{file} isn't valid TOML: {error}") from error
        return re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")[:63] or "postgres"
    return "postgres"


def _find_server(data_dir: Path | None) -> EmbeddedPostgres:
    from howdah.embedded import EmbeddedPostgres

    return EmbeddedPostgres(data_dir)


def _find_running_server(data_dir: Path | None) -> EmbeddedPostgres:
    server = _find_server(data_dir)
    if server.pid is None:
        raise CommandError(f"no server runs in {server.data_dir}: start it with howdah db start")
    return server


def _plain_url(server: EmbeddedPostgres, name: str) -> str:
    """The URL without a driver, which psql and `Database` accept."""
    return server.url(name).replace("postgresql+asyncpg://", "postgresql://", 1)


def _report(server: EmbeddedPostgres, url: str) -> None:
    name = make_url(url).database
    typer.echo(f"database: {name} in {server.data_dir} (embedded PostgreSQL {server.version})", err=True)
