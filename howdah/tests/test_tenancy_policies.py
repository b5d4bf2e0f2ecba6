"""Policies that are declared next to the model, the application's role, and the checks of both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    CHAR,
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

from howdah import Database, InvalidStatement
from howdah.tenancy import (
    NotIsolated,
    RowPolicy,
    TenantPolicy,
    TenantTable,
    application_role_statements,
    check_role,
    check_tenant_tables,
    create_application_role,
    policies_of,
    policy_statements,
)
from howdah.testing import assert_statements

TENANTS = (uuid4(), uuid4())
SETTING = "app.tenant_id"
APP = f"howdah_test_{uuid4().hex}"
"""A role that is only created in transactions that are rolled back. Other processes have other names."""


class Base(DeclarativeBase):
    metadata = MetaData()


class TenantOwned:
    """A recipe of the guide: the column and the policy of every table that belongs to tenants."""

    tenant_id: Mapped[UUID] = mapped_column(index=True)

    @declared_attr.directive
    def __table_args__(cls) -> tuple[Any, ...]:  # noqa: N805
        return (TenantPolicy("tenant_id"),)


class Project(TenantOwned, Base):
    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)


class Task(TenantOwned, Base):
    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))


async def create(connection: AsyncConnection, metadata: MetaData = Base.metadata) -> None:
    await connection.run_sync(metadata.create_all)


@pytest.fixture
async def role(committed_url: str) -> AsyncIterator[str]:
    """The name of a role that doesn't exist. It is dropped at the end."""
    name = str(make_url(committed_url).database)
    yield name
    async with Database(committed_url) as database, database.autocommit() as connection:
        if await connection.scalar(text("SELECT true FROM pg_roles WHERE rolname = :name"), {"name": name}):
            await connection.execute(text(f'DROP OWNED BY "{name}"'))
            await connection.execute(text(f'DROP ROLE "{name}"'))


@pytest.fixture
async def owner(committed_url: str) -> AsyncIterator[Database]:
    """The database of the owner, without the tables of other tests."""
    async with Database(committed_url) as database:
        async with database.engine.begin() as connection:
            await connection.execute(text("DROP SCHEMA public CASCADE"))
            await connection.execute(text("CREATE SCHEMA public"))
        yield database


async def add_rows(session: AsyncSession) -> None:
    for number, tenant in enumerate(TENANTS):
        await session.execute(insert(Project), {"id": number, "tenant_id": tenant})
        await session.execute(insert(Task), {"id": number, "tenant_id": tenant, "project_id": number})


async def test_create_all_creates_the_policies_and_forces_them(database: Database) -> None:
    async with database.engine.connect() as connection:
        await create(connection)
        flags = text("SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE relname = 'tasks'")
        assert (await connection.execute(flags)).one() == (True, True)
        policies = text("SELECT policyname, cmd, qual FROM pg_policies WHERE tablename = 'tasks'")
        (policy,) = (await connection.execute(policies)).all()
        assert policy[:2] == ("tenant_isolation", "ALL")
        await connection.rollback()


async def test_a_copied_table_has_its_policies(database: Database) -> None:
    copied = MetaData()
    for table in Base.metadata.sorted_tables:
        table.to_metadata(copied, schema="elsewhere")
    assert [policy.name for policy in policies_of(copied.tables["elsewhere.tasks"])] == ["tenant_isolation"]
    async with database.engine.connect() as connection:
        await connection.execute(text("CREATE SCHEMA elsewhere"))
        await create(connection, copied)
        policies = text("SELECT count(*) FROM pg_policies WHERE schemaname = 'elsewhere'")
        assert await connection.scalar(policies) == 2
        await connection.rollback()


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        (String(3), "t = NULLIF(current_setting('app.tenant_id', true), '')"),
        (Text(), "t = NULLIF(current_setting('app.tenant_id', true), '')"),
        (SmallInteger(), "t = CAST(NULLIF(current_setting('app.tenant_id', true), '') AS smallint)"),
        (Integer(), "t = CAST(NULLIF(current_setting('app.tenant_id', true), '') AS integer)"),
        (BigInteger(), "t = CAST(NULLIF(current_setting('app.tenant_id', true), '') AS bigint)"),
    ],
)
def test_the_setting_is_cast_to_a_type_that_does_not_change_it(kind: Any, written: str) -> None:
    """A cast to VARCHAR(3) would cut 'abcd' off, and the rows of 'abc' would match."""
    table = Table("x", MetaData(), TenantPolicy("t"), Column("t", kind))
    assert policies_of(table)[0].using == written


