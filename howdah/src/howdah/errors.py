"""What can go wrong, as one tree.

HowdahError
├── NotFound                        no row has that key
├── UnknownAttribute                the model has no such attribute                      (also AttributeError)
├── ViewCompileError                    a JsonView's field can't be written by PostgreSQL    (also TypeError)
├── EmbeddedPostgresError           the embedded server can't be had                     (also RuntimeError)
├── InvalidCursor                   a page cursor is damaged or belongs to another listing   (also ValueError)
├── NestedTransaction               run_transaction inside the work of another one       (also InvalidRequestError)
├── StaleRow                        the row's version moved since it was read            (also StaleDataError)
├── Unavailable                     nothing was wrong with the request: try again later
│   ├── PoolExhausted               no connection became free in time                    (also sqlalchemy TimeoutError)
│   ├── QueueFull                  a Coalescer's queue is full
│   ├── BatchAbandoned               a shared trip was given up; what it was to write may be written
│   ├── CoalescerClosed             it takes no more items
│   ├── ConnectionFailed               the server can't be reached or refuses the login     (also DatabaseError)
│   └── ConnectionLost              the connection broke; in COMMIT the outcome is unknown   (also DatabaseError)
└── DatabaseError                   PostgreSQL refused a statement                       (also DBAPIError)
    ├── IntegrityViolation          (also sqlalchemy IntegrityError)
    │   ├── UniqueViolation         23505
    │   ├── ForeignKeyViolation     23503, 23001
    │   ├── CheckViolation          23514, 44000
    │   ├── NotNullViolation        23502
    │   └── ExclusionViolation      23P01
    ├── InvalidValue                class 22, and values refused before they were sent   (also DataError)
    │   ├── OutOfRange              22003, 22008, 22015
    │   ├── TooLong                 22001
    │   └── InvalidText             22P02, 22021, 22P05, 22007
    ├── TransactionConflict                    the transaction lost a race: run it again            (also OperationalError)
    │   ├── SerializationFailure    40001
    │   ├── DeadlockDetected        40P01
    │   └── SchemaChanged           a prepared statement's table was altered             (also NotSupportedError)
    ├── LockTimeout                 55P03: a lock wasn't free in time (or NOWAIT)
    ├── StatementTimeout            57014: statement_timeout, or cancelled by an administrator
    ├── InvalidStatement            classes 42 and 0A: syntax, missing tables or rights  (also ProgrammingError)
    ├── ReadOnly                    25006: a write in a read-only transaction or on a standby
    └── ServerFault                 class XX: PostgreSQL found itself in the wrong       (also InternalError)

Every `DatabaseError` is also the SQLAlchemy class that would have been raised in its place, so `except IntegrityError`
keeps working; it is raised `from` the driver's own error. Which class it becomes is decided by SQLSTATE
(<https://www.postgresql.org/docs/current/errcodes-appendix.html>) and by the type of what the driver raised, never by
the text of a message.

Errors carry facts. What HTTP status they become is decided in `howdah.fastapi`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import asyncpg
from sqlalchemy import Connection
from sqlalchemy import exc as sa
from sqlalchemy.orm import exc as orm

from howdah._driver_errors import DRIVER_ERRORS as DRIVER_ERRORS  # noqa: PLC0414  # for the modules that catch them
from howdah._driver_errors import driver_error, fact, timeout_that_closed, told_error
from howdah._lazy_loads import explain_missing_await
from howdah._sqlalchemy import raise_adapted, raise_handled

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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.keys)


class UnknownAttribute(HowdahError, AttributeError):
    """`model` has no mapped attribute of this name, or it can't be written; nothing was sent to the database."""

    def __init__(self, model: type[Any], attribute: str, known: Sequence[str]) -> None:
        self.model = model
        self.attribute = attribute
        self.known = list(known)
        super().__init__(f"{model.__name__} has no writable attribute {attribute!r}; it has {', '.join(known)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.attribute, self.known)


class ViewCompileError(HowdahError, TypeError):
    """A field of a `JsonView`, at this `path`, can't be written by PostgreSQL as its Pydantic model would."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} can't be rendered: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


class EmbeddedPostgresError(HowdahError, RuntimeError):
    """The embedded server can't be had; the message says why and what to do."""


class InvalidCursor(HowdahError, ValueError):
    """A page cursor that is damaged, of another version, or made by a listing with another order or other filters."""


class NestedTransaction(HowdahError, sa.InvalidRequestError):
    """`run_transaction` was called inside the work of another `run_transaction`.

    If the outer work is run again, the changes that the inner one committed would be made twice. Pass the outer session
    to the inner function instead.
    """


class StaleRow(HowdahError, orm.StaleDataError):
    """A row that was read has been changed or deleted by somebody else since: read it again and decide again.

    `keys` are those of the rows, where a bulk write found them stale; it has written none."""

    def __init__(self, message: str, keys: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.keys = list(keys)


class Unavailable(HowdahError):
    """The database can't serve now. Nothing is wrong with the request; trying later may succeed."""


class PoolExhausted(Unavailable, sa.TimeoutError):
    """Every connection of the pool was in use for the whole `pool_timeout`."""


class QueueFull(Unavailable):
    """A Coalescer's queue is full: as many tasks wait as `max_waiting` allows. Nothing was done."""


class BatchAbandoned(Unavailable):
    """A Coalescer's trip took longer than its `timeout`, or ended with its event loop. The outcome is unknown."""


class CoalescerClosed(Unavailable):
    """A Coalescer takes no more items: it is closed, or closing. Nothing was done."""


class DatabaseError(HowdahError, sa.DBAPIError):
    """PostgreSQL refused a statement, or the driver refused to send it.

    `sqlstate` is None where PostgreSQL didn't say anything: the driver refused a value before it was sent, or the
    connection broke. `constraint`, `table` and `column` are what PostgreSQL names, None where it names nothing.
    `reason` is its DETAIL line, which may hold the row's values: not for the eyes of a client. `row_index` is the place
    in the input, from 0, of the row that a bulk write failed for.

    Unless the engine was made with `hide_parameters=False`, the error's text holds no value of the statement. That of
    the driver's error, its `__cause__`, may, and so may a log of the traceback.
    """

    row_index: int | None = None

    def __init__(self, statement: str | None, params: Any, orig: BaseException, *options: Any, **named: Any) -> None:
        super().__init__(statement, params, orig, *options, **named)
        self.sqlstate = fact(orig, "sqlstate") if fact(orig, "severity") else None
        self.constraint = fact(orig, "constraint_name")
        self.table = fact(orig, "table_name")
        self.column = fact(orig, "column_name")
        self.reason = fact(orig, "detail")
        self.args = (self._describe(orig),)

    def _describe(self, orig: BaseException) -> str:
        error = told_error(orig) or orig
        code = f"{type(error).__name__}, {self.sqlstate}" if self.sqlstate else type(error).__name__
        for refused in (error, error.__cause__):  # a codec's error is the cause of the driver's
            if isinstance(refused, RefusedValue):
                return str(refused)
        if self.hide_parameters and isinstance(self, InvalidValue) and not isinstance(self, TooLong):
            return f"({code}) a value was refused; which one is hidden due to hide_parameters=True"
        # its first argument alone: str() would add the DETAIL line
        return f"({code}) {error.args[0] if isinstance(error, asyncpg.PostgresError) and error.args else error}"

    def __reduce__(self) -> tuple[Any, ...]:
        made_of = super().__reduce__()
        assert isinstance(made_of, tuple)
        return (*made_of[:2], {**self.__dict__, "args": self.args})


class ConnectionFailed(Unavailable, DatabaseError, sa.OperationalError):
    """No connection could be made: refused, timed out, wrong password, no such database, too many clients."""


class ConnectionLost(Unavailable, DatabaseError, sa.OperationalError, sa.InterfaceError):
    """The connection broke while it was in use. If that was in COMMIT, the outcome is unknown.

    If a timeout of the server closed the connection, the message names the timeout. The driver doesn't keep a message
    that the server sends while no statement runs. `idle_in_transaction_timeout` is then only the likely cause.
    """

    def _describe(self, orig: BaseException) -> str:
        cause = timeout_that_closed(orig)
        return super()._describe(orig) + (f": {cause}" if cause else "")


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
    """A value can't be what its column or function needs: PostgreSQL, the driver or the column's type refused it."""


class OutOfRange(InvalidValue):
    """A number or a time beyond its type's range."""


class TooLong(InvalidValue):
    """A text beyond its column's length."""


class InvalidText(InvalidValue):
    """A text that can't be read as its type (a UUID, an enum's member, a date), or with characters that can't be
    stored (NUL)."""


class TransactionConflict(DatabaseError, sa.OperationalError):
    """The transaction lost against a concurrent one and was rolled back whole: run it again from the start."""


class SerializationFailure(TransactionConflict):
    """Its snapshot can't be kept consistent with what has been committed since."""


class DeadlockDetected(TransactionConflict):
    """Two transactions waited for each other; this one was chosen to give way."""


class SchemaChanged(TransactionConflict, sa.NotSupportedError):
    """A table was altered after the connection had prepared the statement, which is prepared anew next time."""


class LockTimeout(DatabaseError, sa.OperationalError):
    """A lock wasn't free within `lock_timeout`, or at once under NOWAIT."""


class StatementTimeout(DatabaseError, sa.OperationalError):
    """The statement ran for longer than `statement_timeout`, or an administrator cancelled it."""


class InvalidStatement(DatabaseError, sa.ProgrammingError):
    """The statement itself is wrong: its syntax, a name that doesn't exist, or a right that the role lacks."""


class ReadOnly(DatabaseError, sa.InternalError):
    """A write in a read-only transaction, or on a standby."""


class ServerFault(DatabaseError, sa.InternalError):
    """PostgreSQL found an error of its own, or damaged data."""


class RefusedValue(ValueError):
    """Raised by a column's type of this library; the text says what is wrong without showing the value. What a caller
    gets is an `InvalidValue` with this text."""


class RefusedTime(RefusedValue, OverflowError):
    """A time that couldn't be read back. The caller gets an `OutOfRange` with this text."""


class UnreadableTime(asyncpg.InterfaceError, RefusedTime):  # type: ignore[misc]  # asyncpg has no types
    """A time in the database that Python's type can't hold. It is raised inside the driver while a result is read."""


# A code first, then its class (the first two characters), then DatabaseError.
BY_SQLSTATE: Final[dict[str, type[DatabaseError]]] = {
    "08": ConnectionLost,
    "08001": ConnectionFailed,
    "08004": ConnectionFailed,
    "0A": InvalidStatement,
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
    "25P03": ConnectionLost,
    "25P04": ConnectionLost,
    "28": ConnectionFailed,
    "3D000": InvalidStatement,
    "3F000": InvalidStatement,
    "40001": SerializationFailure,
    "40P01": DeadlockDetected,
    "42": InvalidStatement,
    "44000": CheckViolation,
    "53300": ConnectionFailed,
    "55P03": LockTimeout,
    "57014": StatementTimeout,
    "57P01": ConnectionLost,
    "57P02": ConnectionLost,
    "57P03": ConnectionFailed,
    "57P04": ConnectionLost,
    "57P05": ConnectionLost,
    "XX": ServerFault,
}


def translate(context: ExceptionContext) -> DatabaseError | None:
    """The error to raise in place of SQLAlchemy's; a listener for the engine's `handle_error` event."""
    original = context.original_exception
    if isinstance(original, sa.MissingGreenlet):
        explain_missing_await(original)
        return None
    if not isinstance(original, Exception):  # a cancelled task stays a cancelled task
        return None
    cls = _class_for(original, context)
    if cls is None:
        return None
    if issubclass(cls, ConnectionLost) and not context.is_disconnect and context.connection is not None:
        # Told before the socket closed, or the driver's own bound ran out: this connection is of no use, others may be.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
    raised = context.sqlalchemy_exception
    return cls(
        raised.statement if raised else context.statement,
        raised.params if raised else None,
        original,
        hide_parameters=raised.hide_parameters if raised else True,
        connection_invalidated=context.is_disconnect,
        ismulti=raised.ismulti if raised else None,
    )


def raise_as_of_a_statement(connection: Connection, statement: str, error: Exception) -> NoReturn:
    """Raise what SQLAlchemy would, had it been it that sent the statement in which the driver met with this error."""
    adapted: Any = connection.connection.dbapi_connection
    try:
        raise_adapted(adapted, error)
    except Exception as translated:
        raise_handled(connection, translated, statement)


def _class_for(original: Exception, context: ExceptionContext) -> type[DatabaseError] | None:
    error = driver_error(original) or original
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return SchemaChanged
    if isinstance(error, RefusedValue) and isinstance(error, OverflowError):
        return OutOfRange
    if isinstance(error, asyncpg.DataError) and isinstance(error.__cause__, OverflowError):  # refused by the driver
        return OutOfRange
    if isinstance(error, asyncpg.DataError) and isinstance(error.__cause__, UnicodeError):
        return InvalidText
    if isinstance(error, asyncpg.ConnectionDoesNotExistError):
        return ConnectionLost
    sqlstate = fact(error, "sqlstate")
    if sqlstate is not None:
        return BY_SQLSTATE.get(sqlstate) or BY_SQLSTATE.get(sqlstate[:2]) or DatabaseError
    if context.is_disconnect or isinstance(error, OSError):
        return ConnectionLost
    if context.sqlalchemy_exception is not None and isinstance(error, ValueError | TypeError | LookupError):
        return InvalidValue  # refused by the column's type, while the parameters were made
    return None
