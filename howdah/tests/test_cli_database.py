"""`howdah db`: an embedded server that runs between commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from howdah.cli.application import app
from howdah.embedded import EmbeddedPostgres


@pytest.fixture
def project(used_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, inside a project named `note-book`. No server runs."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "Note-Book"\n')
    folder = tmp_path / "inner"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOWDAH_DATA_DIR", str(used_data))
    yield tmp_path
    server = EmbeddedPostgres(used_data)
    server.shut_down()
    assert server.pid is None


def howdah(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def howdah_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from howdah.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_started_server_runs_until_it_is_stopped(project: Path, used_data: Path) -> None:
    """The command is another process, which has ended before the next one looks for the server."""
    started = howdah_process("db", "start")
    assert started.returncode == 0, started.stderr
    assert started.stdout == f"postgresql://postgres@/note_book?host={used_data}\n"
    assert started.stderr == f"database: note_book in {used_data} (embedded PostgreSQL 18)\n"
    pid = EmbeddedPostgres(used_data).pid
    assert pid is not None
    again = howdah("db", "start", "--database", "other")
    assert again.stdout == f"postgresql://postgres@/other?host={used_data}\n"
    assert howdah("db", "url").stdout == started.stdout
    assert EmbeddedPostgres(used_data).pid == pid
    query = "SELECT string_agg(datname, ' ' ORDER BY 1) FROM pg_database WHERE datname IN ('note_book', 'other')"
    found = howdah_process("db", "psql", "-XAtc", query)
    assert (found.returncode, found.stdout) == (0, "note_book other\n")
    assert found.stderr == started.stderr
    assert howdah_process("db", "psql", "-Xc", "nonsense").returncode == 1
    stopped = howdah("db", "stop")
    assert stopped.stderr == f"server: PostgreSQL 18 in {used_data}\nstopped\n"
    assert EmbeddedPostgres(used_data).pid is None


def test_a_command_that_needs_a_running_server_says_how_to_start_it(project: Path, used_data: Path) -> None:
    for command in ("url", "psql"):
        finished = howdah("db", command)
        assert finished.exit_code == 1
        assert finished.stderr == f"error: no server runs in {used_data}: start it with howdah db start\n"
    stopped = howdah("db", "stop")
    assert (stopped.exit_code, stopped.stderr.splitlines()[1]) == (0, "no server was running")


def test_a_server_that_other_processes_use_is_not_stopped(project: Path, used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        assert howdah("db", "start").exit_code == 0
        stopped = howdah("db", "stop")
        assert stopped.exit_code == 1
        assert "other processes use it: it stops when the last one ends" in stopped.stderr
        assert server.pid is not None
    assert server.pid is None


def test_the_database_has_the_name_of_the_project(project: Path) -> None:
    from howdah.cli.database import project_database

    file = project / "pyproject.toml"
    for content, name in [
        ('[project]\nname = "a.b-C"', "a_b_c"),
        ("[tool.x]", "postgres"),
        (f'[project]\nname = "{"x" * 80}"', "x" * 63),
    ]:
        file.write_text(content)
        assert project_database() == name
    file.write_text("[project")
    finished = howdah("db", "start")
    assert finished.exit_code == 1
    assert finished.stderr.startswith(f"error: {file} isn't valid TOML: ")
    assert howdah("db", "url").stderr.startswith("error: no server runs")
    file.unlink()
    assert project_database() == "postgres"


def test_an_unreachable_database_is_reported_in_one_line(project: Path) -> None:
    migrations = project / "migrations"
    migrations.mkdir()
    (migrations / "env.py").write_text(
        "from howdah import Base\nfrom howdah.alembic import run_migrations\n\n"
        'run_migrations(Base.metadata, url="postgresql://ada:secret@/notes?host=/nowhere")\n'
    )
    (project / "pyproject.toml").write_text('[tool.alembic]\nscript_location = "%(here)s/migrations"\n')
    finished = howdah("migrate", "current", "--project", str(project))
    assert finished.exit_code == 1
    database, problem = finished.stderr.splitlines()
    assert database.startswith("database: ")
    assert problem.startswith("error: the database can't be reached: ")
    assert problem.endswith("howdah db start starts the embedded server")
    assert "secret" not in finished.output


def test_without_the_extra_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from howdah.cli import main; main()"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 1
    assert finished.stderr == "the command howdah needs the package typer: pip install 'howdah[cli]'\n"


def test_a_command_without_its_package_says_what_to_install() -> None:
    code = "import sys; sys.modules['alembic'] = None; from howdah.cli import main; main()"
    command = [sys.executable, "-c", code, "migrate", "current"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 1
    assert finished.stderr == "error: this command needs the package alembic: pip install 'howdah[cli]'\n"


def test_help_imports_only_what_it_needs() -> None:
    code = "import sys; from howdah.cli.application import app; app(['--help'], standalone_mode=False)"
    code += "; print(*sys.modules)"
    environment = {**os.environ, "NO_COLOR": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    packages = {name.partition(".")[0] for name in finished.stdout.splitlines()[-1].split()}
    assert {"howdah", "typer"} < packages
    assert packages.isdisjoint({"alembic", "fastapi", "psutil", "pytest", "platformdirs"})
