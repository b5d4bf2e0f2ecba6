"""New migrations: they do all that the models and the .sql files need, or say what they don't do."""

from __future__ import annotations

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import render_python_code
from alembic.autogenerate.api import AutogenContext
from alembic.config import Config
from alembic.operations.ops import CreateTableOp, UpgradeOps
from alembic.runtime.migration import MigrationContext
from alembic.util.exc import CommandError
from sqlalchemy import Column, MetaData, Table

from howdah import AwareDateTime, InvalidStatement
from howdah.alembic import NewMigration
from howdah.alembic._private_names import render_type_by_alembic
from howdah.alembic.programs import find_program
from howdah.tenancy import login_role_statements
from howdah_tests.support.migration_projects import Project, empty_database, run

FIRST = """
from typing import Any
from enum import StrEnum
from sqlalchemy.dialects.postgresql import ARRAY, ENUM, JSONB, TSTZRANGE, DATEMULTIRANGE, ExcludeConstraint
from howdah_tests.support.migrated_types import Money, Tsquery

class State(StrEnum):
    OPEN = "open"
    CLOSED = "it's closed"

class Issue(Base):
    __tablename__ = "issues"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    title: Mapped[str] = mapped_column(String(100), comment="shown: always")
    state: Mapped[Any] = mapped_column(text_enum(State, name="state_is_known", length=20))
    price: Mapped[Any] = mapped_column(Money, CheckConstraint("price > 0", name="price_positive"))
    created_at: Mapped[Any] = mapped_column(AwareDateTime)
    times: Mapped[Any] = mapped_column(ARRAY(AwareDateTime))
    prices: Mapped[Any] = mapped_column(ARRAY(Money(), dimensions=2))
    labels: Mapped[Any] = mapped_column(ARRAY(String(20)))
    states: Mapped[Any] = mapped_column(ARRAY(Enum("a+b", "c|d", native_enum=False, create_constraint=False, length=9)))
    during: Mapped[Any] = mapped_column(TSTZRANGE)
    days: Mapped[Any] = mapped_column(DATEMULTIRANGE)
    query: Mapped[Any] = mapped_column(Tsquery)
    details: Mapped[Any] = mapped_column(JSONB)
    kind: Mapped[Any] = mapped_column(ENUM("bug", "wish", name="kind"))
    rank: Mapped[int] = mapped_column(server_default=text("1"))
    length: Mapped[int] = mapped_column(Computed("length(title)"))
    __table_args__ = (
        ExcludeConstraint(("during", "&&"), using="gist", name="no_overlap"),
        Index("ix_issues_open", "title", postgresql_where=text("state = 'open'")),
        CheckConstraint("length(title) > 0", name="title_not_empty"),
        CheckConstraint("title ~ '^[^:]:x'", name="title_has_colon"),
    )
"""
CHANGES = {
    'CLOSED = "it\'s closed"': 'CLOSED = "it\'s closed"\n    LATE = "late"',
    "always=True": "always=False, start=100, increment=5",
    'ENUM("bug", "wish", name="kind"))': 'ENUM("ask", "bug", "task", "wish", name="kind"))\n'
    '    seen: Mapped[int] = mapped_column(CheckConstraint("seen > 0", name="seen_positive"), server_default="1")\n'
    '    mood: Mapped[Any] = mapped_column(ENUM("good", "bad", name="mood"), nullable=True)',
    'text("1")': 'text("2")',
    'using="gist"': 'using="gist", where=text("title <> \'x\'")',
    "state = 'open'\"": "state <> 'open'\"",
    "length(title) > 0": "length(title) > 1",
    '        CheckConstraint("title ~ \'^[^:]:x\'", name="title_has_colon"),\n': "",
    "shown: always": "shown: often",
}
TOUCH = """
CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.rank := 1; -- 1
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER touch BEFORE UPDATE ON issues FOR EACH ROW EXECUTE FUNCTION touch();
"""
GONE = "CREATE OR REPLACE FUNCTION gone() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;"


