"""The functions and triggers of the ledger. The files in `sql/` define them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from functools import cache
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, MetaData, Table, event

from howdah.alembic.sql_files import execute_sql_files, read_statements

SQL_FOLDER: Final = Path(__file__).with_name("sql")
_FUNCTION: Final = re.compile(r"CREATE OR REPLACE FUNCTION (\w+)")


def create_triggers_with(metadata: MetaData, names: Set[str]) -> None:
    """Let `metadata.create_all` create the triggers after a table with one of these names, and `metadata.drop_all` drop
    the functions before it."""

    @event.listens_for(metadata, "after_create")
    def create(_metadata: MetaData, connection: Connection, *, tables: Iterable[Table], **_: Any) -> None:
        if not names.isdisjoint(table.name for table in tables):
            create_triggers(connection)

    @event.listens_for(metadata, "before_drop")
    def drop(_metadata: MetaData, connection: Connection, *, tables: Iterable[Table], **_: Any) -> None:
        if not names.isdisjoint(table.name for table in tables):
            drop_functions(connection)


def create_triggers(connection: Connection) -> None:
    """Create the functions and triggers, or replace those that exist. The ledger's tables must exist."""
    execute_sql_files(connection, SQL_FOLDER)


def drop_functions(connection: Connection) -> None:
    """Drop the functions and their triggers. After that the tables can be dropped: some functions depend on their row
    types."""
    for name in list_function_names():
        connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {name} CASCADE")


# Cached, because a comparison of the schema calls it for every function of the database. Parsing the files takes 5 ms.
@cache
def list_function_names() -> tuple[str, ...]:
    """The names of the functions that the files define."""
    return tuple(_FUNCTION.findall("\n".join(read_statements(SQL_FOLDER))))
