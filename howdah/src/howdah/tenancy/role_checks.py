"""Check that a role can't bypass the policies, and can't change them or the triggers."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import text

from howdah.database import Database
from howdah.errors import HowdahError

# `reachable`: the subject and all roles that it is a member of, directly or indirectly. It can use their rights, at
# least after SET ROLE.
# Before PostgreSQL 16, CREATEROLE lets a role become a member of every role that isn't a superuser.
_REACHABLE: Final = text(
    """
    WITH subject AS (
        SELECT CASE WHEN CAST(:is_login AS boolean) THEN session_user ELSE current_user END AS name
    ), reachable AS (
        SELECT pg_roles.* FROM pg_roles, subject WHERE pg_has_role(subject.name, oid, 'MEMBER')
    ), owned AS (
        SELECT CAST(CAST(oid AS regclass) AS text) AS name FROM pg_class
        WHERE relowner IN (SELECT oid FROM reachable) AND relkind IN ('r', 'p', 'v', 'm', 'f') AND relpersistence <> 't'
        UNION ALL
        SELECT 'the function ' || CAST(CAST(oid AS regprocedure) AS text) FROM pg_proc
        WHERE proowner IN (SELECT oid FROM reachable)
        UNION ALL
        SELECT 'the schema ' || nspname FROM pg_namespace WHERE nspowner IN (SELECT oid FROM reachable)
        UNION ALL
        SELECT 'the database ' || datname FROM pg_database
        WHERE datname = current_database() AND datdba IN (SELECT oid FROM reachable)
    )
    SELECT current_user AS role, subject.name AS subject,
        (SELECT rolsuper FROM pg_roles WHERE rolname = subject.name) AS is_superuser,
        EXISTS (SELECT FROM reachable WHERE rolbypassrls OR rolsuper) AS can_bypass,
        (
            SELECT string_agg(DISTINCT CAST(rolname AS text), ', ') FROM reachable
            WHERE rolreplication
                OR rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')
                OR rolcreaterole AND CAST(current_setting('server_version_num') AS integer) < 160000
                OR has_parameter_privilege(oid, 'session_replication_role', 'SET')
        ) AS powerful,
        ARRAY(SELECT name FROM owned ORDER BY name LIKE 'the %', name LIMIT 5) AS owned
    FROM subject
    """
)


class NotIsolated(HowdahError):
    """A role or a table that lets the rows of one tenant reach another one."""


async def check_role(database: Database) -> str:
    """The role of this database's transactions. Raises `NotIsolated` if the policies might not apply to it.

    It checks the login, and every role that the login is a member of, directly or indirectly: a statement with SET ROLE
    could take each of them. None of them may

    - be a superuser, or have BYPASSRLS or REPLICATION;
    - own tables, functions or schemas, or the database: an owner can change policies and triggers;
    - be able to switch triggers off (`session_replication_role`), or to use programs or files of the server;
    - have CREATEROLE, on PostgreSQL 15 and earlier.

    After `with_settings(role=...)` only that role is checked, and not the login: for tests and tools, whose login may
    be a superuser.
    """
    settings = database._settings
    is_login = settings is None or settings.role is None
    async with database.session(read_only=True) as session:
        found = (await session.execute(_REACHABLE, {"is_login": is_login})).one()
    _check(found)
    return str(found.role)


def _check(found: Any) -> None:
    """Raise `NotIsolated` for the first fault of this row."""
    name = found.subject
    check_attributes(name, found.is_superuser, found.can_bypass)
    if found.owned:
        raise NotIsolated(
            f"the role {name!r} owns {', '.join(found.owned)}, or is a member of their owner, and could change their "
            "policies or triggers: run the service as a role that owns nothing (create_application_role)"
        )
    if found.powerful:
        raise NotIsolated(
            f"the role {name!r} could bypass policies or triggers, because {found.powerful} has REPLICATION, "
            "CREATEROLE, the right to set session_replication_role, or access to the server's programs or files: use "
            "a role without them"
        )


def check_attributes(role: str, is_superuser: bool, can_bypass: bool) -> None:
    """Raise `NotIsolated` if the role is a superuser or can bypass policies."""
    if is_superuser:
        raise NotIsolated(f"the role {role!r} is a superuser, and policies don't apply to it: use an application role")
    if can_bypass:
        raise NotIsolated(
            f"the role {role!r} has BYPASSRLS or is a member of a role with it, so policies don't apply to it: use an "
            "application role"
        )
