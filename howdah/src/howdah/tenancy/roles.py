"""The role of the application: it owns nothing, so the policies apply to it, and it can't change them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah._connections.settings import check_identifier
from howdah.tenancy.checks import check_attributes
from howdah.tenancy.policies import quote_name


def application_role_statements(name: str, *, schemas: Sequence[str] = ("public",)) -> Sequence[str]:
    """The statements that create the role and its rights. They can be executed again.

    Execute them as the role that owns the tables, which is the one that runs the migrations. The rights are SELECT,
    INSERT, UPDATE and DELETE on the tables of `schemas` and the use of their sequences, also for the tables that the
    owner creates later (ALTER DEFAULT PRIVILEGES). The role can log in; it has no password yet.
    """
    check_identifier("the role", name)
    if isinstance(schemas, str):
        raise TypeError(f"schemas must be a list of names, not the text {schemas!r}")
    role = quote_name(name)
    tables, sequences = "SELECT, INSERT, UPDATE, DELETE ON", "USAGE, SELECT ON"
    body = f"BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END"
    tag = "$role$"
    if tag in body:
        raise ValueError(f"the role can't be named {name!r}: its name must not contain {tag!r}")
    statements = [f"DO {tag} {body} {tag}"]
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