def changed() -> str:
    source = FIRST
    for old, new in CHANGES.items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> tuple[Project, NewMigration, NewMigration]:
    """A project with two migrations: for all its tables, and for changes of everything."""
    project = Project(tmp_path_factory.mktemp("project"), postgres_url)
    project.write_models(FIRST)
    (project.folder / "sql" / "touch.sql").write_text(TOUCH)
    (project.folder / "sql" / "gone.sql").write_text(GONE)
    first = project.migrations.new("first")
    project.write_models(changed())
    (project.folder / "sql" / "touch.sql").write_text(TOUCH.replace("NEW.rank := 1", "NEW.rank := 2"))
    (project.folder / "sql" / "gone.sql").unlink()
    return project, first, project.migrations.new("second one")


Written = tuple[Project, NewMigration, NewMigration]


def test_types_are_written_so_that_the_migration_can_import_them(written: Written) -> None:
    project, first, _ = written
    assert first.problems == []
    source = project.read_migration("0001")
    assert "from howdah_tests.support.migrated_types import Tsquery" in source
    assert "sa.Column('created_at', sa.DateTime(timezone=True), nullable=False)" in source
    assert "postgresql.ARRAY(sa.DateTime(timezone=True))" in source
    assert "postgresql.ARRAY(sa.Numeric(precision=12, scale=2), dimensions=2)" in source
    assert "howdah.models" not in source


def test_control_without_the_library_a_migration_has_a_name_that_it_does_not_import() -> None:
    table = Table("issues", MetaData(), Column("created_at", AwareDateTime()))
    assert "howdah.models.AwareDateTime(" in render_python_code(UpgradeOps([CreateTableOp.from_table(table)]))


def test_everything_that_autogenerate_leaves_out_is_written(written: Written) -> None:
    project, first, second = written
    assert "ADD CONSTRAINT ck_issues_price_positive CHECK" in project.read_migration("0001")
    assert first.downgrade_problems == []
    assert second.problems == []
    assert second.downgrade_problems[0] == "type kind: changed"  # PostgreSQL can't remove the value
    upgrade, _, downgrade = project.read_migration("0002").partition("def downgrade")
    concurrent, _, _ = project.read_migration("0003").partition("def downgrade")
    for each in (
        "CREATE TYPE mood",
        "ADD VALUE IF NOT EXISTS 'ask' BEFORE 'bug'",
        "ADD VALUE IF NOT EXISTS 'task' AFTER 'bug'",
        "SET INCREMENT BY 5 SET MINVALUE 1 SET MAXVALUE 9223372036854775807 SET START WITH 100",
        "DROP CONSTRAINT ck_issues_title_has_colon",
        "ADD CONSTRAINT no_overlap EXCLUDE USING gist (during WITH &&) WHERE",
        "SET GENERATED BY DEFAULT",
        "ALTER TABLE issues ALTER COLUMN rank SET DEFAULT 2",
        "comment='shown: often'",
        "run_sql_files(Path(__file__).with_suffix(''))",
        "DROP FUNCTION gone()",
    ):
        assert each in upgrade, each
    for each in (
        "add_constraint('ck_issues_title_not_empty', 'issues', ",
        "add_constraint('ck_issues_state_is_known', 'issues', ",
        "add_constraint('ck_issues_seen_positive', 'issues', ",
        "drop_index_concurrently('ix_issues_open', 'issues')",
        "create_index_concurrently('ix_issues_open', 'issues', ['title'], unique=False, postgresql_where=sa.text(",
    ):
        assert each in concurrent, each
    assert "op." not in concurrent
    files = [*first.paths, *second.paths]
    ruff = find_program("ruff")
    assert ruff is not None
    for arguments in (["check", "--select", "F,I"], ["format", "--check"]):
        assert subprocess.run([ruff, *arguments, *files], check=False).returncode == 0
    assert "run_sql_files(Path(__file__).with_name('0001_first'), 'touch.sql')" in downgrade


