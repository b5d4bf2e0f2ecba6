"""What can go wrong, as one tree.

HowdahError
├── NotFound                        no row has that key
├── UnknownAttribute                the model has no such attribute                      (also AttributeError)
├── InvalidCursor                   a page cursor is damaged or belongs to another listing   (also ValueError)
├── NestedTransaction               a transaction was asked for inside a running one     (also InvalidRequestError)
├── StaleRow                        the row's version moved since it was read            (also StaleDataError)
├── Unavailable                     nothing was wrong with the request: try again later
│   ├── PoolExhausted               no connection became free in time                    (also sqlalchemy TimeoutError)
│   ├── CannotConnect               the server can't be reached or refuses the login     (also DatabaseError)
│   └── ConnectionLost              the connection broke; in COMMIT the outcome is unknown   (also DatabaseError)
└── DatabaseError                   PostgreSQL refused a statement                       (also DBAPIError)
    ├── IntegrityViolation          (also sqlalchemy IntegrityError)
    │   ├── UniqueViolation         23505
    │   ├── ForeignKeyViolation     23503, 23001
    │   ├── CheckViolation          23514, 44000
    │   ├── NotNullViolation        23502
    │   └── ExclusionViolation      23P01
    ├── InvalidValue                class 22, and values that the driver can't encode    (also DataError)
    │   ├── OutOfRange              22003, 22008, 22015
    │   ├── TooLong                 22001
    │   └── InvalidText             22P02, 22021, 22P05, 22007
    ├── Conflict                    the transaction lost a race: run it again
    │   ├── SerializationFailure    40001
    │   └── DeadlockDetected        40P01
    ├── LockTimeout                 55P03: a lock wasn't free in time (or NOWAIT)
    ├── StatementTimeout            57014: statement_timeout, or cancelled by an administrator
    ├── InvalidStatement            class 42: syntax, missing tables, missing rights     (also ProgrammingError)
    └── ReadOnly                    25006: a write in a read-only transaction or on a standby

Every `DatabaseError` is also the SQLAlchemy class that would have been raised in its place, so `except IntegrityError`
keeps working; it is raised `from` the driver's own error. Which class it becomes is decided by SQLSTATE alone
(<https://www.postgresql.org/docs/current/errcodes-appendix.html>), never by the text of a message.

Errors carry facts. What HTTP status they become is decided in `howdah.fastapi`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from sqlalchemy import exc as sa
from sqlalchemy.orm import exc as orm

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext


class HowdahError(Exception):
    """The root: everything that this library raises on purpose, except plain misuse (`TypeError`, `ValueError`)."""


class NotFound(HowdahError):
    """No row of `model` has these `keys`; all that were missing, in the order asked."""

    def __init__(self, model: type[Any], keys: Sequence[Any]) -> None:
        self.model = model
        self.keys = list(keys)
        shown = ", ".join(str(key) for key in self.keys[:5])
        more = f" and {len(self.keys) - 5} more" if len(self.keys) > 5 else ""
        super().__init__(f"no {model.__name__} with key {shown}{more}")


class UnknownAttribute(HowdahError, AttributeError):
    """`model` has no mapped attribute of this name, or it can't be written; nothing was sent to the database."""

    def __init__(self, model: type[Any], attribute: str, known: Sequence[str]) -> None:
        self.model = model
        self.attribute = attribute
        super().__init__(f"{model.__name__} has no writable attribute {attribute!r}; it has {', '.join(known)}")


class InvalidCursor(HowdahError, ValueError):
    """A page cursor that is damaged, of another version, or made by a listing with another order or other filters."""


class NestedTransaction(HowdahError, sa.InvalidRequestError):
    """`run_transaction` was called while this task had a transaction open: the inner one could commit alone, or wait
    for a lock that the outer one holds. Pass the open session down instead."""


class StaleRow(HowdahError, orm.StaleDataError):
    """A row that was read has been changed or deleted by somebody else since: read it again and decide again."""


class Unavailable(HowdahError):
    """The database can't serve now. Nothing is wrong with the request; trying later may succeed."""


class PoolExhausted(Unavailable, sa.TimeoutError):
    """Every connection of the pool was in use for the whole `pool_timeout`."""


class DatabaseError(HowdahError, sa.DBAPIError):
    """PostgreSQL refused a statement.

    `sqlstate` is None when the driver refused before anything was sent. `constraint`, `table` and `column` are what
    PostgreSQL names, None where it names nothing. `row_index` is the place in the input, from 0, of the row that a
    bulk write failed for.
    """

    row_index: int | None = None

    @property
    def sqlstate(self) -> str | None:
        return _fact(self.orig, "sqlstate")

    @property
    def constraint(self) -> str | None:
        return _fact(self.orig, "constraint_name")

    @property
    def table(self) -> str | None:
        return _fact(self.orig, "table_name")

    @property
    def column(self) -> str | None:
        return _fact(self.orig, "column_name")

    @property
    def reason(self) -> str | None:
        """PostgreSQL's DETAIL line. It may hold the row's values: not for the eyes of a client."""
        return _fact(self.orig, "detail")


class CannotConnect(Unavailable, DatabaseError, sa.OperationalError):
    """No connection could be made: refused, timed out, wrong password, no such database, too many clients."""