@pytest.mark.parametrize("kind", [CHAR(3), DateTime(), String(3, collation="C")])
def test_a_type_that_can_not_be_compared_exactly_is_rejected(kind: Any) -> None:
    table = Table("x", MetaData(), Column("t", kind), TenantPolicy("t"))
    with pytest.raises(ValueError, match="RowPolicy"):
        policies_of(table)


def test_wrong_declarations_are_rejected() -> None:
    with pytest.raises(ValueError, match="no such column"):
        policies_of(Table("x", MetaData(), Column("t", Integer), TenantPolicy("u")))
    with pytest.raises(ValueError, match="same name"):
        policies_of(Table("x", MetaData(), Column("t", Integer), TenantPolicy("t"), TenantPolicy("t")))
    with pytest.raises(ValueError, match="with a prefix"):
        TenantPolicy("t", setting="tenant")
    for options in ({}, {"using": "true", "command": "INSERT"}, {"with_check": "true", "command": "SELECT"}):
        with pytest.raises(ValueError, match="the policy 'p'"):
            RowPolicy("p", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="command must be"):
        RowPolicy("p", using="true", command="TRUNCATE")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="roles"):
        RowPolicy("p", using="true", roles="web")
    assert policy_statements(Table("x", MetaData(), Column("t", Integer))) == ()


def test_a_policy_is_written_with_all_its_parts() -> None:
    policy = RowPolicy("Own", using="a", with_check="b", command="UPDATE", roles=["web", "X"], permissive=False)
    statements = policy_statements(Table("t", MetaData(), Column("a", Integer), policy, schema="s"))
    assert statements[-1] == (
        'CREATE POLICY "Own" ON s.t AS RESTRICTIVE FOR UPDATE TO web, "X" USING (a) WITH CHECK (b)'
    )


async def test_the_application_role_sees_its_tenant_and_passes_the_checks(owner: Database, role: str) -> None:
    async with owner.begin() as session:
        await create_application_role(session, role)  # before the tables: default privileges
        await create(await session.connection())
        await add_rows(session)
    app = owner.with_settings(role=role)
    assert await check_role(app) == role
    tables = await check_tenant_tables(owner, role=role)
    assert tables == [TenantTable("public.projects", is_probed=True), TenantTable("public.tasks", is_probed=True)]
    tenant = app.with_settings({SETTING: TENANTS[0]})
    async with tenant.session() as session:
        assert list(await session.scalars(select(Task.tenant_id))) == [TENANTS[0]]
        with pytest.raises(InvalidStatement):
            await session.execute(text("ALTER TABLE tasks DISABLE ROW LEVEL SECURITY"))
    async with owner.begin() as session:
        await create_application_role(session, role)  # again


async def test_roles_that_could_bypass_the_policies_are_found(owner: Database, role: str) -> None:
    with pytest.raises(NotIsolated, match="superuser"):
        await check_role(owner)
    app = owner.with_settings(role=role)
    async with owner.begin() as session:
        await create_application_role(session, role)
        await create(await session.connection())
    for change, undo, message in (
        ("ALTER ROLE {} BYPASSRLS", "ALTER ROLE {} NOBYPASSRLS", "BYPASSRLS"),
        ("GRANT postgres TO {}", "REVOKE postgres FROM {}", "BYPASSRLS"),
        ("ALTER TABLE tasks OWNER TO {}", "ALTER TABLE tasks OWNER TO postgres", "owns tasks"),
    ):
        async with owner.begin() as session:
            await session.execute(text(change.format(f'"{role}"')))
        with pytest.raises(NotIsolated, match=message):
            await check_role(app)
        async with owner.begin() as session:
            await session.execute(text(undo.format(f'"{role}"')))
    await check_role(app)
    async with owner.begin() as session:
        await session.execute(text(f'ALTER ROLE "{role}" SUPERUSER'))
        with pytest.raises(NotIsolated, match="superuser"):
            await create_application_role(session, role)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ALTER TABLE tasks DISABLE ROW LEVEL SECURITY", "tasks: row-level security isn't enabled"),
        ("ALTER TABLE tasks NO FORCE ROW LEVEL SECURITY", "tasks: row-level security isn't forced"),
        ("DROP POLICY tenant_isolation ON tasks", "tasks: there is no policy"),
        ("CREATE POLICY open ON tasks USING (true)", "tasks: a transaction without app.tenant_id sees rows"),
        (
            "CREATE POLICY open ON tasks USING (current_setting('app.tenant_id', true) <> '')",
            "tasks: the tenant '.*' sees rows of others",
        ),
        ("CREATE POLICY open ON tasks FOR DELETE USING (true)", "every tenant may change all rows by the policy open"),
        ("CREATE TABLE notes (tenant_id uuid)", "notes: row-level security isn't enabled"),
        ("CREATE VIEW open AS SELECT * FROM tasks", "open: the view reads with its owner's rights"),
        ("CREATE MATERIALIZED VIEW copied AS SELECT * FROM tasks", "copied: PostgreSQL has no policies"),
        ("CREATE VIEW open AS SELECT id FROM tasks", "open: the view reads with its owner's rights"),
        ("CREATE MATERIALIZED VIEW copied AS SELECT id FROM tasks", "copied: the materialized view has rows of all"),
    ],
)
async def test_a_table_that_is_not_protected_is_found(database: Database, change: str, message: str) -> None:
    """In one transaction, which is rolled back, the role included."""
    async with database.begin() as session:
        await create_application_role(session, APP)
        await create(await session.connection())
        await add_rows(session)
    await check_tenant_tables(database, role=APP)
    async with database.begin() as session:
        await session.execute(text(change))
    with pytest.raises(NotIsolated, match=message):
        await check_tenant_tables(database, role=APP)