def test_the_new_migration_has_copies_of_the_sql_files_that_have_changed(written: Written) -> None:
    _, first, second = written
    assert sorted(file.name for file in first.paths[0].with_suffix("").iterdir()) == ["gone.sql", "touch.sql"]
    assert [file.name for file in second.paths[0].with_suffix("").iterdir()] == ["touch.sql"]
    assert "rank := 1" in (first.paths[0].with_suffix("") / "touch.sql").read_text()


def test_the_check_passes_and_fails_if_a_statement_is_missing(written: Written) -> None:
    project, _, second = written
    report = project.migrations.check()
    assert report.differences == []
    # an exclusion constraint has no other form
    assert [each.rule for each in report.findings] == ["constraint-missing-not-valid"]
    assert "EXCLUDE" in report.findings[0].statement
    file = second.paths[1]
    source = file.read_text()
    try:
        file.write_text(re.sub(r".*add_constraint\(.ck_issues_seen_positive.*\n", "", source))
        assert project.migrations.check(is_linted=False).differences == [
            "constraint ck_issues_seen_positive on issues: missing"
        ]
    finally:
        file.write_text(source)


def test_a_database_goes_up_down_and_up_with_these_migrations(written: Written) -> None:
    project, _, _ = written
    with empty_database(project.url) as url:
        migrations = project.migrations
        assert migrations.upgrade(url) == ["upgraded to 0001", "upgraded to 0002", "upgraded to 0003"]
        assert run(url, "SELECT prosrc LIKE '%rank := 2%' FROM pg_proc WHERE proname = 'touch'") == [(True,)]
        assert migrations.downgrade("-2", url) == ["downgraded to 0002", "downgraded to 0001"]
        assert run(url, "SELECT prosrc LIKE '%rank := 1%' FROM pg_proc WHERE proname = 'touch'") == [(True,)]
        assert migrations.downgrade("base", url) == ["downgraded to base"]
        assert run(url, "SELECT count(*) FROM pg_class WHERE relname = 'issues'") == [(0,)]
        migrations.upgrade(url)
        assert migrations.head == "0003"


def test_what_cannot_be_written_is_reported(tmp_path: Path, postgres_url: str) -> None:
    project = Project(tmp_path, postgres_url)
    model = "class A(Base):\n    __tablename__ = 'a'\n    id: Mapped[int] = mapped_column(primary_key=True)\n"
    computed = "    twice: Mapped[int] = mapped_column(Computed('id * 2'))\n"
    project.write_models(model + computed)
    assert project.migrations.new("first").problems == []
    project.write_models(model + computed.replace("* 2", "* 3"))
    with pytest.warns(UserWarning, match="Computed default on a.twice cannot be modified"):
        problems = project.migrations.new("second").problems
    assert problems[0] == "column twice of a: changed"


def test_a_changed_sequence_keeps_its_value(tmp_path: Path, postgres_url: str) -> None:
    project = Project(tmp_path, postgres_url)
    sequence = "numbers = Sequence('numbers', metadata=Base.metadata, cache=1)\n"
    project.write_models(sequence)
    assert project.migrations.new("first").problems == []
    project.write_models(sequence.replace("cache=1", "cache=2"))
    assert project.migrations.new("second").problems == []
    with empty_database(postgres_url) as url:
        project.migrations.upgrade(url, "0001")
        assert run(url, "SELECT setval('numbers', 7)") == [(7,)]
        project.migrations.upgrade(url)
        assert run(url, "SELECT nextval('numbers')") == [(8,)]


def test_a_new_migration_without_changes_is_empty(tmp_path: Path, postgres_url: str) -> None:
    project = Project(tmp_path, postgres_url)
    written = project.migrations.new("nothing")
    assert written.is_empty
    assert written.problems == []
    assert not written.paths[0].with_suffix("").exists()


