"""Folders of .sql files, and the statements in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

# A semicolon in one of these doesn't end the statement: comments, dollar-quoted bodies, strings, quoted names.
_QUOTED: Final = (
    r"--[^\n]*"
    r"|/\*.*?\*/"
    r"|(?<![\w$])\$(?P<tag>[A-Za-z_]\w*|)\$.*?\$(?P=tag)\$"
    r"|\b[eE]'(?:[^'\\]|\\.|'')*'"
    r"|'[^']*'"
    r'|"[^"]*"'
)
_TOKEN: Final = re.compile(rf"(?P<quoted>{_QUOTED})|(?P<end>;)|.", re.DOTALL)
_COMMENT: Final = ("--", "/*")
_ATOMIC: Final = re.compile(r"\bBEGIN\s+ATOMIC\b", re.IGNORECASE)


def execute_sql_files(connection: Connection, folder: Path) -> None:
    """Execute every statement of the folder's .sql files, in the order of their names.

    The statements are sent one by one, because asyncpg accepts only one statement per call.
    """
    for statement in read_statements(folder):
        connection.exec_driver_sql(statement)


def read_statements(folder: Path, *names: str) -> Iterator[str]:
    """The statements of the folder's .sql files, in the order of the files' names. A missing folder has none.

    With `names`, only files of these names are read, and each must exist.

    Raises `ValueError` for a function body that is written `BEGIN ATOMIC … END`. Its semicolons can't be told from the
    ends of statements.
    """
    for file in [folder / name for name in sorted(names)] or sorted(folder.glob("*.sql")):
        yield from _split(file)


def _split(file: Path) -> Iterator[str]:
    """The statements of a file. The last statement needs no semicolon."""
    statement: list[str] = []
    code: list[str] = []  # the statement without comments and quoted texts
    for token in _TOKEN.finditer(file.read_text(encoding="utf-8") + "\n;"):
        if token["end"] is None:
            statement.append(token[0])
            if not token[0].startswith(_COMMENT):
                code.append("?" if token["quoted"] else token[0])
            continue
        if _ATOMIC.search("".join(code)):
            raise ValueError(f"{file}: write the body of a function as AS $$…$$, not as BEGIN ATOMIC … END")
        if "".join(code).strip():
            yield "".join(statement).strip()
        statement.clear()
        code.clear()
