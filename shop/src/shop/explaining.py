"""What an operator can mend, in a line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

if TYPE_CHECKING:
    from howdah import HowdahError


class CannotListen(Exception):
    """The address or the port can't be had."""


# By their modules, because `shop --help` imports none of these.
_MENDABLE: Final = {
    "CommandError": "alembic.util.exc",
    "HowdahError": "howdah.errors",
    "SchemaMismatch": "shop.ledger.schema",
    "UnreadableFile": "shop.importing.reading",
    "UnwritableFile": "shop.importing.rejects",
    "ValidationError": "pydantic_core",
}

_err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


class ExplainingGroup(TyperGroup):
    """Commands whose mendable errors are a line on standard error and exit code 1; others stay tracebacks."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except mendable_errors() as error:
            _err.print(in_a_line(error), style="bold red")
            raise typer.Exit(1) from error


def mendable_errors() -> tuple[type[Exception], ...]:
    """The errors that are explained in a line. A module that isn't loaded has raised none."""
    loaded = ((name, sys.modules[module]) for name, module in _MENDABLE.items() if module in sys.modules)
    return CannotListen, *(getattr(module, name) for name, module in loaded)


def in_a_line(error: Exception) -> str:
    """The message of one of `mendable_errors()`, without what the libraries put around it. Settings are named as the
    variables that they are; their values stay out, for one may be a password."""
    from pydantic import ValidationError

    from howdah import ConnectionLost, DatabaseError, LockTimeout, Unavailable

    match error:
        case ValidationError():
            faults = (f"SHOP_{'.'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in error.errors())
            problem = "; ".join(faults)
        case LockTimeout():
            problem = "somebody holds a lock for too long, maybe another import; run it again to finish"
        case ConnectionLost():
            problem = f"the connection to the database is lost ({_driver_says(error)}); run it again to finish"
        case Unavailable():
            problem = f"the database can't be reached: {_driver_says(error)}"
        case DatabaseError():
            problem = f"the database refuses: {_driver_says(error)}; nothing is half-done"
        case _:
            problem = str(error)
    return " ".join(problem.split())


def _driver_says(error: HowdahError) -> str:
    """The message of the driver's own error, without what SQLAlchemy puts around it."""
    original = getattr(error, "orig", None) or error
    lines = str(original.__cause__ or original).splitlines()
    return lines[0] if lines else type(original).__name__
