"""Autogenerate finds policies that are missing, changed or surplus, and its migrations run up and down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from howdah import Database
from howdah.alembic.policies import register
from howdah.tenancy import RowPolicy, TenantPolicy

ENV = """
from alembic import context

options = context.config.attributes
context.configure(
    connection=options["connection"],
    target_metadata=options["metadata"],
    include_name=lambda name, kind, parents: kind != "table" or name == "tasks",
)
with context.begin_transaction():
    context.run_migrations()
"""
MAKO = '''"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
'''

POLICIES = text(
    "SELECT policyname, permissive, roles, cmd, qual, with_check FROM pg_policies WHERE tablename = 'tasks' ORDER BY 1"
)
FLAGS = text("SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE relname = 'tasks'")


def declare(*policies: RowPolicy | TenantPolicy) -> MetaData:
    """The metadata of one table with these policies."""

    class Base(DeclarativeBase):
        metadata = MetaData()

    class Task(Base):
        __tablename__ = "tasks"
        __table_args__ = policies

        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[int]
        title: Mapped[str]

    return Base.metadata


class Project:
    """A folder with migrations, and the connection on which they run."""

    def __init__(self, folder: Path, connection: Connection) -> None:
        self.folder, self.connection = folder, connection
        (folder / "versions").mkdir()
        (folder / "env.py").write_text(ENV)
        (folder / "script.py.mako").write_text(MAKO)

    def run(self, call: Any, metadata: MetaData, **options: Any) -> Any:
        config = Config()
        config.set_main_option("script_location", str(self.folder))
        config.attributes.update(connection=self.connection, metadata=metadata)
        return call(config, **options)

    def migrate(self, metadata: MetaData) -> str:
        """Generate a migration, upgrade, and return its source."""
        script = self.run(command.revision, metadata, autogenerate=True, message="change")
        self.run(command.upgrade, metadata, revision="head")
        return Path(script.path).read_text()

    def policies(self) -> list[Any]:
        return [tuple(row) for row in self.connection.execute(POLICIES)]


@pytest.fixture
async def connection(committed_url: str) -> AsyncIterator[Any]:
    register()
    async with Database(committed_url) as database, database.engine.connect() as connection:
        yield connection


async def test_a_new_table_has_its_policies_and_a_downgrade_removes_them(connection: Any, tmp_path: Path) -> None:
    def check(sync: Connection) -> None:
        project, metadata = Project(tmp_path, sync), declare(TenantPolicy("tenant_id"))
        source = project.migrate(metadata)
        assert source.index("create_table('tasks'") < source.index("ENABLE ROW LEVEL SECURITY")
        assert "howdah" not in source
        assert [row[0] for row in project.policies()] == ["tenant_isolation"]
        assert sync.execute(FLAGS).one() == (True, True)
        project.run(command.check, metadata)  # raises if there is a difference
        project.run(command.downgrade, metadata, revision="base")
        assert project.policies() == []

    await connection.run_sync(check)


async def test_missing_changed_and_surplus_policies_are_found_and_restored_by_a_downgrade(
    connection: Any, tmp_path: Path
) -> None:
    def check(sync: Connection) -> None:
        project = Project(tmp_path, sync)
        old = declare(
            RowPolicy("kept", using="tenant_id > 0 AND title <> 'a:b %'"),
            RowPolicy("changed", using="tenant_id = 1", command="SELECT"),
            RowPolicy("surplus", with_check="tenant_id = 1", command="INSERT", permissive=False),
        )
        project.migrate(old)
        before = project.policies()
        project.run(command.check, old)
        new = declare(
            RowPolicy("kept", using="tenant_id > 0 AND title <> 'a:b %'"),
            RowPolicy("changed", using="tenant_id = 2", command="SELECT"),
            RowPolicy("added", using="title = 'x'", with_check="true", command="UPDATE", roles=["postgres"]),
        )
        source = project.migrate(new)
        assert "kept" not in source
        found = {row[0]: row for row in project.policies()}
        assert found.keys() == {"kept", "changed", "added"}
        assert found["changed"][4] == "(tenant_id = 2)"
        assert found["added"][2:4] == (["postgres"], "UPDATE")
        project.run(command.check, new)
        project.run(command.downgrade, new, revision="-1")
        assert project.policies() == before

    await connection.run_sync(check)


async def test_row_level_security_that_was_switched_off_is_found(connection: Any, tmp_path: Path) -> None:
    def check(sync: Connection) -> None:
        project, metadata = Project(tmp_path, sync), declare(TenantPolicy("tenant_id"))
        project.migrate(metadata)
        sync.execute(text("ALTER TABLE tasks NO FORCE ROW LEVEL SECURITY"))
        sync.execute(text("ALTER TABLE tasks DISABLE ROW LEVEL SECURITY"))
        project.migrate(metadata)
        assert sync.execute(FLAGS).one() == (True, True)

    await connection.run_sync(check)


async def test_a_column_and_its_policy_are_added_by_one_migration(connection: Any, tmp_path: Path) -> None:
    def check(sync: Connection) -> None:
        project = Project(tmp_path, sync)
        sync.execute(text("CREATE TABLE tasks (id serial PRIMARY KEY, title varchar NOT NULL)"))
        sync.execute(text("CREATE POLICY tenant_isolation ON tasks USING (title = '1')"))
        project.migrate(declare(TenantPolicy("tenant_id")))
        (policy,) = project.policies()
        assert "tenant_id" in policy[4]

    await connection.run_sync(check)


async def test_a_table_without_a_declared_policy_is_left_alone(connection: Any, tmp_path: Path) -> None:
    def check(sync: Connection) -> None:
        project = Project(tmp_path, sync)
        project.migrate(declare())
        sync.execute(text("CREATE POLICY by_hand ON tasks USING (true)"))
        project.run(command.check, declare())
        with pytest.raises(CommandError):
            project.run(command.check, declare(RowPolicy("declared", using="true")))

    await connection.run_sync(check)
