"""A log of the ledger's statements."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event

from howdah import Database


class StatementLog:
    """The ledger's statements, in the order in which they were sent."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def record(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.statements.append(statement)

    def take(self) -> list[str]:
        """The names of the statements since the last call."""
        names = {
            "needed_currency": "post",
            "FOR NO KEY UPDATE": "lock",
            "new_transfers": "write",
            "accounts.id": "read",
        }
        found = []
        for statement in self.statements:
            found += (
                [next(name for part, name in names.items() if part in statement)]
                if any(part in statement for part in names)
                else []
            )
        self.statements.clear()
        return found


@asynccontextmanager
async def log_statements(database: Database) -> Any:
    log = StatementLog()
    event.listen(database.engine.sync_engine, "before_cursor_execute", log.record)
    try:
        yield log
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", log.record)
