"""`howdah migrate`: write, check and apply migrations.

Each command imports what it needs, so that `howdah --help` is fast.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from howdah.cli.reporting import describe_error

if TYPE_CHECKING:
    from howdah.alembic.history import Migrations

_UNDEFINED_OBJECT = "42704"  # the SQLSTATE for a role that doesn't exist

app = typer.Typer(
    help="Write, check and apply migrations. Alembic's configuration is read from pyproject.toml or alembic.ini.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Project = Annotated[
    Path, typer.Option("--project", help="The directory with pyproject.toml or alembic.ini", file_okay=False)
]
Url = Annotated[
    str | None, typer.Option("--url", help="The URL of the database. By default that of env.py", show_default=False)
]
Server = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="A URL of the server for the scratch database. By default that of env.py, or the embedded server",
        show_default=False,
    ),
]


@app.command()
def new(message: str, project: Project = Path(), url: Server = None) -> None:
    """Write a migration for the changes of the models and .sql files, and test it on a scratch database."""
    with _migrations(project) as migrations:
        _print_server(migrations, url)
        written = migrations.new(message, server_url=url)
    for path in written.paths:
        typer.echo(f"written: {path}")
    if written.is_empty and not written.problems:
        typer.echo("the models and the .sql files have no changes, so the migration is empty")
    for warning in written.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for problem in written.downgrade_problems:
        typer.echo(f"the downgrade doesn't restore: {problem}", err=True)
    for problem in written.problems:
        typer.echo(f"  {problem}", err=True)
    if written.problems:
        _fail("the migration isn't complete: edit it, then run howdah migrate check")


@app.command()
def up(
    revision: Annotated[str, typer.Argument(help="A revision, head, or +1")] = "head",
    project: Project = Path(),
    url: Url = None,
) -> None:
    """Apply the migrations up to a revision."""
    with _migrations(project) as migrations:
        _print_database(migrations, url)
        for applied in migrations.upgrade(url, revision) or ["no migration was needed"]:
            typer.echo(applied)


@app.command(context_settings={"ignore_unknown_options": True})  # `-1` is a revision
def down(
    revision: Annotated[str, typer.Argument(help="A revision, base, or -1")],
    project: Project = Path(),
    url: Url = None,
) -> None:
    """Go back to a revision. The data of dropped tables and columns is lost."""
    with _migrations(project) as migrations:
        _print_database(migrations, url)
        for applied in migrations.downgrade(revision, url) or ["nothing was changed"]:
            typer.echo(applied)


@app.command()
def check(
    project: Project = Path(),
    url: Server = None,
    no_lint: Annotated[bool, typer.Option("--no-lint", help="Don't look for statements that block a service")] = False,
) -> None:
    """Compare the migrations with the models and .sql files, on a scratch database, and lint the migrations."""
    with _migrations(project) as migrations:
        _print_server(migrations, url)
        report = migrations.check(server_url=url, is_linted=not no_lint)
    if report.has_problems:
        _fail(str(report))
    typer.echo("migrations, models and .sql files agree" + ("" if no_lint else ", and the linter found nothing"))


@app.command()
def sql(
    revisions: Annotated[
        str | None,
        typer.Argument(
            help="A range such as 0003:head. By default from the database's revision to head", show_default=False
        ),
    ] = None,
    project: Project = Path(),
    url: Url = None,
) -> None:
    """Print the SQL of migrations, without executing it."""
    with _migrations(project) as migrations:
        if revisions is None:
            found = _read_current(migrations, url)
            revisions = "head" if found is None else f"{found}:head"
        migrations.write_sql(revisions)


@app.command()
def current(project: Project = Path(), url: Url = None) -> None:
    """Print the revision of the database, and the newest one."""
    with _migrations(project) as migrations:
        found = _read_current(migrations, url)
        typer.echo(f"the database is at {found or 'no revision'}, the newest one is {migrations.head}")


@contextmanager
def _migrations(project: Path) -> Iterator[Migrations]:
    """The migrations of the project. Errors with an explanation end the command without a traceback."""
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import ArgumentError

    from howdah.alembic.history import Migrations
    from howdah.alembic.linting import LinterMissing
    from howdah.errors import HowdahError

    try:
        yield Migrations.of_project(project)
    except (CommandError, HowdahError, LinterMissing, ArgumentError, ValueError) as error:
        _fail(f"{describe_error(error)}{_explain_missing_role(error)}", cause=error)


def _explain_missing_role(error: Exception) -> str:
    """What to do if a model has a `TableGrant` for a role that the server doesn't have."""
    if getattr(error, "sqlstate", None) != _UNDEFINED_OBJECT or 'role "' not in str(error):
        return ""
    return (
        "\npass role_statements=login_role_statements(LOGIN, roles=[...]) to run_migrations in env.py, "
        "which creates the role"
    )


def _read_current(migrations: Migrations, url: str | None) -> str | None:
    """The revision of the database."""
    from howdah.alembic.environment import str_url
    from howdah.database import Database

    used = str_url(_print_database(migrations, url))

    async def read() -> str | None:
        async with Database(used, pool_size=1, application_name="howdah migrate") as database:
            return await migrations.current(database)

    return asyncio.run(read())


def _print_database(migrations: Migrations, url: str | None) -> str:
    """Say on standard error which database is used, and return its URL."""
    from howdah.alembic.environment import str_url
    from howdah.alembic.history import describe_url

    used = url or migrations.environment().url
    if used is None:
        raise ValueError("env.py passes url=None to run_migrations, so pass --url")
    typer.echo(f"database: {describe_url(used)}", err=True)
    return str_url(used)


def _print_server(migrations: Migrations, url: str | None) -> None:
    """Say on standard error where the scratch database is created."""
    from howdah.alembic.history import describe_url

    used = url or migrations.environment().url
    where = "the embedded server" if used is None else f"the server of {describe_url(used)}"
    typer.echo(f"scratch database: on {where}", err=True)


def _fail(message: str, *, cause: BaseException | None = None) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1) from cause
