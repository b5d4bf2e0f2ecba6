"""`howdah new`: the new service works at once, with the built wheel, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from howdah_tests.support.terminal import Terminal, open_terminal
from howdah_tests.support.tutorial import TUTORIAL, follow, read_steps


@pytest.mark.timeout(300)
def test_a_new_service_passes_its_tests_and_checks_and_serves() -> None:
    """The commands of the tutorial's last section run as printed."""
    with open_terminal() as terminal:
        terminal.run("uv build --quiet --wheel --package howdah --directory ~/howdah --out-dir ~/dist")
        terminal.run("mkdir notes notes/notes && cd notes/notes && uv venv --quiet && . .venv/bin/activate")
        terminal.run('uv pip install --quiet "$(ls ~/dist/howdah-*.whl)[cli]"')
        _, _, section = TUTORIAL.read_text().partition("## 6. Create a service with one command")
        steps = list(read_steps(section))
        assert [step.text for step in steps][1:] == ["howdah new tracker", "cd tracker", "make test"]
        for step in steps:
            follow(terminal, step)
        terminal.run("deactivate; make migrate")
        add_a_column(terminal)
        add_the_code_of_the_tutorial(terminal)
        terminal.run("make check")
        assert_that_mypy_finds_an_error(terminal)
        terminal.serve("make serve")
        use_service(f"http://127.0.0.1:{terminal.port}")
        fuzz_service(f"http://127.0.0.1:{terminal.port}")
        terminal.interrupt()
        assert "raise max_connections" in terminal.run("! .venv/bin/python -m tracker.main --workers 20")
        terminal.serve(".venv/bin/python -m tracker.main --workers 2")
        use_workers(f"http://127.0.0.1:{terminal.port}")
        terminal.interrupt()
        terminal.run(".venv/bin/howdah db stop")


def add_a_column(terminal: Terminal) -> None:
    """Change the schema as the service's README says. `make check` then compares the migrations with the models."""
    models = terminal.home / "notes/tracker/tracker/models.py"
    text = models.read_text()
    models.write_text(text.replace("    is_done:", "    effort: Mapped[int | None]\n    is_done:"))
    assert models.read_text() != text
    terminal.run(".venv/bin/howdah migrate new 'tasks have an effort'")


def add_the_code_of_the_tutorial(terminal: Terminal) -> None:
    """Let the type checks of the service read the tutorial's files, too. A second run of them takes many seconds."""
    folder = terminal.home / "notes/tracker/tests/tutorial"
    folder.mkdir()
    steps = [step for step in read_steps(TUTORIAL.read_text()) if step.text.endswith(".py")]
    assert len(steps) > 5
    for step in steps:
        name = step.text.replace("/", "_").replace("conftest", "tutorial_conftest")  # unique among all modules
        (folder / name).write_text(step.content)
    (folder / "ruff.toml").write_text("line-length = 120\n")  # its own root: `models` is no package from an index


def assert_that_mypy_finds_an_error(terminal: Terminal) -> None:
    """The control: the files of the tutorial are checked."""
    wrong = terminal.home / "notes/tracker/tests/tutorial/wrong.py"
    wrong.write_text("from models import Note\n\nNote().title.nothing\n")
    assert "Found 1 error in 1 file" in terminal.run("! .venv/bin/mypy")
    wrong.unlink()


def use_service(url: str) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        project = client.post("/projects", json={"name": "Garden"}).raise_for_status().json()
        tasks = client.post(f"/projects/{project['id']}/tasks", json=[{"title": "dig"}, {"title": "sow"}])
        assert len(tasks.raise_for_status().json()) == 2
        found = client.get(f"/projects/{project['id']}").raise_for_status().json()
        assert [task["title"] for task in found["tasks"]] == ["dig", "sow"]
        assert [item["name"] for item in client.get("/projects").json()["items"]] == ["Garden"]
        assert client.post("/projects", json={"name": "Garden"}).status_code == 409
        assert "howdah" in client.get("/metrics").text


def use_workers(url: str) -> None:
    """Two connections reach two workers, and the metrics are those of both."""
    with httpx.Client(base_url=url, timeout=30) as first, httpx.Client(base_url=url, timeout=30) as second:
        for client in (first, second):
            assert client.get("/projects").status_code == 200
        metrics = first.get("/metrics").text
    assert "howdah_workers 2.0" in metrics
    assert 'howdah_requests_total{method="GET",route="/projects",status="200"} 2.0' in metrics


def fuzz_service(url: str) -> None:
    """schemathesis finds no difference between the service and its description."""
    if find_spec("schemathesis") is None:  # the tests of the wheel install less
        return
    finished = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            *("--no-color", "run", f"{url}/openapi.json", "--checks", "all", "--continue-on-failure"),
            *("--seed", "1", "--max-examples", "3", "--warnings", "off", "--generation-database", "none"),
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "howdah.testing.fuzzing"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
