"""`howdah migrate`, and the project of the guide."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner, Result

from howdah.cli.migrate import app
from howdah_tests.support.migration_projects import Project, clear, empty_database

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "migrations.md"
TITLED = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)

WITHOUT_URL = """
from howdah import Base
from howdah.alembic import run_migrations
run_migrations(Base.metadata, url=None)
"""
OWN_BASE = """
from sqlalchemy import MetaData
from howdah import NAMING_CONVENTION
class Base(Base):
    __abstract__ = True
    metadata = MetaData(naming_convention=NAMING_CONVENTION)
"""


def migrate(project: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--project", str(project)])


@pytest.fixture(scope="module")
def database_of_module(postgres_url: str) -> Iterator[str]:
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture
def project(tmp_path: Path, database_of_module: str) -> Project:
    clear(database_of_module)
    project = Project(
        tmp_path, make_url(database_of_module).set(password="geheim").render_as_string(hide_password=False)
    )
    project.write_migration("0001", 'op.execute("CREATE TABLE issues (id int)")', 'op.execute("DROP TABLE issues")')
    project.write_migration("0002", 'op.execute("CREATE TABLE more (id int)")', 'op.execute("DROP TABLE more")')
    return project


def test_every_command_says_which_database_it_uses_without_the_password(project: Project) -> None:
    name = make_url(project.url).database
    assert name is not None
    shown: list[str] = []
    for arguments, output in [
        (("up", "+1"), "upgraded to 0001\n"),
        (("sql",), "CREATE TABLE more (id int);"),
        (("up",), "upgraded to 0002\n"),
        (("current",), "the database is at 0002, the newest one is 0002\n"),
        (("down", "-1"), "downgraded to 0001\n"),
        (("down", "base"), "downgraded to base\n"),
        (("down", "base"), "nothing was changed\n"),
    ]:
        result = migrate(project.folder, *arguments)
        assert result.exit_code == 0, result.output
        assert output in result.stdout
        assert "CREATE TABLE issues" not in result.stdout
        assert result.stderr.startswith("database: postgresql")
        assert name in result.stderr
        shown.append(result.output)
    assert "geheim" not in "".join(shown)


def test_the_check_reports_the_differences_and_fails(project: Project) -> None:
    result = migrate(project.folder, "check")
    assert result.exit_code == 1
    assert "geheim" not in result.output
    assert "table issues: unknown" in result.stderr
    project.set_options("unmanaged=['issues', 'mo*']")
    result = migrate(project.folder, "check")
    assert (result.exit_code, result.stdout) == (
        0,
        "migrations, models and .sql files agree, and the linter found nothing\n",
    )


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ({"pyproject.toml": ""}, "has no configuration of Alembic. Write this into pyproject.toml: [tool.alembic]"),
        ({"migrations/env.py": ""}, "env.py doesn't call run_migrations of howdah.alembic"),
        ({"migrations/env.py": WITHOUT_URL}, "env.py passes url=None to run_migrations, so pass --url"),
    ],
)
def test_a_wrong_set_up_is_explained(tmp_path: Path, planted: dict[str, str], message: str) -> None:
    project = Project(tmp_path, "postgresql://nobody@nowhere/x")
    for name, text in planted.items():
        (project.folder / name).write_text(text)
    result = migrate(project.folder, "up")
    assert result.exit_code == 1
    assert message in result.stderr


def test_the_project_of_the_guide_works(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = dict(TITLED.findall(GUIDE.read_text()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    later = {name: files.pop(name) for name in sorted(files) if "versions" in name}
    with empty_database(postgres_url) as url:
        settings = f"class Settings:\n    database_url = {url!r}\n"
        files |= {"tracker/settings.py": settings, "tracker/__init__.py": ""}
        # the models must not become those of `howdah.Base`, which other tests create
        files["tracker/models.py"] = files["tracker/models.py"].replace("class State(", OWN_BASE + "class State(")
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        try:
            assert migrate(tmp_path, "new", "issues").exit_code == 0
            for name, text in later.items():
                (tmp_path / name).write_text(text)
            result = migrate(tmp_path, "check")
            assert "the linter" not in result.stderr
            assert "column votes of issues: missing" in result.stderr  # the guide's model still has it
            assert migrate(tmp_path, "up").stdout == "upgraded to 0001\nupgraded to 0002\nupgraded to 0003\n"
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "tracker"]:
                del sys.modules[name]


def test_a_missing_role_is_explained(project: Project) -> None:
    project.write_models(
        "from howdah.tenancy import TableGrant\n"
        "class Export(Base):\n"
        "    __tablename__ = 'exports'\n"
        "    __table_args__ = (TableGrant('howdah_test_absent', 'SELECT'),)\n"
        "    id: Mapped[int] = mapped_column(primary_key=True)\n"
    )
    result = migrate(project.folder, "new", "exports")
    assert result.exit_code == 1
    assert "pass role_statements=login_role_statements(LOGIN, roles=[...]) to run_migrations" in result.stderr
