"""The login of the service: the check of its rights, and its password on an external server."""

from __future__ import annotations

from typing import Final

from sqlalchemy import make_url, text

from howdah import Database
from howdah.tenancy import NotIsolated, check_role, login_password_statement
from shop import migrations
from shop.postgres import open_database, open_owner_database
from shop.roles import SERVICE_LOGIN, SERVICE_ROLES, SYSTEM_ROLE, role_statements
from shop.settings import Settings

_MISSING_ROLES: Final = text(
    """
    SELECT array_agg(name ORDER BY name) FROM unnest(CAST(:names AS text[])) AS name
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name AND pg_has_role(session_user, oid, 'MEMBER'))
    """
)

_INHERITED_ROLES: Final = text(
    """
    SELECT array_agg(rolname ORDER BY rolname) FROM pg_roles
    WHERE rolname = ANY(CAST(:names AS text[])) AND pg_has_role(session_user, oid, 'USAGE')
    """
)


class CannotServe(Exception):
    """The login could bypass a policy, or can't take the service's roles; or the schema isn't migrated."""


class WrongPassword(Exception):
    """The password of the service's login can't be set."""


async def check_service(url: str, settings: Settings, *, must_be_migrated: bool) -> None:
    """Check the login at `url`, and with `must_be_migrated` that the schema is current or newer.

    Raises `CannotServe`.
    """
    async with Database(url, pool_size=2, application_name="shop") as database:
        await check_login(database)
    if must_be_migrated:
        async with open_database(url, settings, role=SYSTEM_ROLE) as database:
            problem = await migrations.HISTORY.find_revision_problem(database)
        if problem is not None:
            raise CannotServe(f"{problem}, with SHOP_OWNER_DATABASE_URL")


async def check_login(database: Database) -> None:
    """Raise `CannotServe` if the login can't take the service's roles, or can take a role that bypasses policies.

    `database` must have no role.
    """
    advice = (
        f"let SHOP_DATABASE_URL log in as {SERVICE_LOGIN}, and SHOP_OWNER_DATABASE_URL as the owner of the tables. "
        f"`shop migrate` creates {SERVICE_LOGIN}, and `shop create-login` sets its password"
    )
    try:
        await check_role(database)
    except NotIsolated as error:
        raise CannotServe(f"the service doesn't start: {error}. Instead, {advice}") from error
    async with database.session(read_only=True) as session:
        names = {"names": list(SERVICE_ROLES)}
        missing = await session.scalar(_MISSING_ROLES, names)
        inherited = await session.scalar(_INHERITED_ROLES, names)
    if missing:
        raise CannotServe(
            f"the service doesn't start: its login isn't a member of {', '.join(missing)}, or the role doesn't exist. "
            f"Instead, {advice}"
        )
    if inherited:
        raise CannotServe(
            f"the service doesn't start: its login has the rights of {', '.join(inherited)} without taking it, so a "
            "statement without a role would see the rows of all users: GRANT the role WITH INHERIT FALSE. "
            f"Or {advice}"
        )


async def create_login(owner_url: str, service_url: str, settings: Settings) -> None:
    """Create the service's roles, and give the login the password of `service_url`. It can be repeated.

    PostgreSQL gets a hash of the password. Raises `WrongPassword` if the URL has another login, or no usable password.
    """
    url = make_url(service_url)
    if url.username != SERVICE_LOGIN:
        raise WrongPassword(f"SHOP_DATABASE_URL must log in as {SERVICE_LOGIN}: postgresql://{SERVICE_LOGIN}:…@…")
    if not url.password:
        raise WrongPassword(
            "SHOP_DATABASE_URL has no password: generate one, for example with "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(32))', and write it into the URL"
        )
    try:
        password = login_password_statement(SERVICE_LOGIN, str(url.password))
    except ValueError as error:
        raise WrongPassword(f"SHOP_DATABASE_URL: {error}") from error
    async with (
        open_owner_database(owner_url, settings, application_name="shop create-login") as database,
        database.begin() as session,
    ):
        connection = await session.connection()
        for statement in (*role_statements(), password):
            await connection.exec_driver_sql(statement)
