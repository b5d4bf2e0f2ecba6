"""Reading the driver's errors: fields of PostgreSQL's message, and the timeout that closed a connection."""

from __future__ import annotations

from typing import Any, Final

import asyncpg

DRIVER_ERRORS: Final[tuple[type[Exception], ...]] = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

_HOW_TO_AVOID: Final = "end each transaction before you wait for anything else, or raise that argument of Database"

_TIMEOUTS: Final = {
    "25P03": f"the transaction was idle for longer than idle_in_transaction_timeout: {_HOW_TO_AVOID}",
    "25P04": "the transaction took longer than PostgreSQL's setting transaction_timeout",
    "57P05": "the connection was idle for longer than PostgreSQL's setting idle_session_timeout",
}
_REFUSED_BY_DRIVER: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError)
_CLOSED_WHILE_IDLE: Final = (
    "it was closed while no statement was running. PostgreSQL does so if a transaction is idle for longer than "
    f"idle_in_transaction_timeout: {_HOW_TO_AVOID}. Its settings transaction_timeout and idle_session_timeout close "
    "connections too"
)


# The name of the attribute in which `mark_rejected_settings` adds the explanation to a driver's error.
_REJECTED_SETTINGS: Final = "howdah_rejected_settings"
# The classes of SQLSTATEs: an invalid or unknown setting, a role that doesn't exist, and a missing right.
CLASSES_OF_REJECTED_SETTINGS: Final = ("22", "42")


def driver_error(error: BaseException) -> BaseException | None:
    """asyncpg's own error, which SQLAlchemy's adapter wraps and keeps as the cause."""
    if isinstance(error, DRIVER_ERRORS):
        return error
    cause = error.__cause__
    return cause if isinstance(cause, DRIVER_ERRORS) else None


def root_error(error: BaseException) -> BaseException | None:
    """The error that PostgreSQL sent before it closed the connection, if it is known, otherwise the driver's error."""
    driver: Any = driver_error(error)
    if isinstance(driver, asyncpg.ConnectionDoesNotExistError) and isinstance(driver.__cause__, asyncpg.PostgresError):
        driver = driver.__cause__
    return driver  # type: ignore[no-any-return]  # asyncpg has no types


def mark_rejected_settings(error: BaseException, explanation: str) -> None:
    """If PostgreSQL has rejected a setting or a role, add the explanation to the text of the error.

    `error` was raised by a BEGIN with settings, or by opening a connection. If it has another cause, such as a
    shutdown, nothing is added.
    """
    root = root_error(error)
    if root is not None and (message_field(root, "sqlstate") or "")[:2] in CLASSES_OF_REJECTED_SETTINGS:
        setattr(root, _REJECTED_SETTINGS, explanation)


def rejected_settings(error: BaseException) -> str | None:
    """The explanation of `mark_rejected_settings`. None for other errors."""
    explanation = getattr(root_error(error), _REJECTED_SETTINGS, None)
    return explanation if isinstance(explanation, str) else None


def message_field(error: BaseException, name: str) -> str | None:
    """A field of PostgreSQL's message, such as `constraint_name`."""
    value = getattr(root_error(error), name, None)
    return value if isinstance(value, str) else None


def describe_closing_timeout(error: BaseException) -> str | None:
    """A text that names the timeout that closed the connection, or the likely one. None for other errors.

    The driver doesn't keep a message that the server sends while no statement runs.
    """
    driver = root_error(error)
    if driver is None:
        return None
    # If the connection is closed or being closed, the driver raises exactly these classes, and no subclass.
    if type(driver) in _REFUSED_BY_DRIVER or isinstance(driver.__cause__, BrokenPipeError):
        return _CLOSED_WHILE_IDLE
    return _TIMEOUTS.get(message_field(error, "sqlstate") or "")
