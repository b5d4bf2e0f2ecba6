"""Errors that abort a transaction. If the caller catches such an error, the commit raises it again.

After an error PostgreSQL rejects every statement until the end of the transaction. It answers COMMIT with a ROLLBACK
and no error, so a caller that has caught the error would believe that the transaction is committed.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from howdah._connections.options import COMMIT_EACH
from howdah._error_translation import translate
from howdah.errors import DatabaseError

# A key in the connection's `info`. Its value is the error that has aborted the transaction.
_ABORTED_BY: Final = "howdah_aborted_by"


def raise_errors_again(engine: Engine) -> None:
    """Translate errors. If a caught one has aborted the transaction, raise it again on COMMIT or RELEASE SAVEPOINT."""

    @event.listens_for(engine, "handle_error", retval=True)
    def handle_error(context: ExceptionContext) -> DatabaseError | None:
        error = translate(context)
        connection = context.connection
        if error and error.sqlstate and connection and not context.is_disconnect and _is_aborted(connection):
            connection.info.setdefault(_ABORTED_BY, error)
        return error

    def forget(connection: Connection, *_savepoint: object) -> None:
        if not connection.invalidated:
            connection.info.pop(_ABORTED_BY, None)

    def raise_again(connection: Connection, *savepoint: str) -> None:
        error: DatabaseError | None = connection.info.pop(_ABORTED_BY, None)
        if error is None:
            return
        if savepoint:  # SQLAlchemy doesn't roll back a savepoint whose release fails
            connection.dialect.do_rollback_to_savepoint(connection, savepoint[0])
        else:
            connection.connection.rollback()
        error.add_note("it was caught, but it has aborted the transaction: to continue after an error, use a savepoint")
        raise error

    for name in ("begin", "rollback", "rollback_savepoint"):
        event.listen(engine, name, forget)
    for name in ("commit", "release_savepoint"):
        event.listen(engine, name, raise_again)


def _is_aborted(connection: Connection) -> bool:
    """Whether the failed statement was in a transaction, which PostgreSQL has then aborted."""
    driver: Any = connection.connection.driver_connection
    return bool(driver.is_in_transaction()) and not connection.get_execution_options().get(COMMIT_EACH)
