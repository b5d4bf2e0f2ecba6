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

from sqlalchemy import exc as sa
from sqlalchemy.orm import exc as orm

from howdah._base_errors import HowdahError, OutcomeUnknown, Unavailable
from howdah._database_errors import (
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

__all__ = [
    "BatchAbandoned",
    "CheckViolation",
    "CoalescerClosed",
    "CompletionUnknown",
    "ConnectionFailed",
    "ConnectionLost",
    "DatabaseError",
    "DeadlockDetected",
    "EmbeddedPostgresError",
    "ExclusionViolation",
    "ForeignKeyViolation",
    "HowdahError",
    "IdempotencyKeyInUse",
    "IdempotencyKeyReused",
    "IntegrityViolation",
    "InvalidCursor",
    "InvalidStatement",
    "InvalidText",
    "InvalidUrl",
    "InvalidValue",
    "LimitExceeded",
    "LockTimeout",
    "MigrationBlocked",
    "MultipleRowsFound",
    "NestedTransaction",
    "NotFound",
    "NotNullViolation",
    "ObjectInUse",
    "OutOfRange",
    "OutOfResources",
    "OutcomeUnknown",
    "PolicyViolation",
    "PoolExhausted",
    "PoolsTooLarge",
    "QueueFull",
    "QueueTimeout",
    "ReadOnly",
    "ResultTimeout",
    "SchemaChanged",
    "SerializationFailure",
    "ServerFault",
    "StaleRow",
    "StatementTimeout",
    "SystemFailure",
    "TooLong",
    "TransactionConflict",
    "Unavailable",
    "UniqueViolation",
    "UnknownAttribute",
    "ViewCompileError",
]


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


class ResultTimeout(OutcomeUnknown):
    """A task has waited for `submit_timeout`, and the batch with its item is still running.

    The batch isn't cancelled, because other tasks may wait for it. Its changes may be written later.
    """


class BatchAbandoned(OutcomeUnknown):
    """A batch took longer than `batch_timeout`, or was cancelled, for example because its Coalescer was closed."""


for _each in __all__:
    globals()[_each].__module__ = __name__  # so that tracebacks and pickles have the public name
