"""Statements of migrations that block a service are found, and the safe forms aren't."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from howdah import CheckViolation
from howdah.alembic import Finding
from howdah.alembic.linting import LinterMissing, lint
from howdah_tests.support.migration_projects import Project, clear, empty_database, run

CREATE = 'op.execute("CREATE TABLE issues (id int, title text, state varchar(10))")'
UNSAFE = [
    ('op.execute("CREATE INDEX ix ON issues (title)")', "require-concurrent-index-creation"),
    ('op.execute("ALTER TABLE issues ADD CONSTRAINT ck CHECK (id > 0)")', "constraint-missing-not-valid"),
    ('op.execute("ALTER TABLE issues ALTER COLUMN id TYPE bigint")', "changing-column-type"),
    ('op.execute("ALTER TABLE issues ALTER COLUMN id SET NOT NULL")', "adding-not-nullable-field"),
    ('op.execute("ALTER TABLE issues ADD COLUMN n int NOT NULL")', "adding-required-field"),
    (
        'op.execute("ALTER TABLE issues ADD COLUMN n uuid DEFAULT gen_random_uuid()")',
        "adding-field-with-default",
    ),
    ('op.execute("ALTER TABLE issues ADD CONSTRAINT u UNIQUE (id)")', "disallowed-unique-constraint"),
    ('op.execute("ALTER TABLE issues DROP COLUMN title")', "ban-drop-column"),
    ('op.execute("ALTER TABLE issues RENAME COLUMN title TO name")', "renaming-column"),
    ('op.execute("DROP TABLE issues")', "ban-drop-table"),
    (
        'op.execute("ALTER TABLE issues ADD COLUMN n int"); create_index_concurrently("ix", "issues", ["n"])',
        "committed-in-part",
    ),
]


@pytest.fixture(scope="module")
def linted(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> dict[str, list[Finding]]:
    """The findings of each unsafe migration, by revision."""
    project = Project(tmp_path_factory.mktemp("project"), postgres_url)
    project.write_migration("0001", CREATE)
    for number, (upgrade, _) in enumerate(UNSAFE, start=2):
        recreate = 'op.execute("DROP TABLE IF EXISTS issues"); '
        project.write_migration(f"{2 * number:04d}", upgrade)
        project.write_migration(f"{2 * number - 1:04d}", recreate + CREATE)
    project.write_migration("0002", "pass")
    found: dict[str, list[Finding]] = {}
    for each in project.migrations.check().findings:
        found.setdefault(each.revision, []).append(each)
    return found


@pytest.mark.parametrize(("number", "rule"), [(number, rule) for number, (_, rule) in enumerate(UNSAFE, start=2)])
def test_a_statement_that_blocks_a_service_is_found(linted: dict[str, list[Finding]], number: int, rule: str) -> None:
    found = {each.rule: each for each in linted[f"{2 * number:04d}"]}
    assert rule in found
    assert "issues" in found[rule].statement
    assert f'accepted_findings = {{"{rule}": "the reason"}}' in str(found[rule])


def test_tables_that_the_migration_creates_are_not_reported(linted: dict[str, list[Finding]]) -> None:
    assert "0001" not in linted


@pytest.fixture(scope="module")
def database_of_module(postgres_url: str) -> Iterator[str]:
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture
def project(tmp_path: Path, database_of_module: str) -> Project:
    clear(database_of_module)
    project = Project(tmp_path, database_of_module)
    project.write_migration("0001", CREATE)
    return project


def test_the_safe_forms_have_no_findings_and_can_be_written_as_sql(project: Project) -> None:
    project.write_migration("0002", 'create_index_concurrently("ix", "issues", ["title"], unique=True)')
    project.write_migration("0003", 'add_constraint("ck", "issues", "CHECK (title ~ \':x\')")')
    project.write_migration("0004", 'set_not_null("issues", "id")')
    project.write_migration("0005", 'drop_index_concurrently("ix", "issues")')
    report = project.migrations.check()
    assert (report.findings, report.unneeded) == ([], [])
    sql = StringIO()
    project.migrations.write_sql("0001:head", sql)
    assert "COMMIT;\n\nSET lock_timeout = '600000ms';\n\nCREATE UNIQUE INDEX CONCURRENTLY" in sql.getvalue()
    assert "RESET" not in sql.getvalue()
    assert "ADD CONSTRAINT ck CHECK (title ~ ':x') NOT VALID;" in sql.getvalue()


def test_an_accepted_finding_is_not_reported_and_an_acceptance_without_a_finding_is(project: Project) -> None:
    accepted = 'accepted_findings = {"ban-drop-column": "never used", "ban-drop-table": "gone"}'
    project.write_migration("0002", 'op.execute("ALTER TABLE issues DROP COLUMN title")', more=accepted)
    report = project.migrations.check()
    assert report.findings == []
    assert report.unneeded == [
        "migration 0002: accepted_findings has ban-drop-table, which the linter doesn't find: remove it"
    ]
    project.set_options("linted_after='0002'")
    assert project.migrations.check().unneeded == []


def test_without_the_linter_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LinterMissing, match="add squawk-cli to the development dependencies, or use --no-lint"):
        lint({"0001": [("SELECT 1", False)]}, {}, version=18)


def test_a_constraint_that_a_row_violates_can_be_added_after_the_row_is_corrected(project: Project) -> None:
    project.write_migration("0002", 'set_not_null("issues", "id")')
    project.write_migration("0003", 'add_constraint("ck", "issues", "CHECK (id > 0)")')
    project.migrations.upgrade(None, "0002")
    run(project.url, "INSERT INTO issues VALUES (0)")
    with pytest.raises(CheckViolation):
        project.migrations.upgrade()
    run(project.url, "UPDATE issues SET id = 1")
    assert project.migrations.upgrade() == ["upgraded to 0003"]
    assert run(project.url, "SELECT convalidated FROM pg_constraint WHERE conname = 'ck'") == [(True,)]


def test_an_index_whose_build_has_failed_is_dropped_and_can_be_built_again(project: Project) -> None:
    project.write_migration("0002", 'create_index_concurrently("ix", "issues", ["id"], unique=True)')
    project.migrations.upgrade(None, "0001")
    run(project.url, "INSERT INTO issues VALUES (1), (1)")
    with pytest.raises(Exception, match="could not create unique index"):
        project.migrations.upgrade()
    assert run(project.url, "SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid") == []
    run(project.url, "DELETE FROM issues")
    assert project.migrations.upgrade() == ["upgraded to 0002"]
    assert run(project.url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix'::regclass") == [(True,)]
