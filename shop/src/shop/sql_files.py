"""Folders of .sql files, and the statements in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

# Comments, dollar-quoted bodies and string literals may contain semicolons.
_STATEMENT: Final = re.compile(r"(?:--[^\n]*|\$\$.*?\$\$|'[^']*'|[^;])+", re.DOTALL)
_COMMENTS: Final = re.compile(r"--[^\n]*")


def execute_sql_files(connection: Connection, folder: Path) -> None:
    """Execute every statement of the folder's .sql files, in the order of their names.

    The statements are sent one by one, because asyncpg accepts only one statement per call.
    """
    for statement in read_statements(folder):
        connection.exec_driver_sql(statement)


def read_statements(folder: Path) -> Iterator[str]:
    """The statements of the folder's .sql files. A dollar-quoted body is written `$$…$$`, without a tag."""
    for file in sorted(folder.glob("*.sql")):
        for statement in _STATEMENT.findall(file.read_text(encoding="utf-8")):
            if _COMMENTS.sub("", statement).strip():
                yield statement.strip()