def test_a_default_that_can_not_be_evaluated_twice_is_not_changed(tmp_path: Path, postgres_url: str) -> None:
    project = Project(tmp_path, postgres_url)
    model = (
        "class A(Base):\n    __tablename__ = 'a'\n    id: Mapped[int] = mapped_column(Identity(), primary_key=True)\n"
        "    key: Mapped[str] = mapped_column(server_default=text('gen_random_uuid()'))\n"
        "    tenant_id: Mapped[str] = mapped_column(server_default=text(\"current_setting('app.tenant_id')\"))\n"
    )
    project.write_models(model)
    assert project.migrations.new("first").problems == []
    second = project.migrations.new("second")
    assert (second.is_empty, second.problems) == (True, [])


def test_alembics_own_autogenerate_is_refused(written: Written) -> None:
    project, _, _ = written
    with empty_database(project.url) as url:
        project.set_options("", url)
        try:
            config = Config(toml_file=str(project.folder / "pyproject.toml"))
            command.upgrade(config, "head")
            assert run(url, "SELECT version_num FROM alembic_version") == [("0003",)]
            with pytest.raises(CommandError, match="run howdah migrate new MESSAGE"):
                command.revision(config, "more", autogenerate=True)
        finally:
            project.set_options("")


def test_a_view_of_the_sql_files_is_replaced_and_dropped(tmp_path: Path, postgres_url: str) -> None:
    project = Project(tmp_path, postgres_url)
    table = "class A(Base):\n    __tablename__ = 'a'\n    id: Mapped[int] = mapped_column(primary_key=True)\n"
    project.write_models(table)
    file = project.folder / "sql" / "view.sql"
    file.write_text("DROP VIEW IF EXISTS v; CREATE VIEW v AS SELECT id FROM a")
    assert project.migrations.new("first").problems == []
    file.unlink()
    written = project.migrations.new("second")
    assert (written.problems, written.downgrade_problems) == ([], [])
    assert "op.execute('DROP VIEW v')" in project.read_migration("0002")


def test_tables_of_other_schemas_are_created_and_those_of_unknown_schemas_are_left_alone(
    tmp_path: Path, postgres_url: str
) -> None:
    project = Project(tmp_path, postgres_url)
    project.write_models(
        "class A(Base):\n    __tablename__ = 'a'\n    id: Mapped[int] = mapped_column(primary_key=True)\n"
        "class Log(Base):\n    __tablename__ = 'log'\n    __table_args__ = {'schema': 'audit'}\n"
        "    id: Mapped[int] = mapped_column(primary_key=True)\n"
        "    a_id: Mapped[int] = mapped_column(ForeignKey('a.id'), CheckConstraint('a_id > 0', name='x'), index=True)\n"
    )
    written = project.migrations.new("first")
    assert (written.problems, written.downgrade_problems) == ([], ["schema audit: unknown"])
    assert "op.execute('CREATE SCHEMA IF NOT EXISTS audit')" in project.read_migration("0001")
    project.write_migration("0002", 'op.execute("CREATE SCHEMA other"); op.execute("CREATE TABLE other.b (id int)")')
    assert project.migrations.check().differences == []
    assert project.migrations.new("nothing").is_empty


def test_an_import_of_the_package_does_not_import_alembic() -> None:
    """A service reads the catalog and the revision, and its start should be fast."""
    code = "import sys, howdah.alembic; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_private_names_of_alembic_work() -> None:
    context = MigrationContext.configure(dialect_name="postgresql", opts={"target_metadata": MetaData()})
    context.opts |= {"sqlalchemy_module_prefix": "sa.", "user_module_prefix": None}
    autogenerate = AutogenContext(context)
    assert render_type_by_alembic(AwareDateTime().impl_instance, autogenerate) == "sa.DateTime(timezone=True)"


