"""Queries of PostgreSQL's catalog that decide how rows can be upserted into a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Table, text
from sqlalchemy.ext.asyncio import AsyncConnection

# Triggers of the table and its partitions. The bits of 7 in `tgtype`: FOR EACH ROW, BEFORE, INSERT.
_HAS_BEFORE_INSERT: Final = """
SELECT EXISTS (
    SELECT FROM pg_trigger
    WHERE tgrelid IN (SELECT to_regclass(:name) UNION SELECT relid FROM pg_partition_tree(to_regclass(:name)))
    AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 7 = 7
)
"""

# Triggers of the view and of the views behind it.
_HAS_INSTEAD_OF: Final = """
WITH RECURSIVE relations (id) AS (
    SELECT CAST(to_regclass(:name) AS oid)
    UNION SELECT d.refobjid FROM relations JOIN pg_rewrite r ON r.ev_class = relations.id JOIN pg_depend d
    ON d.classid = CAST('pg_rewrite' AS regclass) AND d.objid = r.oid AND d.refclassid = CAST('pg_class' AS regclass)
)
SELECT EXISTS (SELECT FROM pg_trigger JOIN relations ON tgrelid = id WHERE tgtype & 64 = 64)
"""

# False for a view, because `pg_index` has no indexes of views.
_COMPARES_BYTES: Final = f"""
SELECT count(*) = cardinality(CAST(:columns AS text[])) AND NOT EXISTS (
    SELECT FROM pg_index i, unnest(i.indcollation) AS used (id) JOIN pg_collation l ON l.oid = used.id
    WHERE i.indrelid = to_regclass(:name) AND NOT l.collisdeterministic
) AND NOT ({_HAS_BEFORE_INSERT})
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE a.attrelid = to_regclass(:name) AND a.attname = ANY(CAST(:columns AS text[]))
AND c.relkind IN ('r', 'p')
AND format_type(a.atttypid, NULL) IN (
    'text', 'character varying', 'smallint', 'integer', 'bigint', 'uuid', 'date', 'bytea'
)
"""  # noqa: S608  # made of constants


async def has_before_insert_trigger(connection: AsyncConnection, table: Table) -> bool:
    """Whether a trigger can suppress or change a row before it is inserted into the table or one of its partitions."""
    return await _query_bool(connection, _HAS_BEFORE_INSERT, table)


async def has_instead_of_trigger(connection: AsyncConnection, table: Table) -> bool:
    """Whether this view or a view behind it has an INSTEAD OF trigger."""
    return await _query_bool(connection, _HAS_INSTEAD_OF, table)


async def compares_bytes(connection: AsyncConnection, table: Table, columns: Sequence[str]) -> bool:
    """Whether only identical values of these columns conflict in a unique index.

    False for types such as citext, for a nondeterministic collation, and if a BEFORE INSERT trigger may change values.
    """
    return await _query_bool(connection, _COMPARES_BYTES, table, columns=list(columns))


async def _query_bool(connection: AsyncConnection, query: str, table: Table, **more: Any) -> bool:
    assert connection.sync_connection is not None
    quote = connection.dialect.identifier_preparer.quote
    schema = connection.sync_connection.schema_for_object(table)
    name = quote(table.name) if schema is None else f"{quote(schema)}.{quote(table.name)}"
    return bool(await connection.scalar(text(query), {"name": name, **more}))
