"""The translation of the driver's errors into the errors of `howdah.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

import asyncpg
from sqlalchemy import Connection
from sqlalchemy import exc as sa

from howdah._driver_errors import driver_error, message_field, rejected_settings
from howdah._lazy_loads import explain_missing_await
from howdah._rejected_values import RejectedValue
from howdah._sqlalchemy import raise_adapted, raise_handled
from howdah.errors import (
    CheckViolation,
    CompletionUnknown,
    ConnectionFailed,
    ConnectionLost,
    DatabaseError,
    DeadlockDetected,
    ExclusionViolation,
    ForeignKeyViolation,
    IntegrityViolation,
    InvalidStatement,
    InvalidText,
    InvalidValue,
    LimitExceeded,
    LockTimeout,
    NotNullViolation,
    ObjectInUse,
    OutOfRange,
    OutOfResources,
    PolicyViolation,
    ReadOnly,
    SchemaChanged,
    SerializationFailure,
    ServerFault,
    StatementTimeout,
    SystemFailure,
    TooLong,
    TransactionConflict,
    UniqueViolation,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext

# The class for a SQLSTATE: by the whole code, otherwise by its first two characters, otherwise DatabaseError. Each
# class of codes is assigned deliberately. Either a later retry may help (`Unavailable`, `TransactionConflict`), or a
# value or a row is at fault, or the code of the application is (`InvalidStatement`). A test checks all codes that the
# driver knows.
BY_SQLSTATE: Final[dict[str, type[DatabaseError]]] = {
    "03": InvalidStatement,
    "08": ConnectionLost,
    "08001": ConnectionFailed,
    "08004": ConnectionFailed,
    "08007": CompletionUnknown,
    "09": InvalidStatement,
    "0A": InvalidStatement,
    "0B": InvalidStatement,
    "0F": InvalidStatement,
    "0L": InvalidStatement,
    "0P": InvalidStatement,
    "0Z": InvalidStatement,
    "10": InvalidValue,
    "20": InvalidStatement,
    "21": InvalidStatement,
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
    "24": InvalidStatement,
    "25": InvalidStatement,
    "25006": ReadOnly,
    "25P03": ConnectionLost,
    "25P04": ConnectionLost,
    "26": SchemaChanged,
    "27": InvalidStatement,
    "28": ConnectionFailed,
    "2B": InvalidStatement,
    "2D": InvalidStatement,
    "2F": InvalidStatement,
    "34": InvalidStatement,
    "38": InvalidStatement,
    "39": InvalidStatement,
    "3B": InvalidStatement,
    "3D": InvalidStatement,
    "3F": InvalidStatement,
    "40": TransactionConflict,
    "40001": SerializationFailure,
    "40002": IntegrityViolation,  # a retry would violate the constraint again
    "40003": CompletionUnknown,
    "40P01": DeadlockDetected,
    "42": InvalidStatement,
    "44": CheckViolation,
    "53": OutOfResources,
    "53300": ConnectionFailed,
    "54": LimitExceeded,
    "54011": InvalidStatement,  # too many columns
    "54023": InvalidStatement,  # too many arguments
    "55": InvalidStatement,
    "55006": ObjectInUse,
    "55P03": LockTimeout,
    "57": ConnectionLost,
    "57000": StatementTimeout,
    "57014": StatementTimeout,
    "57P03": ConnectionFailed,
    "58": SystemFailure,
    "72": TransactionConflict,  # snapshot too old: a retry has a new snapshot
    "F0": SystemFailure,
    "HV": InvalidStatement,  # a foreign table is defined wrongly
    "HV001": OutOfResources,
    "HV014": OutOfResources,
    "HV00N": ConnectionFailed,  # the foreign server can't be reached
    "P0": DatabaseError,  # raised by a function of the application, which decides its meaning
    "XX": ServerFault,  # waiting doesn't repair damage, so a client must not repeat the request
}

# A row that violates a policy and a missing GRANT have this SQLSTATE. This routine of PostgreSQL (15 to 18) checks each
# row that is written, and raises it for policies only. The name of the routine is a field of the error.
_NO_RIGHTS: Final = "42501"
_CHECK_OF_POLICIES: Final = "ExecWithCheckOptions"
# A file system that became read-only has the SQLSTATE of a missing right, too. These source files of PostgreSQL access
# tables, temporary files and the log.
_STORAGE: Final = frozenset({"md.c", "smgr.c", "fd.c", "buffile.c", "slru.c", "xlog.c", "copydir.c"})
# A database without transaction ids accepts no writes until it is vacuumed. It has the SQLSTATE of a value that is too
# large (`LimitExceeded`).
_TOO_LARGE: Final = "54000"
_ASSIGNMENT_OF_IDS: Final = frozenset({"GetNewTransactionId", "GetNewMultiXactId"})


def translate(context: ExceptionContext) -> DatabaseError | None:
    """The error to raise instead of SQLAlchemy's. Call it in a listener for the engine's event `handle_error`."""
    original = context.original_exception
    if isinstance(original, sa.MissingGreenlet):
        explain_missing_await(original)
        return None
    if not isinstance(original, Exception):  # a CancelledError must stay one
        return None
    cls = _class_for(original, context)
    if cls is None:
        return None
    if issubclass(cls, ConnectionLost) and not context.is_disconnect and context.connection is not None:
        # The server announced the end of this connection, or the driver's own timeout expired. The pool must discard
        # this connection, but the others may still work.
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


def _is_closed(error: BaseException, context: ExceptionContext) -> bool:
    """Whether the driver refused a call because its connection is closed. SQLAlchemy doesn't wrap that of a fetch."""
    if not isinstance(error, asyncpg.InterfaceError) or context.connection is None or context.connection.invalidated:
        return False
    driver: Any = context.connection.connection.driver_connection
    return driver is not None and bool(driver.is_closed())