ROW_POLICIES = """
from uuid import UUID
from howdah.tenancy import RowPolicy, TenantPolicy

class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    is_public: Mapped[bool]
    __table_args__ = (POLICIES)
"""
_POLICIES_QUERY = (
    "SELECT polname, pg_get_expr(polqual, polrelid), relforcerowsecurity "
    "FROM pg_class LEFT JOIN pg_policy ON polrelid = pg_class.oid WHERE relname = 'notes' ORDER BY polname"
)


def test_declared_policies_are_added_changed_and_removed(tmp_path: Path, postgres_url: str) -> None:
    project = Project(tmp_path, postgres_url)
    own, readers = 'TenantPolicy("tenant_id")', 'RowPolicy("readers", using="is_public", command="SELECT")'
    for message, policies in (
        ("first", f"{own}, {readers},"),
        ("second", f"{own}, {readers.replace('is_public', 'NOT is_public')},"),
        ("third", f"{own},"),
    ):
        project.write_models(ROW_POLICIES.replace("POLICIES", policies))
        written = project.migrations.new(message)
        assert (written.problems, written.downgrade_problems) == ([], [])
    with empty_database(postgres_url) as url:
        found = []
        for revision in ("0001", "0002", "0003"):
            project.migrations.upgrade(url, revision)
            found.append(run(url, _POLICIES_QUERY))
        assert [{name: forced for name, _, forced in rows} for rows in found] == [
            {"readers": True, "tenant_isolation": True},
            {"readers": True, "tenant_isolation": True},
            {"tenant_isolation": True},
        ]
        assert [rows[0][1] for rows in found[:2]] == ["is_public", "(NOT is_public)"]
        project.migrations.downgrade("-1", url)
        assert run(url, _POLICIES_QUERY) == found[1]
    assert project.migrations.check(is_linted=False).differences == []


def test_roles_are_created_before_the_migrations_that_grant_rights(tmp_path: Path, postgres_url: str) -> None:
    """`role_statements` of env.py apply to new migrations, checks, upgrades and the SQL of migrations."""
    login, role = (f"howdah_test_{uuid4().hex}" for _ in range(2))
    project = Project(tmp_path, postgres_url)
    project.write_models(
        "from howdah.tenancy import TableGrant\n"
        "class Export(Base):\n"
        "    __tablename__ = 'exports'\n"
        f"    __table_args__ = (TableGrant({role!r}, 'SELECT'),)\n"
        "    id: Mapped[int] = mapped_column(primary_key=True)\n"
    )
    with pytest.raises(InvalidStatement, match=f'role "{role}" does not exist'):  # the control
        project.migrations.new("first")
    statements = login_role_statements(login, roles=[role])
    project.set_options(f"role_statements={statements!r}")
    try:
        written = project.migrations.new("first")
        assert not written.problems
        assert f"GRANT SELECT ON exports TO {role}" in project.read_migration("0001")
        with empty_database(postgres_url) as url:
            run(postgres_url, *(f"DROP ROLE {name}" for name in (login, role)))
            project.migrations.upgrade(url)
            assert run(url, f"SELECT has_table_privilege('{role}', 'exports', 'SELECT')") == [(True,)]
        run(postgres_url, *(f"DROP ROLE {name}" for name in (login, role)))
        assert not project.migrations.check(is_linted=False).differences
        output = StringIO()
        project.migrations.write_sql(output=output)
        assert output.getvalue().index(f"CREATE ROLE {role}") < output.getvalue().index("GRANT SELECT ON exports")
    finally:
        run(postgres_url, *(f"DROP ROLE IF EXISTS {name}" for name in (login, role)))


def test_role_statements_are_a_list(tmp_path: Path, postgres_url: str) -> None:
    project = Project(tmp_path, postgres_url, options="role_statements='CREATE ROLE web'")
    with pytest.raises(TypeError, match="must be a list of statements"):
        project.migrations.new("first")
