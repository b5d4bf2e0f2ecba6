"""`howdah new`: names, requirements and files. `test_scaffold` runs the new service."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from howdah.cli import new as new_module
from howdah.cli.application import app
from howdah.cli.new import add_extras, installed_requirement, parse_requirement
from howdah.cli.reporting import CommandError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Distribution:
    """An installed distribution with this `direct_url.json`."""

    version = "0.3.0"

    def __init__(self, direct_url: object) -> None:
        self._text = None if direct_url is None else json.dumps(direct_url)

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self._text


def howdah_new(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["new", *arguments], catch_exceptions=False)


def test_a_new_service_is_complete_and_has_no_placeholder(folder: Path) -> None:
    finished = howdah_new("issue_tracker", "--howdah", ">=0.2")
    assert finished.exit_code == 0, finished.output
    files = {str(path.relative_to(folder / "issue_tracker")): path for path in folder.rglob("*") if path.is_file()}
    assert {
        "Makefile",
        "README.md",
        "pyproject.toml",
        ".gitignore",
        ".ci/run",
        "issue_tracker/migrations/env.py",
        "issue_tracker/migrations/versions/0001_initial.py",
        "tests/conftest.py",
    } < files.keys()
    for path in files.values():
        text = path.read_text()
        assert "{{" not in text, path
        if path.suffix == ".py":
            compile(text, str(path), "exec")
    project = tomllib.loads(files["pyproject.toml"].read_text())
    assert project["project"]["dependencies"][0] == "howdah[alembic,fastapi,logging,metrics,serving]>=0.2"
    assert project["dependency-groups"]["dev"][0] == "howdah[cli,testing]>=0.2"
    assert files[".ci/run"].stat().st_mode & 0o111
    assert "ISSUE_TRACKER_" in files["issue_tracker/settings.py"].read_text()
    assert [path.name for path in folder.iterdir()] == ["issue_tracker"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my-service", "it must be a Python name of lower-case letters, digits and _, for example my_service"),
        ("Tracker", "for example tracker"),
        ("1st", "it must be a Python name"),
        ("../x", "it must be a Python name of lower-case letters, digits and _, for example x"),
        ("größe", "it must be a Python name"),
        ("", "it must be a Python name"),
        ("class", "it is a keyword"),
        ("match", "it is a keyword"),
        ("json", "the service imports or contains another module of this name"),
        ("howdah", "the service imports or contains another module of this name"),
        ("tests", "the service imports or contains another module of this name"),
        ("greenlet", "the service imports or contains another module of this name"),  # installed here
        ("watchfiles", "the service imports or contains another module of this name"),
        ("template1", "the server has a database of its own with it"),
        ("x" * 51, "more than 50 characters"),
    ],
)
def test_a_name_that_would_not_work_is_refused(folder: Path, name: str, reason: str) -> None:
    finished = howdah_new(name)
    assert finished.exit_code == 1
    assert finished.stderr.startswith(f"error: the name {name!r} can't be used: ")
    assert reason in finished.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("existing", ["directory", "file", "link"])
def test_an_existing_path_is_not_touched(folder: Path, existing: str) -> None:
    target = folder / "tracker"
    match existing:
        case "directory":
            target.mkdir()
        case "file":
            target.write_text("mine")
        case _:
            target.symlink_to("nowhere")
    finished = howdah_new("tracker")
    assert finished.exit_code == 1
    assert "exists already: choose another name, or remove it" in finished.stderr
    assert list(folder.iterdir()) == [target]


def test_nothing_is_left_behind_if_a_file_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(new_module, "add_extras", fail)
    with pytest.raises(OSError, match="no space left"):
        howdah_new("tracker")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "requirement"),
    [
        (">=0.2", "howdah[cli]>=0.2"),
        ("howdah==0.3.1", "howdah[cli]==0.3.1"),
        ("howdah[fastapi] >=1,<2", "howdah[cli]>=1,<2"),
        ("https://example.com/howdah.whl", "howdah[cli] @ https://example.com/howdah.whl"),
        ("howdah @ git+https://example.com/x", "howdah[cli] @ git+https://example.com/x"),
    ],
)
def test_a_version_or_url_becomes_a_requirement(text: str, requirement: str) -> None:
    assert add_extras(parse_requirement(text), "cli") == requirement


def test_a_path_becomes_a_url(folder: Path) -> None:
    wheel = folder / "my wheels" / "howdah-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    source = folder / "source"
    source.mkdir()
    (source / "pyproject.toml").touch()
    assert parse_requirement("my wheels/howdah-0.1.0-py3-none-any.whl") == f"howdah @ {wheel.as_uri()}"
    assert parse_requirement("source") == f"howdah @ {source.as_uri()}"
    with pytest.raises(CommandError, match="expected a wheel, or the directory howdah/ of a clone"):
        parse_requirement("my wheels")


@pytest.mark.parametrize("text", ["nonsense", "howdahx>=1", "howdah", "0.2", ">= ", "sqlalchemy>=2", ">=1; import os"])
def test_another_requirement_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="expected an existing path, a URL, or a version"):
        parse_requirement(text)


def test_the_new_service_uses_the_howdah_that_created_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = (folder / "howdah.whl").as_uri()
    git = {"url": "https://x.org/h.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "howdah"}
    cases: list[tuple[object, str]] = [
        (None, "howdah>=0.3.0"),
        ({"url": folder.as_uri(), "dir_info": {"editable": True}}, f"howdah @ {folder.as_uri()}"),
        (git, "howdah @ git+https://x.org/h.git@abc#subdirectory=howdah"),
    ]
    for direct_url, requirement in cases:
        monkeypatch.setattr(new_module, "distribution", lambda _, found=direct_url: Distribution(found))
        assert installed_requirement() == requirement
    monkeypatch.setattr(new_module, "distribution", lambda _: Distribution({"url": wheel, "archive_info": {}}))
    with pytest.raises(CommandError, match=r"which doesn't exist any more: pass --howdah"):
        installed_requirement()