def raise_for_statement(connection: Connection, statement: str, error: Exception) -> NoReturn:
    """Raise the driver's error as SQLAlchemy would raise it. The statement was sent without SQLAlchemy."""
    adapted: Any = connection.connection.dbapi_connection
    try:
        raise_adapted(adapted, error)
    except Exception as translated:
        raise_handled(connection, translated, statement)


def _class_for(original: Exception, context: ExceptionContext) -> type[DatabaseError] | None:
    """The class of the error to raise; None if it isn't an error of the database."""
    error = driver_error(original) or original
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return SchemaChanged
    if isinstance(error, RejectedValue) and isinstance(error, OverflowError):
        return OutOfRange
    if isinstance(error, asyncpg.DataError) and isinstance(error.__cause__, OverflowError):  # raised by the driver
        return OutOfRange
    if isinstance(error, asyncpg.DataError) and isinstance(error.__cause__, UnicodeError):
        return InvalidText
    # The driver can't go on after an unexpected message. Most often this is the server's announcement that it closes an
    # idle connection, while its end hasn't been read yet.
    if isinstance(error, asyncpg.ConnectionDoesNotExistError | asyncpg.InternalClientError):
        return ConnectionLost
    if rejected_settings(error):  # most have the SQLSTATE of an invalid value, which no client has sent
        return InvalidStatement
    sqlstate = message_field(error, "sqlstate")
    if sqlstate == _NO_RIGHTS and message_field(error, "server_source_function") == _CHECK_OF_POLICIES:
        return PolicyViolation
    if sqlstate == _NO_RIGHTS and message_field(error, "server_source_filename") in _STORAGE:
        return SystemFailure
    if sqlstate == _TOO_LARGE and message_field(error, "server_source_function") in _ASSIGNMENT_OF_IDS:
        return OutOfResources
    if sqlstate is not None:
        return BY_SQLSTATE.get(sqlstate) or BY_SQLSTATE.get(sqlstate[:2]) or DatabaseError
    if context.is_disconnect or isinstance(error, OSError) or _is_closed(error, context):
        return ConnectionLost
    if context.sqlalchemy_exception is not None and isinstance(error, ValueError | TypeError | LookupError):
        return InvalidValue  # rejected by the column's type, before sending
    return None
