"""The command line.

Each command imports what it needs. If this module imported the service, `shop --help` would take a second.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from socket import socket
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shop.explaining import ExplainingGroup
from shop.importing.command import commands as import_commands

if TYPE_CHECKING:
    from shop.ledger.check import LedgerReport
    from shop.settings import Settings

app = typer.Typer(
    cls=ExplainingGroup,
    help="Users, orders, accounts and transfers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(import_commands, name="import")

_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on")] = None,
    port: Annotated[int, typer.Option(envvar="PORT", help="Port to listen on", min=0, max=65535)] = 8000,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of processes that serve requests. The default is SHOP_WORKERS, or 1", min=1),
    ] = None,
) -> None:
    """Migrate the database and serve. Refuses to start if the ledger's schema in the database was changed, if the
    service's login could bypass row-level security, or if PostgreSQL doesn't accept the connections of all workers.
    Without SHOP_OWNER_DATABASE_URL, the schema must be current."""
    from howdah.logs import configure_logging
    from howdah.serving import serve as serve_app
    from shop import migrations
    from shop.postgres import check_pools, open_service_location, report_location
    from shop.roles import SYSTEM_ROLE
    from shop.service_login import check_service
    from shop.settings import Settings
    from shop.worker import create_service

    settings = Settings()
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    settings.check_secrets()
    settings.check_mails()
    configure_logging(settings.log_format)
    # `serve_app` handles the signal later. Until then, the exit ends the `with` block below, which stops an embedded
    # server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    address = host or settings.host
    # The ports are bound before the migration, so that nothing is migrated if one is in use.
    with (
        suppress(KeyboardInterrupt),
        _bind(address, port, settings) as sockets,
        open_service_location(settings) as location,
    ):
        # on standard output, because standard error has the log, whose lines may be JSON
        report_location(settings, lambda line: _out.print(line, highlight=False), is_service=True)
        if location.owner_url is not None:
            migrations.upgrade(location.owner_url)
        asyncio.run(check_service(location.url, settings, must_be_migrated=location.owner_url is None))
        asyncio.run(check_pools(location.url, settings))
        migrations.verify_schema(location.url, role=SYSTEM_ROLE)
        docs_host, docs_port, *_ = sockets[-1].getsockname()
        _out.print(f"docs: http://{docs_host}:{docs_port}/docs", highlight=False)
        if settings.database_url is None and location.owner_url is not None:
            print_first_sign_in(location.owner_url, f"http://{address}:{sockets[0].getsockname()[1]}")
        serve_app(
            partial(create_service, location.url if settings.database_url is None else None, address=address),
            sockets=sockets,
            workers=settings.workers,
            limits=settings.server_limits,
            stop_pause=settings.shutdown_pause,
            stop_timeout=settings.shutdown_timeout,
        )


@app.command("new-secret")
def new_secret() -> None:
    """Print a new key with 256 random bits, for SHOP_SIGNING_KEYS."""
    from shop.keyrings import new_key

    typer.echo(new_key())


def print_first_sign_in(url: str, address: str) -> None:
    """Unless an admin has a password, print how to sign in as an admin. The token is not written to the log."""
    from shop.identity.bootstrap import (
        FIRST_ADMIN,
        create_first_admin,
        describe_one_time_sign_in,
        describe_sign_in_link,
    )

    token = create_first_admin(url)
    if token is not None:
        _out.print(f"to sign in as {FIRST_ADMIN}, once, within 15 minutes:", highlight=False)
        _out.print(f"  {describe_one_time_sign_in(address, token)}", highlight=False, markup=False)
        _out.print(f"  {describe_sign_in_link(address, token)}", highlight=False, markup=False)


@app.command("create-admin")
def create_admin_command(
    email: Annotated[str, typer.Argument(help="The address of a new or existing user")],
    address: Annotated[str, typer.Option(help="The address of the service, for the printed command")] = (
        "http://localhost:8000"
    ),
) -> None:
    """Make a user an admin, and print a token to sign in with once. It also helps if no admin can sign in any more."""
    from pydantic import TypeAdapter, ValidationError

    from shop import migrations
    from shop.identity.bootstrap import create_admin, describe_one_time_sign_in, describe_sign_in_link
    from shop.postgres import open_owner_database, open_running_location, report_location
    from shop.settings import Settings
    from shop.users.schemas import Email

    settings = Settings()
    report_location(settings)
    try:
        email = TypeAdapter(Email).validate_python(email)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"], param_hint="EMAIL") from error

    async def run(url: str) -> str:
        async with open_owner_database(url, settings, application_name="shop create-admin") as database:
            return await create_admin(database, email)

    with open_running_location(settings) as location:
        migrations.upgrade(location.url)
        token = asyncio.run(run(location.url))
    _out.print(f"{email} is an admin. To sign in, once, within 15 minutes:", highlight=False)
    _out.print(f"  {describe_one_time_sign_in(address, token)}", highlight=False, markup=False)
    _out.print(f"  {describe_sign_in_link(address, token)}", highlight=False, markup=False)


@contextmanager
def _bind(address: str, port: int, settings: Settings) -> Iterator[list[socket]]:
    """The socket of the service, and that of `SHOP_INTERNAL_PORT` if it is set."""
    from howdah.serving import bind_socket

    with ExitStack() as stack:
        sockets = [stack.enter_context(bind_socket(address, port))]
        if settings.internal_port is not None:
            sockets.append(stack.enter_context(bind_socket(settings.internal_host, settings.internal_port)))
        yield sockets


@app.command()
def migrate(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only check, on a temporary database: the migrations must create the schema of the models and "
            "ledger/sql, and must not take long locks",
        ),
    ] = False,
    downgrade: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION", help="Go back to this revision. The data of dropped tables and columns is lost"
        ),
    ] = None,
    new: Annotated[
        str | None,
        typer.Option(
            metavar="MESSAGE", help="Write the first version of a migration for changed models and .sql files"
        ),
    ] = None,
    write_catalog: Annotated[
        bool,
        typer.Option("--write-catalog", help="Write ledger/catalog.txt, the schema that the service expects"),
    ] = False,
) -> None:
    """Bring the schema up to date."""
    from howdah.alembic.catalog import read_whole_catalog
    from howdah.alembic.scratch import scratch_database
    from shop import tables
    from shop.ledger import schema
    from shop.migrations import HISTORY
    from shop.postgres import open_location, open_running_location, report_location
    from shop.settings import Settings

    settings = Settings()
    report_location(settings)
    # the first three use scratch databases on the server, and not the data of a service
    opened = open_location if check or write_catalog or new is not None else open_running_location
    with opened(settings) as location:
        if check:
            report = HISTORY.check(server_url=location.url)
            lines = str(report).splitlines()
            if outdated := schema.find_catalog_differences(report.catalog):
                lines += ["ledger/catalog.txt is out of date, run shop migrate --write-catalog:", *outdated]
            for line in lines:
                _err.print(line, highlight=False, markup=False)
            if lines:
                raise typer.Exit(1)
            _out.print("migrations, models, ledger/sql and ledger/catalog.txt agree; no long locks", highlight=False)
        elif write_catalog:
            with scratch_database(location.url) as url:
                tables.create_tables(url)
                described = schema.describe_catalog(read_whole_catalog(url))
            schema.CATALOG_FILE.write_text(described, encoding="utf-8")
            _out.print(f"written: {schema.CATALOG_FILE}", highlight=False)
        elif new is not None:
            written = HISTORY.new(new, server_url=location.url)
            for path in written.paths:
                _out.print(f"written: {path}", highlight=False)
            for problem in [*written.warnings, *written.problems]:
                _err.print(problem, highlight=False, markup=False)
            if written.problems:
                raise typer.Exit(1)
        else:
            if downgrade is not None:
                HISTORY.downgrade(downgrade, location.url)
            else:
                HISTORY.upgrade(location.url)
            _out.print(f"the schema is at {downgrade or HISTORY.head}", highlight=False)


@app.command()
def check(
    seal: Annotated[
        str | None,
        typer.Option(
            metavar="POSITION:HASH", help="A seal that an earlier check printed. It must still be in the ledger"
        ),
    ] = None,
) -> None:
    """Check the ledger: balances equal their entries, transfers balance, every currency sums to zero, and no row was
    changed after it was sealed."""
    from howdah import InvalidStatement
    from shop import migrations
    from shop.ledger.check import STEPS, check_ledger
    from shop.ledger.seals import Link, link_seals
    from shop.postgres import open_owner_database, open_running_location, report_location
    from shop.settings import Settings

    settings = Settings()
    report_location(settings)
    try:
        since = None if seal is None else Link.parse(seal)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--seal") from error

    async def run(url: str, progress: Progress) -> LedgerReport:
        """Link the new seals, and check the ledger in one snapshot."""
        task = progress.add_task(STEPS[0], total=len(STEPS))

        def begin(step: str) -> None:
            progress.update(task, description=step, completed=STEPS.index(step))

        # no timeout, because whole tables are read
        unlimited = settings.model_copy(update={"statement_timeout": None})
        async with open_owner_database(url, unlimited, application_name="shop check") as database:
            is_newer = await migrations.is_newer(database)
            with suppress(InvalidStatement):  # a missing function is reported by check_ledger
                await link_seals(database)
            async with database.begin(isolation_level="REPEATABLE READ", read_only=True) as session:
                report = await check_ledger(session, since=since, begin=begin, is_newer=is_newer)
        progress.update(task, description="checked", completed=len(STEPS))
        return report

    with open_running_location(settings) as location:
        migrations.upgrade(location.url)
        with progress_bar() as progress:
            report = asyncio.run(run(location.url, progress))
    _out.print(
        f"{report.accounts:,} accounts, {report.transfers:,} transfers, {report.entries:,} entries", highlight=False
    )
    if report.seal is not None:
        _out.print(f"the seal of the ledger is {report.seal}", highlight=False)
    for fault, findings in report.faults.items():
        _err.print(f"{fault}:", style="bold red")
        for finding in findings:
            _err.print(f"  {finding}", highlight=False)
    if report.faults:
        raise typer.Exit(1)
    _out.print("no faults found", highlight=False)


@app.command("create-demo")
def create_demo_command(
    users: Annotated[int, typer.Option(min=1, help="The number of users. Each has ten orders and an account")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed creates the same data")] = 1,
) -> None:
    """Create users, orders, accounts and transfers with random data."""
    from shop import migrations
    from shop.demo import create_demo
    from shop.postgres import open_owner_database, open_running_location, report_location
    from shop.settings import Settings

    settings = Settings()
    report_location(settings)

    async def run(url: str, progress: Progress) -> int:
        task = progress.add_task("users", total=users)
        async with open_owner_database(url, settings, application_name="shop create-demo") as database:
            return await create_demo(database, users=users, seed=seed, advance=lambda n: progress.advance(task, n))

    with open_running_location(settings) as location:
        migrations.upgrade(location.url)
        with progress_bar() as progress:
            created = asyncio.run(run(location.url, progress))
    _out.print(f"{created:,} users created, {users - created:,} existed already", highlight=False)
    _out.print(f"database: {location.where}", highlight=False)


@app.command("create-login")
def create_login_command() -> None:
    """Create the roles of the service on an external server, and set the password of its login to that of
    SHOP_DATABASE_URL. Run it again to change the password."""
    from shop.postgres import MissingUrl, open_location, report_location
    from shop.roles import SERVICE_LOGIN
    from shop.service_login import create_login
    from shop.settings import Settings

    settings = Settings()
    report_location(settings)
    if settings.database_url is None:
        raise MissingUrl(
            f"SHOP_DATABASE_URL isn't set: it must be a URL that logs in as {SERVICE_LOGIN}, with the new password. "
            "The embedded server needs no password"
        )
    with open_location(settings) as location:
        asyncio.run(create_login(location.url, settings.database_url, settings))
    _out.print(f"the service can log in as {SERVICE_LOGIN}", highlight=False)


def progress_bar() -> Progress:
    """A progress bar with elapsed and remaining time, on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_err,
    )


def main() -> None:
    """Run the command."""
    app()
