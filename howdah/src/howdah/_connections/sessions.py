"""The sessions of a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncResult, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from howdah._connections.slots import start_slot_record
from howdah._sqlalchemy import is_exhausted
from howdah.errors import StaleRow

# The last stream, in the `info` of a session.
_STREAM: Final = "howdah.stream"


class _Session(Session):
    """A session that raises `StaleRow`, and is rolled back if its commit fails."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        start_slot_record()  # here, because the statements may run in tasks that are started later
        super().__init__(*arguments, **options)

    def commit(self) -> None:
        try:
            super().commit()
        except BaseException:
            self.rollback()  # close() doesn't roll back a connection that the caller has opened (`bound_to`)
            raise

    def flush(self, objects: Any = None) -> None:
        with _raise_stale_row():
            super().flush(objects)


class _AsyncSession(AsyncSession):
    """A session that remembers its last stream, for `is_streaming`."""

    async def stream(self, *arguments: Any, **options: Any) -> AsyncResult[Any]:
        result: AsyncResult[Any] = await super().stream(*arguments, **options)
        self.info[_STREAM] = result
        return result


def is_streaming(session: AsyncSession) -> bool:
    """Whether rows of the last `stream()` haven't been read yet. Ending the transaction would lose them."""
    result = session.info.get(_STREAM)
    return result is not None and session.in_transaction() and not is_exhausted(result)


@contextmanager
def _raise_stale_row() -> Iterator[None]:
    try:
        yield
    except StaleRow:
        raise
    except StaleDataError as error:
        raise StaleRow(str(error)) from error


def new_session_factory(bind: AsyncEngine | AsyncConnection, **options: Any) -> async_sessionmaker[AsyncSession]:
    """A factory of sessions. Objects stay usable after a commit, and a closed session can't be used again."""
    return async_sessionmaker(
        bind,
        class_=_AsyncSession,
        expire_on_commit=False,
        close_resets_only=False,
        sync_session_class=_Session,
        **options,
    )


def set_read_only(_session: Session, _transaction: Any, connection: Connection) -> None:
    """Make a session's savepoint read-only. Call this in a listener for the session's event `after_begin`.

    PostgreSQL undoes the setting when the savepoint ends.
    """
    connection.exec_driver_sql("SET LOCAL transaction_read_only = on")
