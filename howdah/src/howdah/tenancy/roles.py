"""The roles of the application. They own nothing, so policies apply to them, and they can't change the policies.

Roles belong to the whole server. So the statements here can be repeated, and executed at the same time in several
databases of a server: each of them changes nothing if there is nothing to do.
"""

# ruff: noqa: S608  # all names are quoted

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah._connections.names import check_identifier, quote_literal
from howdah.tenancy.policies import quote_name
from howdah.tenancy.role_checks import check_attributes

_TAG: Final = "$role$"

# PostgreSQL 16 has options for each membership. In earlier versions, NOINHERIT of the member applies to all of them.
_HAS_MEMBERSHIP_OPTIONS: Final = "CAST(pg_catalog.current_setting('server_version_num') AS integer) >= 160000"


def application_role_statements(name: str, *, schemas: Sequence[str] = ("public",)) -> Sequence[str]:
    """The statements that create the role and its rights. They can be executed again.

    Execute them as the role that owns the tables, which is the one that runs the migrations. The rights are SELECT,
    INSERT, UPDATE and DELETE on the tables of `schemas` and the use of their sequences, also for the tables that the
    owner creates later (ALTER DEFAULT PRIVILEGES). The role can log in; it has no password yet.
    """
    statements = [_create_role(name, "LOGIN")]
    role = quote_name(name)
    if isinstance(schemas, str):
        raise TypeError(f"schemas must be a list of names, not the text {schemas!r}")
    tables, sequences = "SELECT, INSERT, UPDATE, DELETE ON", "USAGE, SELECT ON"
    for each in schemas:
        check_identifier("a schema", each)
        schema = quote_name(each)
        statements += [
            f"GRANT USAGE ON SCHEMA {schema} TO {role}",
            f"GRANT {tables} ALL TABLES IN SCHEMA {schema} TO {role}",
            f"GRANT {sequences} ALL SEQUENCES IN SCHEMA {schema} TO {role}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {tables} TABLES TO {role}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {sequences} SEQUENCES TO {role}",
        ]
    return statements


def login_role_statements(name: str, *, roles: Sequence[str]) -> Sequence[str]:
    """The statements that create a login which may take each of `roles`, but has none of their rights by itself.

    Missing `roles` are created (NOLOGIN, without rights). The login has no password yet. Existing roles keep their
    attributes, but on PostgreSQL 15 and earlier an existing login becomes NOINHERIT. The statements fail if one of the
    existing roles is a superuser or has BYPASSRLS.

    Execute them as a role with CREATEROLE, in this order. If all roles and memberships exist, no right is needed.
    """
    if isinstance(roles, str):
        raise TypeError(f"roles must be a list of names, not the text {roles!r}")
    if not roles or name in roles:
        raise ValueError(f"roles must have at least one role, and not the login {name!r} itself")
    return [
        *(_create_role(each, "NOLOGIN") for each in roles),
        _create_role(name, "LOGIN NOINHERIT"),
        _stop_inheriting(name),
        *(_grant_role(each, name) for each in roles),
        *map(_reject_bypassing, (*roles, name)),
    ]


async def create_application_role(session: AsyncSession, name: str, *, schemas: Sequence[str] = ("public",)) -> None:
    """Create the role of the application, or give an existing one its rights; see `application_role_statements`.

    Raises `NotIsolated` for an existing role that could bypass the policies.
    """
    for statement in application_role_statements(name, schemas=schemas):
        await (await session.connection()).exec_driver_sql(statement)
    found = await session.execute(
        text("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = :name"), {"name": name}
    )
    check_attributes(name, *found.one())


# Two transactions may create the same role at the same time. The second one waits for the end of the first one, and
# gets one of these errors if the first one was committed.
_CREATED_MEANWHILE: Final = "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;"


def _create_role(name: str, attributes: str) -> str:
    check_identifier("the role", name)
    return _do(
        f"IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {quote_literal(name)}) THEN "
        f"CREATE ROLE {quote_name(name)} {attributes}; END IF; {_CREATED_MEANWHILE}",
    )


def _stop_inheriting(name: str) -> str:
    return _do(
        f"IF NOT {_HAS_MEMBERSHIP_OPTIONS} AND (SELECT rolinherit FROM pg_catalog.pg_roles "
        f"WHERE rolname = {quote_literal(name)}) THEN ALTER ROLE {quote_name(name)} NOINHERIT; END IF;",
    )


def _grant_role(role: str, member: str) -> str:
    """Let the member take the role with SET ROLE, without its rights before that."""
    membership = (
        "SELECT FROM pg_catalog.pg_auth_members WHERE "
        f"roleid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = {quote_literal(role)}) AND "
        f"member = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = {quote_literal(member)})"
    )
    grant = f"GRANT {quote_name(role)} TO {quote_name(member)}"
    with_options = quote_literal(f"{grant} WITH INHERIT FALSE, SET TRUE")
    return _do(
        f"IF NOT {_HAS_MEMBERSHIP_OPTIONS} THEN "
        f"IF NOT EXISTS ({membership}) THEN {grant}; END IF; "
        f"ELSIF EXISTS ({membership} AND inherit_option) OR NOT EXISTS ({membership} AND set_option) THEN "
        f"EXECUTE {with_options}; END IF; {_CREATED_MEANWHILE}",
    )


def _reject_bypassing(name: str) -> str:
    message = f"the role {name} is a superuser or has BYPASSRLS, so policies don't apply to it: use another role"
    return _do(
        f"IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {quote_literal(name)} AND "
        f"(rolsuper OR rolbypassrls)) THEN RAISE EXCEPTION USING MESSAGE = {quote_literal(message)}, "
        "ERRCODE = 'invalid_role_specification'; END IF;"
    )


def _do(body: str) -> str:
    """A DO statement with these PL/pgSQL statements."""
    if _TAG in body:
        raise ValueError(f"the name of a role or schema must not contain {_TAG!r}")
    return f"DO {_TAG} BEGIN {body} END {_TAG}"
