"""Take another role for a few statements of a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from howdah._connections.names import check_role_name
from howdah._connections.settings import SETTINGS_COMMENT
from howdah.errors import DatabaseError

# The earlier role is read before it is replaced.
_TAKE: Final = text(
    f"{SETTINGS_COMMENT}WITH earlier AS MATERIALIZED (SELECT current_setting('role') AS role) "  # noqa: S608
    "SELECT role, set_config('role', :role, true) FROM earlier"
)
_RESTORE: Final = text(f"{SETTINGS_COMMENT}SELECT set_config('role', :role, true)")
_IS_ABORTED: Final = "25P02"


@asynccontextmanager
async def role_in(session: AsyncSession, role: str) -> AsyncIterator[None]:
    """Run the block as another role, in the session's transaction, and take the earlier role again at its end.

        async with role_in(session, "shop_system"):
            ...  # these statements have the rights of shop_system, and its policies apply

    Changes that are pending in the session are flushed before the block with the earlier role, and at the end of the
    block with `role`. Each change of the role is one round trip. The login must be a member of `role`.

    The earlier role is also restored after an error. If the error has aborted the transaction, the rollback restores
    it, also a rollback to a savepoint that was begun before the block. If the block ends the transaction, the next
    one begins with the session's own role. If the role can't be restored, the connection is closed. Don't use the
    session in another task during the block.
    """
    check_role_name(role)
    await session.flush()
    # After a failed flush, the session executes nothing until its savepoint has ended. So the role is restored on the
    # connection, which still executes statements.
    connection = await session.connection()
    earlier: str = (await connection.execute(_TAKE, {"role": role})).one().role
    root = session.sync_session.get_transaction()

    def is_in_transaction() -> bool:
        return root is not None and session.sync_session.get_transaction() is root and root.is_active

    try:
        yield
        if is_in_transaction():
            await session.flush()
    except BaseException:
        if is_in_transaction() and not connection.invalidated:
            with suppress(Exception):  # raise the first error; `_restore` has closed the connection if it failed
                await _restore(connection, earlier)
        raise
    if is_in_transaction():
        await _restore(connection, earlier)


async def _restore(connection: AsyncConnection, role: str) -> None:
    """Take the earlier role again, or close the connection: nothing else may run with the role of the block."""
    is_restored = False
    try:
        await connection.execute(_RESTORE, {"role": role})
        is_restored = True
    except DatabaseError as error:
        if error.sqlstate != _IS_ABORTED:
            raise
        is_restored = True  # by the rollback, before which PostgreSQL executes nothing
    finally:
        if not is_restored:
            await asyncio.shield(asyncio.ensure_future(connection.invalidate()))
