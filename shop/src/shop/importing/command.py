"""`shop import`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from shop.importing.options import TimeFormat

if TYPE_CHECKING:
    from shop.importing.loading import Loaded
    from shop.importing.retail import RetailFile
    from shop.settings import Settings

commands = typer.Typer(help="Import data of other systems.", no_args_is_help=True)

_out = Console(soft_wrap=True, markup=False, highlight=False)
_err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


@commands.command("retail")
def import_retail(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet or CSV")],
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Write the rejected lines and the reasons to this CSV file. It is also written if no line is rejected",
            show_default="FILE.rejects.csv in the current directory",
        ),
    ] = None,
    times: Annotated[
        TimeFormat | None,
        typer.Option(help="The format of the file's times", show_default="the only format that all lines fit"),
    ] = None,
) -> None:
    """Create users from the customers of a retail file, and orders from its invoices.

    Users and orders that exist already are not changed. After an interrupted import, run the command again: it adds the
    rest.
    """
    try:
        _import(file, Path(f"{file.name}.rejects.csv") if rejects is None else rejects, times)
    except KeyboardInterrupt:
        _err.print("interrupted: run the command again to finish", style="bold red")
        raise typer.Exit(130) from None


def _import(file: Path, rejects: Path, times: TimeFormat | None) -> None:
    """Read the file, write the rejected lines, and load the rest into the database."""
    # Imported here, because `shop --help` imports this module. Polars and Alembic take half a second.
    from shop import migrations
    from shop.importing.report import report
    from shop.importing.retail import read_retail
    from shop.memory import freeze_loaded_objects
    from shop.postgres import open_running_location, report_location
    from shop.settings import Settings

    settings = Settings()
    with _progress_bar() as progress:
        task = progress.add_task(f"reading {file.name}", total=None)
        retail = read_retail(file, times)
        retail.write_rejects(rejects)
        progress.update(task, description="preparing the database")
        report_location(settings, _err.print)  # not directly on standard error, which has the progress bar
        with open_running_location(settings) as location:
            asyncio.run(_check_connection(location.url, settings))
            migrations.upgrade(location.url)
            progress.remove_task(task)
            freeze_loaded_objects()
            started = perf_counter()
            loaded = asyncio.run(_load(location.url, settings, retail, progress))
            seconds = perf_counter() - started
    lines = _accepted_lines(retail)
    _err.print(f"{lines:,} lines in {seconds:,.1f} s, {lines / seconds:,.0f} lines/s")
    _out.print(report(retail.summary, loaded, rejects))


async def _check_connection(url: str, settings: Settings) -> None:
    """Raise `Unavailable` if the database can't be reached. Alembic would show a traceback."""
    from shop.postgres import open_owner_database

    async with open_owner_database(url, settings, application_name="shop import") as database:
        await database.ping()


async def _load(url: str, settings: Settings, retail: RetailFile, progress: Progress) -> Loaded:
    from shop.importing.loading import load
    from shop.postgres import open_owner_database

    task = progress.add_task("importing lines", total=_accepted_lines(retail))
    async with open_owner_database(url, settings, application_name="shop import") as database:
        progress.advance(task, 0)  # starts the measurement of the rate
        return await load(database, retail, advance=lambda lines: progress.advance(task, lines))


def _accepted_lines(retail: RetailFile) -> int:
    return retail.summary.sale_lines + retail.summary.cancellation_lines


def _progress_bar() -> Progress:
    """A progress bar with the rate and the elapsed and remaining time, on standard error if that is a terminal.

    It disappears at the end, so that an error message is the only output.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_err,
        transient=True,
        disable=not _err.is_terminal,
    )


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")
