"""Which statements the ledger sends."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event

from howdah import Database


class Seen:
    """Which of the ledger's statements the database was given."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def note(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.statements.append(statement)

    def taken(self) -> list[str]:
        """By name, since the last time."""
        names = {
            "is_unchanged": "write if",
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
async def watched(database: Database) -> Any:
    seen = Seen()
    event.listen(database.engine.sync_engine, "before_cursor_execute", seen.note)
    try:
        yield seen
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", seen.note)