async def test_policies_that_raise_an_error_without_the_setting_and_other_types_are_accepted(
    database: Database,
) -> None:
    value = f"current_setting('{SETTING}')"
    async with database.begin() as session:
        await session.execute(text("CREATE DOMAIN number AS int"))
        for name, kind, values, condition in (
            ("strict", "uuid", [str(uuid4()), str(uuid4())], f"{value}::uuid"),
            ("domains", "number", ["1", "2"], f"{value}::int"),
            ("texts", "text", ["", "x"], value),
        ):
            for statement in (
                f"CREATE TABLE {name} (tenant_id {kind})",
                f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
                f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY",
                f"CREATE POLICY own ON {name} USING (tenant_id = {condition} AND {value} <> '')",
                *(f"INSERT INTO {name} VALUES ('{each}')" for each in values),
            ):
                await session.execute(text(statement.replace(":", "\\:")))
        await create_application_role(session, APP)
    assert all(table.is_probed for table in await check_tenant_tables(database, role=APP))


async def test_a_security_invoker_view_and_exempt_tables_are_accepted(database: Database) -> None:
    async with database.begin() as session:
        with pytest.raises(NotIsolated, match="superuser"):
            await check_tenant_tables(database)
        await create_application_role(session, APP)
        await create(await session.connection())
        await session.execute(text("CREATE VIEW mine WITH (security_invoker = true) AS SELECT * FROM tasks"))
        await session.execute(text("CREATE TABLE audit (tenant_id uuid)"))
    tables = await check_tenant_tables(database, role=APP, exempt=["public.audit"])
    assert [table.name for table in tables] == ["public.mine", "public.projects", "public.tasks"]
    assert not any(table.is_probed for table in tables)  # there are no rows
    with pytest.raises(NotIsolated, match="no table has a column 'tenant'"):
        await check_tenant_tables(database, role=APP, column="tenant")


async def test_on_a_bound_database_each_scope_has_its_own_settings(database: Database) -> None:
    """As in tests: one connection, whose transaction is rolled back."""
    async with database.begin() as session:
        await create_application_role(session, APP)
        await create(await session.connection())
        await add_rows(session)
    app = database.with_settings(role=APP)
    one, two = (app.with_settings({SETTING: tenant}) for tenant in TENANTS)

    async def ids(scoped: Database) -> list[int]:
        return [*await scoped.read(lambda connection: connection.scalars(select(Task.id)))]

    with assert_statements(database, 3):
        async with one.begin() as session:
            assert list(await session.scalars(select(Task.id))) == [0]
            assert await ids(two) == [1]
            assert list(await session.scalars(select(Task.id))) == [0]
    async with one.session() as session:
        await session.execute(select(1))  # the session is closed without a commit
    async with two.autocommit() as connection:
        assert list(await connection.scalars(select(Task.id))) == [1]
    with pytest.raises(InvalidStatement):
        await one.read(lambda connection: connection.execute(text("SELECT nothing")))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with two.begin() as session:
            await session.execute(select(1))
            raise ZeroDivisionError
    assert await ids(app) == []
    assert await ids(database) == [0, 1]
    async with database.session() as session:
        found = await session.execute(text(f"SELECT current_setting('{SETTING}', true), current_setting('role')"))
        assert found.one() in {("", "none"), (None, "none")}


def test_names_of_roles_and_schemas_are_quoted_and_checked() -> None:
    statements = application_role_statements('it"s', schemas=["My Schema"])
    assert statements[1] == 'GRANT USAGE ON SCHEMA "My Schema" TO "it""s"'
    for name in ("", "x" * 64, "a\x00b", "$role$"):
        with pytest.raises(ValueError, match="role"):
            application_role_statements(name)
    with pytest.raises(TypeError, match="schemas"):
        application_role_statements("app", schemas="public")
