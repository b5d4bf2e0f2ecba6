"""The errors of PostgreSQL and of the driver. The error tree is at the top of `howdah.errors`."""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy import exc as sa

from howdah._base_errors import HowdahError, OutcomeUnknown, Unavailable
from howdah._driver_errors import describe_closing_timeout, message_field, rejected_settings, root_error
from howdah._rejected_values import RejectedValue


class DatabaseError(HowdahError, sa.DBAPIError):
    """PostgreSQL rejected a statement, or the driver refused to send it.

    `sqlstate` is None if PostgreSQL sent no error: the driver rejected a value, or the connection broke. `constraint`,
    `table` and `column` are the names in PostgreSQL's error, or None. `reason` is the DETAIL line of that error. It may
    contain values of the row, so don't show it to clients. `row_index` is the position in the input, from 0, of the row
    that made a bulk write fail.

    The error's text contains no values of the statement, unless the engine has `hide_parameters=False`. The text of the
    driver's error, which is its `__cause__`, may contain them. A log of the traceback contains that text.
    """

    row_index: int | None = None

    def __init__(self, statement: str | None, params: Any, orig: BaseException, *options: Any, **named: Any) -> None:
        super().__init__(statement, params, orig, *options, **named)
        self.sqlstate = message_field(orig, "sqlstate") if message_field(orig, "severity") else None
        self.constraint = message_field(orig, "constraint_name")
        self.table = message_field(orig, "table_name")
        self.column = message_field(orig, "column_name")
        self.reason = message_field(orig, "detail")
        self.args = (self._describe(orig),)

    def _describe(self, orig: BaseException) -> str:
        error = root_error(orig) or orig
        code = f"{type(error).__name__}, {self.sqlstate}" if self.sqlstate else type(error).__name__
        for each in (error, error.__cause__):  # the error of a codec is the cause of the driver's error
            if isinstance(each, RejectedValue):
                return str(each)
        if self.hide_parameters and isinstance(self, InvalidValue) and not isinstance(self, TooLong):
            return f"({code}) a value was rejected; it isn't shown because of hide_parameters=True"
        # only the first argument: str() would add the DETAIL line
        text = f"({code}) {error.args[0] if isinstance(error, asyncpg.PostgresError) and error.args else error}"
        explanation = rejected_settings(error)
        return text if explanation is None else f"{text}: {explanation}"

    def __reduce__(self) -> tuple[Any, ...]:
        reduced = super().__reduce__()
        assert isinstance(reduced, tuple)
        return (*reduced[:2], {**self.__dict__, "args": self.args})


class ConnectionFailed(Unavailable, DatabaseError, sa.OperationalError):
    """No connection could be opened. Nothing was sent.

    The server can't be reached, doesn't answer within `connect_timeout`, rejects the login, or has too many clients.
    """


class ConnectionLost(OutcomeUnknown, DatabaseError, sa.OperationalError, sa.InterfaceError):
    """The connection broke while it was in use. If that was in COMMIT, the outcome is unknown.

    Without COMMIT the transaction was rolled back. An autocommit statement commits itself.

    If a timeout of the server closed the connection, the message names the timeout. If no statement was running, the
    message names `idle_in_transaction_timeout` only as a likely cause, because the driver doesn't keep the server's
    message.
    """

    def _describe(self, orig: BaseException) -> str:
        cause = describe_closing_timeout(orig)
        return super()._describe(orig) + (f": {cause}" if cause else "")


class CompletionUnknown(OutcomeUnknown, DatabaseError, sa.OperationalError):
    """The server doesn't know whether the statement or the transaction was completed.

    PostgreSQL itself doesn't raise it. Distributed databases do, if a node failed during the commit.
    """


class LockTimeout(Unavailable, DatabaseError, sa.OperationalError):
    """A lock wasn't released within `lock_timeout`, or immediately with NOWAIT."""


class StatementTimeout(Unavailable, DatabaseError, sa.OperationalError):
    """The statement took longer than `statement_timeout`, or an administrator cancelled it."""


class ObjectInUse(Unavailable, DatabaseError, sa.OperationalError):
    """Another session uses the database, table or replication slot that was to be changed or dropped."""


class OutOfResources(Unavailable, DatabaseError, sa.OperationalError):
    """The server has no disk space, memory, file handles or transaction ids left. The statement was rolled back.

    The service recovers as soon as the operator has freed the resource. `sqlstate` says which one it is: 53100 means
    the disk.
    """


class SystemFailure(Unavailable, DatabaseError, sa.OperationalError):
    """The server couldn't read or write a file, or its configuration is wrong. An operator must repair it."""


class IntegrityViolation(DatabaseError, sa.IntegrityError):
    """A constraint rejected a row. `constraint` is its name."""


class UniqueViolation(IntegrityViolation):
    """Another row has the same values in the columns of a primary key or a UNIQUE constraint."""


class ForeignKeyViolation(IntegrityViolation):
    """The row refers to a row that doesn't exist, or other rows still refer to the row that was to be deleted."""


class CheckViolation(IntegrityViolation):
    """A CHECK constraint, or the WITH CHECK OPTION of a view, is false for the row."""


class NotNullViolation(IntegrityViolation):
    """`column` must not be NULL."""


class ExclusionViolation(IntegrityViolation):
    """Another row conflicts with this row under an EXCLUDE constraint."""


class InvalidValue(DatabaseError, sa.DataError):
    """A value doesn't fit its column or function. PostgreSQL, the driver or the column's type rejected it."""


class OutOfRange(InvalidValue):
    """A number or a time is outside the range of its type."""


class TooLong(InvalidValue):
    """A text is longer than its column allows."""


class InvalidText(InvalidValue):
    """A text isn't a value of its type (a UUID, an enum, a date), or has a character that can't be stored (NUL)."""


class LimitExceeded(InvalidValue):
    """A value or a row is too large, or nested too deeply, for PostgreSQL or for an index."""


class TransactionConflict(DatabaseError, sa.OperationalError):
    """PostgreSQL rolled the transaction back because of a concurrent one. Run the whole transaction again.

    `run_transaction` does so.
    """


class SerializationFailure(TransactionConflict):
    """The transaction's snapshot isn't consistent with changes that a concurrent transaction has committed."""


class DeadlockDetected(TransactionConflict):
    """Two transactions waited for each other. PostgreSQL chose this one to be rolled back."""


class SchemaChanged(TransactionConflict, sa.NotSupportedError):
    """A prepared statement can't be used any more. The next attempt prepares it again.

    A table was altered after the connection had prepared the statement, or somebody has sent `DEALLOCATE ALL` or
    `DISCARD ALL` on the connection (26000).
    """


class InvalidStatement(DatabaseError, sa.ProgrammingError):
    """The statement is wrong: its syntax, a name that doesn't exist, or a right that the role doesn't have.

    It is also raised if the transaction, a cursor or an object is in a state that doesn't allow the statement, for
    example a materialized view without data.
    """


class PolicyViolation(InvalidStatement):
    """A row-level-security policy doesn't allow this row to be written.

    PostgreSQL also raises it if an upsert finds a row that the policies hide. Rows that a policy hides from an UPDATE
    or a DELETE raise no error: they aren't found. A missing GRANT has the same SQLSTATE, 42501, and is an
    `InvalidStatement`. PostgreSQL's error names the routine that raised it, which tells the two apart.
    """


class ReadOnly(DatabaseError, sa.InternalError):
    """A write was sent in a read-only transaction, or to a standby."""


class ServerFault(DatabaseError, sa.InternalError):
    """PostgreSQL found an internal error, or damaged data."""
