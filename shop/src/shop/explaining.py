"""Errors that an operator can correct are reported in one line, without a traceback."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

if TYPE_CHECKING:
    from howdah import HowdahError


# Names instead of classes, because `shop --help` imports none of these modules.
_CORRECTABLE: Final = {
    "CannotListen": "howdah.serving.running",
    "CannotServe": "shop.service_login",
    "CommandError": "alembic.util.exc",
    "HowdahError": "howdah.errors",
    "MissingMailServer": "shop.settings",
    "MissingSecret": "shop.keyrings",
    "MissingUrl": "shop.postgres",
    "OtherServerRuns": "shop.postgres",
    "SchemaMismatch": "shop.ledger.schema",
    "UnreadableFile": "shop.importing.reading",
    "UnwritableFile": "shop.importing.rejects",
    "ValidationError": "pydantic_core",
    "WrongPassword": "shop.service_login",
}

_err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


class ExplainingGroup(TyperGroup):
    """Commands that report correctable errors in one line on standard error, with exit code 1.

    Other errors are bugs, and have a traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except correctable_errors() as error:
            _err.print(explain(error), style="bold red")
            raise typer.Exit(1) from error


def correctable_errors() -> tuple[type[Exception], ...]:
    """The classes of correctable errors that are loaded. An error of another class can't have been raised."""
    loaded = ((name, sys.modules[module]) for name, module in _CORRECTABLE.items() if module in sys.modules)
    return tuple(getattr(module, name) for name, module in loaded)


def explain(error: Exception) -> str:
    """The message of one of `correctable_errors()` in one line, without the texts that SQLAlchemy and Pydantic add.

    An invalid setting is named by its environment variable. Its value is not shown, because a URL may contain a
    password.
    """
    from pydantic import ValidationError

    from howdah import (
        ConnectionFailed,
        ConnectionLost,
        DatabaseError,
        LockTimeout,
        OutcomeUnknown,
        PoolExhausted,
        Unavailable,
    )

    match error:
        case ValidationError():
            problem = "; ".join(
                f"SHOP_{'.'.join(map(str, each['loc'])).upper()}: {each['msg']}" if each["loc"] else each["msg"]
                for each in error.errors()
            )
        case LockTimeout():
            problem = "another transaction, such as an import, held a lock for too long: run the command again"
        case ConnectionLost():
            problem = (
                f"the connection to the database is lost ({_driver_message(error)}): run the command again to finish"
            )
        case ConnectionFailed() | PoolExhausted():
            problem = f"the database can't be reached: {_driver_message(error)}"
        case OutcomeUnknown():
            problem = f"the changes may have been written ({_driver_message(error)}): run the command again to finish"
        case Unavailable():
            problem = (
                f"the database can't do this now ({_driver_message(error)}): run the command again later to finish"
            )
        case DatabaseError():
            problem = (
                f"the database rejected a statement, and its transaction was rolled back: {_driver_message(error)}"
            )
        case OSError(strerror=str(reason)):
            problem = reason
        case _:
            problem = str(error)
    return " ".join(problem.split())


def _driver_message(error: HowdahError) -> str:
    """The first line of the driver's own message, without the text that SQLAlchemy adds."""
    original = getattr(error, "orig", None) or error
    lines = str(original.__cause__ or original).splitlines()
    return lines[0] if lines else type(original).__name__
