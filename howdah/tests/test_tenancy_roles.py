"""Several roles, and one login that may take each of them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

import pytest
from sqlalchemy import make_url, text

from howdah import Database, DatabaseError
from howdah.tenancy import NotIsolated, check_role, login_password_statement, login_role_statements
from howdah.tenancy.passwords import scram_verifier


async def run_all(database: Database, statements: Sequence[str]) -> None:
    async with database.begin() as session:
        for each in statements:
            await (await session.connection()).exec_driver_sql(each)


@pytest.fixture
async def names(committed_database: Database) -> AsyncIterator[list[str]]:
    """Names of three roles of this test, which are dropped after it. The first one is for a login."""
    names = [f"howdah Test {uuid4().hex}" for _ in range(3)]
    yield names
    async with committed_database.begin() as session:
        for name in names:
            await session.execute(text(f'DROP ROLE IF EXISTS "{name}"'))


FUNCTION = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
MEMBERSHIPS = text("""
    SELECT rolname, pg_has_role(:name, oid, 'USAGE'), pg_has_role(:name, oid, 'MEMBER WITH ADMIN OPTION') FROM pg_roles
    WHERE rolname <> :name AND pg_has_role(:name, oid, 'MEMBER') ORDER BY 1
""")


async def test_a_login_can_take_each_role_and_has_no_right_before_that(
    committed_database: Database, names: list[str]
) -> None:
    login, *roles = names
    await run_all(committed_database, login_role_statements(login, roles=roles))
    async with committed_database.session() as session:
        attributes = "SELECT rolname, rolcanlogin, rolinherit FROM pg_roles WHERE rolname = ANY(:names) ORDER BY 2, 1"
        found = (await session.execute(text(attributes), {"names": names})).all()
        assert found == [(role, False, True) for role in sorted(roles)] + [(login, True, False)]
        memberships = (await session.execute(MEMBERSHIPS, {"name": login})).all()
        assert memberships == [(role, False, False) for role in sorted(roles)]
    for role in roles:
        async with Database(make_url(committed_database.engine.url).set(username=login), role=role) as database:
            assert await check_role(database) == role


async def test_the_statements_can_be_repeated_and_executed_in_many_transactions_at_once(
    committed_database: Database, names: list[str]
) -> None:
    login, *roles = names
    statements = login_role_statements(login, roles=roles)
    for _ in range(2):
        await asyncio.gather(*(run_all(committed_database, statements) for _ in range(8)))
    async with committed_database.session() as session:
        assert len((await session.execute(MEMBERSHIPS, {"name": login})).all()) == 2
    async with Database(make_url(committed_database.engine.url).set(username=login)) as without_rights:
        await run_all(without_rights, statements)  # nothing is left to do


async def test_an_inherited_membership_is_corrected(committed_database: Database, names: list[str]) -> None:
    login, role, _ = names
    await run_all(
        committed_database,
        [f'CREATE ROLE "{login}" LOGIN', f'CREATE ROLE "{role}"', f'GRANT "{role}" TO "{login}"'],
    )
    await run_all(committed_database, login_role_statements(login, roles=[role]))
    async with committed_database.session() as session:
        assert (await session.execute(MEMBERSHIPS, {"name": login})).all() == [(role, False, False)]


async def test_an_existing_role_that_bypasses_policies_is_rejected(
    committed_database: Database, names: list[str]
) -> None:
    login, role, _ = names
    await run_all(committed_database, [f'CREATE ROLE "{role}" BYPASSRLS'])
    with pytest.raises(DatabaseError, match=f"{role} is a superuser or has BYPASSRLS"):
        await run_all(committed_database, login_role_statements(login, roles=[role]))


async def test_wrong_names_are_rejected() -> None:
    with pytest.raises(TypeError, match="roles must be a list"):
        login_role_statements("login", roles="customer")
    with pytest.raises(ValueError, match="at least one role"):
        login_role_statements("login", roles=[])
    with pytest.raises(ValueError, match="not the login"):
        login_role_statements("login", roles=["login"])
    with pytest.raises(ValueError, match="must not contain"):
        login_role_statements("login", roles=["$role$"])


async def test_a_login_that_could_bypass_policies_in_any_way_is_refused(
    committed_database: Database, names: list[str]
) -> None:
    login, role, owner = names
    await run_all(committed_database, login_role_statements(login, roles=[role]))
    url = make_url(committed_database.engine.url).set(username=login)
    await run_all(
        committed_database,
        [f'CREATE ROLE "{owner}"', f'GRANT "{owner}" TO "{role}"', "CREATE TABLE owned ()", FUNCTION],
    )
    database_name = url.database
    async with Database(url) as service, Database(url, role=role) as other:
        assert await check_role(service) == login
        assert await check_role(other) == role
        for change, undo, message in (  # each of them to a role that the login reaches by two memberships
            (f'ALTER ROLE "{owner}" BYPASSRLS', f'ALTER ROLE "{owner}" NOBYPASSRLS', "BYPASSRLS"),
            (f'ALTER ROLE "{owner}" REPLICATION', f'ALTER ROLE "{owner}" NOREPLICATION', f"because {owner} has REPL"),
            (f'ALTER TABLE owned OWNER TO "{owner}"', "ALTER TABLE owned OWNER TO postgres", "owns owned,"),
            (
                f'ALTER FUNCTION f() OWNER TO "{owner}"',
                "ALTER FUNCTION f() OWNER TO postgres",
                r"owns the function f\(\)",
            ),
            (f'CREATE SCHEMA s AUTHORIZATION "{owner}"', "DROP SCHEMA s", "owns the schema s"),
            (
                f'ALTER DATABASE {database_name} OWNER TO "{owner}"',
                f"ALTER DATABASE {database_name} OWNER TO postgres",
                f"the database {database_name}, the schema public",
            ),
            (
                f'GRANT SET ON PARAMETER session_replication_role TO "{owner}"',
                f'REVOKE SET ON PARAMETER session_replication_role FROM "{owner}"',
                "session_replication_role",
            ),
            (
                f'GRANT pg_write_server_files TO "{owner}"',
                f'REVOKE pg_write_server_files FROM "{owner}"',
                "pg_write_server_files has",
            ),
            (f'GRANT postgres TO "{owner}"', f'REVOKE postgres FROM "{owner}"', "BYPASSRLS"),
        ):
            await run_all(committed_database, [change])
            for database in (service, other):
                with pytest.raises(NotIsolated, match=message) as caught:
                    await check_role(database)
                assert login in str(caught.value)
            await run_all(committed_database, [undo])
        assert await check_role(service) == login


async def test_a_superuser_that_takes_a_role_when_it_connects_is_refused(
    committed_database: Database, names: list[str]
) -> None:
    login, role, _ = names
    await run_all(committed_database, login_role_statements(login, roles=[role]))
    async with Database(committed_database.engine.url, role=role) as database:
        with pytest.raises(NotIsolated, match="'postgres' is a superuser"):
            await check_role(database)
    assert await check_role(committed_database.with_settings(role=role)) == role  # for tests


async def test_the_verifier_of_a_password_is_that_of_postgresql(committed_database: Database, names: list[str]) -> None:
    login, password = names[0], "it's a \\ password"
    stored = text("SELECT rolpassword FROM pg_authid WHERE rolname = :name")
    await run_all(committed_database, [f'CREATE ROLE "{login}" PASSWORD $${password}$$'])
    async with committed_database.session() as session:
        expected = str(await session.scalar(stored, {"name": login}))
    iterations, salt = expected.split("$")[1].split(":")
    assert scram_verifier(password, salt=base64.b64decode(salt), iterations=int(iterations)) == expected
    statement = login_password_statement(login, password)
    assert password not in statement
    assert statement != login_password_statement(login, password)
    await run_all(committed_database, [statement])
    async with committed_database.session() as session:
        changed = str(await session.scalar(stored, {"name": login}))
    assert changed in statement
    for wrong in ("hunter2", "hunter2-hunter2-é", "hunter2-\n-hunter2-hunter2"):
        with pytest.raises(ValueError, match="at least 16 printable ASCII characters") as caught:
            login_password_statement(login, wrong)
        assert "hunter2" not in str(caught.value)
