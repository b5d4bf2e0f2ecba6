"""All errors of this library, as one tree.

HowdahError
├── NotFound                        no row has this key
├── MultipleRowsFound               several rows match where one was expected           (also MultipleResultsFound)
├── UnknownAttribute                the model has no such attribute                     (also AttributeError)
├── ViewCompileError                PostgreSQL can't write a field of a JsonView        (also TypeError)
├── EmbeddedPostgresError           the embedded server can't be used                   (also RuntimeError)
├── InvalidUrl                      the URL of a database has an unknown or wrong part  (also ValueError)
├── InvalidCursor                   a page cursor is damaged, or of another list query  (also ValueError)
├── NestedTransaction               run_transaction inside the work of another one      (also InvalidRequestError)
├── StaleRow                        the row was changed or deleted since it was read    (also StaleDataError)
├── IdempotencyKeyReused            an idempotency key was used for another request
├── MigrationBlocked                another process migrates, or a lock isn't released  (also RuntimeError)
├── PoolsTooLarge                   the processes could open too many connections       (also RuntimeError)
├── Unavailable                     the request is correct: try again later
│   ├── PoolExhausted               no connection was released in time                  (also sqlalchemy TimeoutError)
│   ├── QueueFull                   the queue of a Coalescer is full
│   ├── QueueTimeout                the item waited too long in the queue; not sent
│   ├── CoalescerClosed             a Coalescer is closed, or closing
│   ├── IdempotencyKeyInUse         the first request with this key is still running
│   ├── ConnectionFailed            the server can't be reached, or rejects the login   (also DatabaseError)
│   ├── LockTimeout                 55P03: a lock wasn't released in time (or NOWAIT)   (also DatabaseError)
│   ├── StatementTimeout            57014, 57000: too slow, or cancelled by an admin    (also DatabaseError)
│   ├── ObjectInUse                 55006: another session uses the object              (also DatabaseError)
│   ├── OutOfResources              class 53: disk full, out of memory, …               (also DatabaseError)
│   ├── SystemFailure               classes 58 and F0: a fault of the disk or the setup (also DatabaseError)
│   └── OutcomeUnknown              the changes may have been written
│       ├── ResultTimeout           the batch was still running when the wait ended
│       ├── BatchAbandoned          a batch was cancelled
│       ├── ConnectionLost          the connection broke while it was in use            (also DatabaseError)
│       └── CompletionUnknown       40003, 08007: the server itself doesn't know        (also DatabaseError)
└── DatabaseError                   PostgreSQL rejected a statement                     (also DBAPIError)
    ├── IntegrityViolation          class 23                                            (also IntegrityError)
    │   ├── UniqueViolation         23505
    │   ├── ForeignKeyViolation     23503, 23001
    │   ├── CheckViolation          23514, class 44
    │   ├── NotNullViolation        23502
    │   └── ExclusionViolation      23P01
    ├── InvalidValue                class 22, and values rejected before sending        (also DataError)
    │   ├── OutOfRange              22003, 22008, 22015
    │   ├── TooLong                 22001
    │   ├── InvalidText             22P02, 22021, 22P05, 22007
    │   └── LimitExceeded           54000, 54001: too large or too deep for PostgreSQL
    ├── TransactionConflict         40000, 72000: a conflict; run the transaction again (also OperationalError)
    │   ├── SerializationFailure    40001
    │   ├── DeadlockDetected        40P01
    │   └── SchemaChanged           26000, or the table of a statement was altered      (also NotSupportedError)
    ├── InvalidStatement            42, 0A, 25, …: syntax, missing tables or rights     (also ProgrammingError)
    │   └── PolicyViolation         a row-level-security policy rejects the row
    ├── ReadOnly                    25006: a write, in a read-only transaction          (also InternalError)
    └── ServerFault                 class XX: an internal error of PostgreSQL           (also InternalError)

If `Unavailable` is raised, nothing was changed, unless it is an `OutcomeUnknown`.

A `DatabaseError` is also the SQLAlchemy error that would have been raised without this library. So
`except IntegrityError` still works. Its `__cause__` is the driver's error. `howdah._error_translation` chooses the
class by SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>) and by the type of the driver's
error, never by the text of a message.

`howdah.fastapi` decides which HTTP status an error becomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
from sqlalchemy import exc as sa
from sqlalchemy.orm import exc as orm

from howdah._driver_errors import describe_closing_timeout, message_field, rejected_settings, root_error
from howdah._rejected_values import RejectedValue


class HowdahError(Exception):
    """The base class of all errors of this library.

    Wrong arguments of a call raise Python's `TypeError` or `ValueError` instead.
    """


class NotFound(HowdahError):
    """No row of `model` has these `keys`.

    `keys` are all missing keys, in the order of the request. If the row was searched by attributes, as by `get_one_by`,
    the only key is a mapping of names to values. The text has only the names.
    """

    def __init__(self, model: type[Any], keys: Sequence[Any]) -> None:
        self.model = model
        self.keys = list(keys)
        shown = ", ".join(str(key) for key in self.keys[:5])
        more = f" and {len(self.keys) - 5} more" if len(self.keys) > 5 else ""
        if len(self.keys) == 1 and isinstance(self.keys[0], Mapping):
            super().__init__(f"no {model.__name__} with these values of {', '.join(self.keys[0])}")
        else:
            super().__init__(f"no {model.__name__} with key {shown}{more}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.keys)


class MultipleRowsFound(HowdahError, sa.MultipleResultsFound):
    """Several rows of `model` have the same values of `attributes`, where at most one was expected.

    Name more attributes, so that a unique constraint covers them. To read several rows, use `list` with a `select`.
    """

    def __init__(self, model: type[Any], attributes: Sequence[str]) -> None:
        self.model = model
        self.attributes = list(attributes)
        super().__init__(
            f"several {model.__name__} rows have these values of {', '.join(attributes)}: name attributes that a "
            "unique constraint covers, or read the rows with `list`"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.attributes)


class UnknownAttribute(HowdahError, AttributeError):
    """`model` has no mapped attribute of this name, or the call can't use the attribute. Nothing was sent.

    `known` are the names that can be used.
    """

    def __init__(self, model: type[Any], attribute: str, known: Sequence[str]) -> None:
        self.model = model
        self.attribute = attribute
        self.known = list(known)
        super().__init__(
            f"{model.__name__} has no attribute {attribute!r} that can be used here; it has {', '.join(known)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.attribute, self.known)


class ViewCompileError(HowdahError, TypeError):
    """PostgreSQL can't write a field of a `JsonView` in the same form as its Pydantic model.

    It is raised when the view is created. `path` names the field, and `reason` says what is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} can't be rendered: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