class ConnectionLost(Unavailable, DatabaseError, sa.OperationalError):
    """The connection broke while it was in use. If that was in COMMIT, the outcome is unknown."""


class IntegrityViolation(DatabaseError, sa.IntegrityError):
    """A constraint refused the row. `constraint` says which."""


class UniqueViolation(IntegrityViolation):
    """Another row has these values already."""


class ForeignKeyViolation(IntegrityViolation):
    """The row refers to one that doesn't exist, or others still refer to the one that was to go."""


class CheckViolation(IntegrityViolation):
    """A CHECK constraint is false for the row."""


class NotNullViolation(IntegrityViolation):
    """`column` must have a value."""


class ExclusionViolation(IntegrityViolation):
    """Another row conflicts under an EXCLUDE constraint."""


class InvalidValue(DatabaseError, sa.DataError):
    """A value can't be what its column or function needs."""


class OutOfRange(InvalidValue):
    """A number or a time beyond its type's range."""


class TooLong(InvalidValue):
    """A text beyond its column's length."""


class InvalidText(InvalidValue):
    """A text that can't be read as its type (a UUID, an enum's member, a date), or with characters that can't be
    stored (NUL)."""


class Conflict(DatabaseError, sa.OperationalError):
    """The transaction lost against a concurrent one and was rolled back whole: run it again from the start."""


class SerializationFailure(Conflict):
    """Its snapshot can't be kept consistent with what has been committed since."""


class DeadlockDetected(Conflict):
    """Two transactions waited for each other; this one was chosen to give way."""


class LockTimeout(DatabaseError, sa.OperationalError):
    """A lock wasn't free within `lock_timeout`, or at once under NOWAIT."""


class StatementTimeout(DatabaseError, sa.OperationalError):
    """The statement ran for longer than `statement_timeout`, or an administrator cancelled it."""


class InvalidStatement(DatabaseError, sa.ProgrammingError):
    """The statement itself is wrong: its syntax, a name that doesn't exist, or a right that the role lacks."""


class ReadOnly(DatabaseError, sa.InternalError):
    """A write in a read-only transaction, or on a standby."""


# A code first, then its class (the first two characters), then DatabaseError.
BY_SQLSTATE: Final[dict[str, type[DatabaseError]]] = {
    "08": ConnectionLost,
    "22": InvalidValue,
    "22001": TooLong,
    "22003": OutOfRange,
    "22007": InvalidText,
    "22008": OutOfRange,
    "22015": OutOfRange,
    "22021": InvalidText,
    "22P02": InvalidText,
    "22P05": InvalidText,
    "23": IntegrityViolation,
    "23001": ForeignKeyViolation,
    "23502": NotNullViolation,
    "23503": ForeignKeyViolation,
    "23505": UniqueViolation,
    "23514": CheckViolation,
    "23P01": ExclusionViolation,
    "25006": ReadOnly,
    "28": CannotConnect,
    "3D000": CannotConnect,
    "40001": SerializationFailure,
    "40P01": DeadlockDetected,
    "42": InvalidStatement,
    "44000": CheckViolation,
    "53300": CannotConnect,
    "55P03": LockTimeout,
    "57014": StatementTimeout,
    "57P01": ConnectionLost,
    "57P02": ConnectionLost,
    "57P03": CannotConnect,
    "57P04": ConnectionLost,
    "57P05": ConnectionLost,
}


def translate(context: ExceptionContext) -> DatabaseError | None:
    """The error to raise in place of SQLAlchemy's; a listener for the engine's `handle_error` event."""
    original = context.original_exception
    if not isinstance(original, Exception):  # a cancelled task stays a cancelled task
        return None
    cls = _class_for(original, is_disconnect=context.is_disconnect)
    if cls is None:
        return None
    if isinstance(original, TimeoutError):  # the driver's own bound: this connection is of no use, the others may be
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
    raised = context.sqlalchemy_exception
    known = raised if isinstance(raised, sa.DBAPIError) else None
    return cls(
        known.statement if known else context.statement,
        known.params if known else None,
        original,
        hide_parameters=known.hide_parameters if known else True,
        connection_invalidated=context.is_disconnect,
        ismulti=known.ismulti if known else None,
    )


def _class_for(error: BaseException, *, is_disconnect: bool) -> type[DatabaseError] | None:
    sqlstate = _fact(error, "sqlstate")
    if sqlstate is not None:
        return BY_SQLSTATE.get(sqlstate) or BY_SQLSTATE.get(sqlstate[:2]) or DatabaseError
    driver_error = _driver_error(error)
    if isinstance(driver_error, asyncpg.exceptions.DataError):  # refused while encoding, before anything was sent
        return OutOfRange if isinstance(driver_error.__cause__, OverflowError) else InvalidValue
    if is_disconnect or isinstance(error, OSError):
        return ConnectionLost
    return None


def _driver_error(error: BaseException | None) -> BaseException | None:
    """asyncpg's own error, which SQLAlchemy's adapter wraps and keeps as the cause."""
    if error is None or isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
        return error
    return error.__cause__


def _fact(error: BaseException | None, name: str) -> str | None:
    value = getattr(_driver_error(error), name, None)
    return value if isinstance(value, str) else None