class InvalidUrl(HowdahError, ValueError):
    """The URL of a database has an unknown or invalid part. The text names it, and never contains the password."""


class EmbeddedPostgresError(HowdahError, RuntimeError):
    """The embedded server can't be started, stopped or used. The message says why, and what to do."""


class MigrationBlocked(HowdahError, RuntimeError):
    """Another process migrates the database, or holds a lock that a migration needs, and the wait was too long.

    It is also raised if a pooler is between this process and the server. The message says whether the migration was
    rolled back or, if it has an `autocommit_block`, committed in part.
    """


class PoolsTooLarge(HowdahError, RuntimeError):
    """The pools of all processes could open more connections than PostgreSQL accepts.

    The message says what to change. See `check_connection_limits`.
    """


class InvalidCursor(HowdahError, ValueError):
    """A page cursor is damaged, has another version, or was made for another list query.

    A cursor is bound to the order and the filters of its list query. Start again with the first page.
    """


class NestedTransaction(HowdahError, sa.InvalidRequestError):
    """`run_transaction` was called inside the work of another `run_transaction`. Nothing was sent.

    A retry of the outer work would repeat the changes that the inner call has committed. Pass the outer session to the
    inner function instead.
    """


class StaleRow(HowdahError, orm.StaleDataError):
    """A row was changed or deleted by another transaction after it was read. Read it again and decide again.

    If a bulk write raises this error, `keys` has the keys of the stale rows, and nothing was written.
    """

    def __init__(self, message: str, keys: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.keys = list(keys)


class IdempotencyKeyReused(HowdahError):
    """An idempotency key was sent with another request than the first one. Nothing was done for this request."""

    def __init__(self) -> None:
        super().__init__(
            "the idempotency key was used for another request: use a new key for each request, and send a retry with "
            "the same method, path, query, Content-Type and body"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class Unavailable(HowdahError):
    """The database can't serve the request now. The request itself is correct, so a later retry may succeed."""


class PoolExhausted(Unavailable, sa.TimeoutError):
    """No connection was released within `pool_timeout`. Nothing was sent.

    Hold sessions for a shorter time, or raise `pool_size`.
    """


class QueueFull(Unavailable):
    """The queue of a Coalescer has `max_waiting` tasks. The item was not accepted: retry later."""


class QueueTimeout(Unavailable):
    """An item waited in the queue of a Coalescer for `submit_timeout`. It was not sent, and will not be sent."""


class CoalescerClosed(Unavailable):
    """A Coalescer is closed, or closing. The item was not sent."""


class IdempotencyKeyInUse(Unavailable):
    """Another request with the same idempotency key is still running. Send the request again later."""

    def __init__(self) -> None:
        super().__init__("a request with the same idempotency key is still running: send the request again later")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class OutcomeUnknown(Unavailable):
    """The answer didn't arrive, so the changes may have been written or not.

    Before a retry, check in the database whether they were written, or send the request with an idempotency key. A read
    can be repeated.
    """


class ResultTimeout(OutcomeUnknown):
    """A task has waited for `submit_timeout`, and the batch with its item is still running.

    The batch isn't cancelled, because other tasks may wait for it. Its changes may be written later.
    """


class BatchAbandoned(OutcomeUnknown):
    """A batch took longer than `batch_timeout`, or was cancelled, for example because its Coalescer was closed."""


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

    Or the transaction, a cursor or an object is in a state that doesn't allow it, for example a materialized view
    without data.
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
