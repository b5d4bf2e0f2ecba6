"""The documentation: every Python snippet runs, every link works, and every line follows the project's format."""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from howdah_tests.support.embedded_servers import open_folder

PROJECT = Path(__file__).parents[2]
README = PROJECT / "README.md"
PAGES = [
    "howdah/README.md",
    "docs/examples.md",
    *sorted(str(path.relative_to(PROJECT)) for path in PROJECT.glob("docs/guides/*.md")),
    *sorted(str(path.relative_to(PROJECT)) for path in PROJECT.glob("docs/operations/*.md")),
]
"""Their snippets run in order. `DATABASE_URL` is the URL of an empty database."""

MARKDOWN = sorted(
    str(path.relative_to(PROJECT))
    for pattern in ("*.md", "docs/**/*.md", "howdah/*.md")
    for path in PROJECT.glob(pattern)
)
MAX_LINE_LENGTH = 140
ASVS_REQUIREMENTS = 253
"""Version 5.0.0 has this many requirements of level 1 or 2."""

_FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
_FIGURES = re.compile(r"<!-- figures.*?<!-- end of figures -->", re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)]+)\)")
_CODE_OR_LINK = re.compile(r"`[^`]*`|\[[^\]]*\]\([^)]*\)")
_SENTENCE_END = re.compile(r"[.!?][)*\"]* +[A-Z*(\[\"]")
_NUMBER = re.compile(r"^(#+ | *)\d+\. ")
_LABEL = re.compile(r"\*\*[A-Z][\w ]*\.\*\* ")
"""`**Decision.** …`: the label of a paragraph, followed by its first sentence."""

# Top-level await is allowed, as in `python -m asyncio`, and the snippets of a page share their names. Each page runs in
# a process of its own. It is forked, because a new interpreter would import the dependencies again.
RUNNER = """
import ast, asyncio, importlib, inspect, json, os, re, signal, sys, types

async def main(path, url):
    module = sys.modules["page"] = types.ModuleType("page")  # Pydantic looks for the module of a generic model
    names = vars(module)
    names["DATABASE_URL"] = url
    page = open(path).read()
    for match in re.finditer(r"^```python\\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        line = page[: match.start(1)].count("\\n")
        source = "\\n" * line + match[1]
        code = compile(source, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result

for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
for line in sys.stdin:
    path, url, output = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    signal.alarm(60)
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [path]
    asyncio.run(main(path, url))
    break
"""
DEPENDENCIES = ["alembic", "asyncpg", "fastapi", "httpx", "opentelemetry.sdk.trace.export", "prometheus_client"]
DEPENDENCIES += ["pydantic_settings", "sqlalchemy.dialects.postgresql.asyncpg", "sqlalchemy.ext.asyncio", "structlog"]
DEPENDENCIES += ["uvicorn"]


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", RUNNER, json.dumps(DEPENDENCIES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_runs(page: str, postgres_url: str, runner: subprocess.Popen[str], tmp_path: Path) -> None:
    assert runner.stdin is not None
    assert runner.stdout is not None
    name = f"howdah_test_{os.getpid()}_documentation"
    maintenance = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)

    def administer(statement: str) -> None:
        async def run() -> None:
            connection = await asyncpg.connect(maintenance)
            await connection.execute(statement)
            await connection.close()

        asyncio.run(run())

    administer(f'CREATE DATABASE "{name}"')
    try:
        url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        output = tmp_path / "output"
        output.touch()
        print(json.dumps([str(PROJECT / page), url, str(output)]), file=runner.stdin, flush=True)
        exit_code = runner.stdout.readline()
    finally:
        administer(f'DROP DATABASE "{name}" WITH (FORCE)')
    assert exit_code == "0\n", output.read_text()


def test_the_readmes_program_runs_in_an_empty_directory() -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    with open_folder() as folder:
        (folder / "first.py").write_text(with_own_server(program, folder))
        for counts in ("10000 0", "0 10000"):
            finished = subprocess.run(
                [sys.executable, "first.py"], cwd=folder, capture_output=True, text=True, timeout=50, check=False
            )
            assert finished.returncode == 0, finished.stderr
            upserted, rejected, page = finished.stdout.splitlines()
            assert (upserted, rejected) == (counts, "1 uq_users_email")
            assert page.startswith("['0@example.com', '1000@example.com', '1001@example.com'] ")


def with_own_server(text: str, folder: Path) -> str:
    """Use a data directory in this folder, so that nothing is left behind. Nothing else is changed."""
    assert "EmbeddedPostgres()" in text
    return text.replace("EmbeddedPostgres()", f"EmbeddedPostgres({str(folder / 'data')!r})")


@pytest.mark.parametrize("page", MARKDOWN)
def test_every_link_has_a_target(page: str) -> None:
    path = PROJECT / page
    missing = []
    for link in _LINK.findall(_FENCE.sub("", path.read_text())):
        if re.match(r"https?:", link):
            continue
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (heading and heading not in heading_ids(target)):
            missing.append(link)
    assert missing == []


def heading_ids(page: Path) -> set[str]:
    """The ids that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN)
def test_a_line_has_at_most_140_characters(page: str) -> None:
    assert [line for line in prose_of(page) if len(line) > MAX_LINE_LENGTH] == []


@pytest.mark.parametrize("page", MARKDOWN)
def test_a_line_has_at_most_one_sentence(page: str) -> None:
    lines = (_CODE_OR_LINK.sub("X", _LABEL.sub("", _NUMBER.sub("", line))) for line in prose_of(page))
    assert [line for line in lines if _SENTENCE_END.search(line)] == []


def prose_of(page: str) -> list[str]:
    """The lines without code, tables and generated figures."""
    text = _FENCE.sub("", _FIGURES.sub("", (PROJECT / page).read_text()))
    return [line for line in text.splitlines() if not line.lstrip().startswith("|")]


@pytest.mark.parametrize("page", ["docs/faults.md", "docs/operations/bad-day.md", "docs/security/standards.md"])
def test_every_test_in_the_tables_exists(page: str) -> None:
    named = re.findall(r"`(?:(\w+/tests/[\w/]+\.py)` `)?(test_\w+)`", (PROJECT / page).read_text())
    assert len(named) > 15
    file, missing = "", []
    for path, test in named:
        file = path or file  # a control test without a path is in the file that was named before it
        if f"def {test}(" not in (PROJECT / file).read_text():
            missing.append((file, test))
    assert missing == []


def test_the_page_of_standards_has_each_requirement_of_asvs_levels_1_and_2_once() -> None:
    text = (PROJECT / "docs/security/standards.md").read_text()
    numbers = [number for cell in re.findall(r"^\| ([\d., ]+) \|", text, re.MULTILINE) for number in cell.split(", ")]
    numbers += re.findall(r"\b17\.\d\.\d\b", text)
    assert len(numbers) == len(set(numbers)) == ASVS_REQUIREMENTS


_FILE = r"`([\w/]+(?:\.py|\.sql|/\w+))`"


@pytest.mark.parametrize("source", ["howdah/src/howdah", "shop/src/shop"])
def test_every_file_in_the_tables_of_contributing_exists(source: str) -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text()
    _, _, section = text.partition(f"in `{source}/`:\n\n")
    table = section.partition("\n\n")[0]
    cells = [line.split("|")[2] for line in table.splitlines()[2:]]
    files = [name for cell in cells for name in re.findall(_FILE, cell)]
    assert len(files) > 20
    assert [name for name in files if not (PROJECT / source / name).exists()] == []


def test_every_file_that_a_new_field_of_transfers_changes_exists() -> None:
    _, _, section = (PROJECT / "CONTRIBUTING.md").read_text().partition("### Add a field to transfers\n")
    files = re.findall(_FILE, section)
    assert len(files) > 8
    sources = (PROJECT, PROJECT / "shop/src/shop")
    assert [name for name in files if not any((source / name).is_file() for source in sources)] == []


def test_every_function_that_the_architecture_names_is_in_the_file_of_its_link() -> None:
    text = (PROJECT / "ARCHITECTURE.md").read_text()
    linked = re.findall(r"\[`([\w.]+)`\]\(([\w/]+\.py)\)", text)
    assert len(set(linked)) > 50
    missing = []
    for name, file in linked:
        module, _, function = name.partition(".")
        if Path(file).stem != module or function not in defined_functions(file):
            missing.append((name, file))
    assert missing == []
    # a function that is named without a link must be linked elsewhere on the page
    unlinked = set(re.findall(r"(?<!\[)`(\w+\.[\w.]+)`", text)) - {name for name, _ in linked}
    files = [PROJECT / name for name in unlinked]
    packages = [PROJECT / "shop/src" / name.replace(".", "/") for name in unlinked]
    assert [
        file.name for file, package in zip(files, packages, strict=True) if not (file.exists() or package.exists())
    ] == []


def defined_functions(file: str) -> set[str]:
    """The functions that a file defines, as `function` and `Class.method`.

    The file is parsed and not imported, because the tests of the library's wheel run without the service.
    """
    found: set[str] = set()
    for node in ast.parse((PROJECT / file).read_text()).body:
        if isinstance(node, ast.ClassDef):
            methods = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            found.update(f"{node.name}.{method.name}" for method in methods)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return found


@pytest.mark.parametrize("package", ["howdah", "shop"])
def test_the_architecture_shows_the_layers_of_the_import_contracts(package: str) -> None:
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == [package]]
    text = (PROJECT / "ARCHITECTURE.md").read_text()
    _, _, rest = text.partition(f", `{package}` | what they are |\n")
    rows = rest.partition("\n\n")[0].splitlines()[1:]
    shown = [sorted(re.findall(r"`(\w+)`", row.split("|")[1])) for row in rows]
    # a layer in parentheses is optional
    required = [[name for name in layer.split(" | ") if not name.startswith("(")] for layer in layers]
    assert shown == [sorted(names) for names in required if names]


@pytest.mark.parametrize("page", [page for page in MARKDOWN if re.match(r"docs/decisions/\d", page)])
def test_the_list_of_decisions_contains_every_record_and_the_records_that_supersede_it(page: str) -> None:
    name = Path(page).name
    record = (PROJECT / page).read_text()
    entries = (PROJECT / "docs/decisions/README.md").read_text()
    (entry,) = re.findall(rf"^- \[{name[:4]}\]\({re.escape(name)}\) (.*)$", entries, re.MULTILINE)
    by_which = re.match(r"> (?:Superseded|Partly superseded) by (.*)", record)
    assert ("superseded" in entry) == record.startswith(">") == (by_which is not None)
    if by_which:
        assert set(re.findall(r"\b\d{4}\b", by_which[1])) == set(re.findall(r"\b\d{4}\b", entry))
    assert f"# {name[:4]} " in record


@pytest.mark.parametrize(
    "module",
    [
        *("howdah", "howdah.alembic", "howdah.bulk", "howdah.embedded", "howdah.fastapi", "howdah.serving"),
        *("howdah.tenancy", "howdah.testing"),
    ],
)
def test_the_reference_contains_every_public_name(module: str) -> None:
    imported = importlib.import_module(module)
    functions = inspect.getmembers(imported, lambda member: inspect.isroutine(member) and member.__module__ == module)
    names = getattr(imported, "__all__", [name for name, _ in functions if not name.startswith("_")])
    assert names
    reference = set(re.findall(r"`(\w+)[`(]", (PROJECT / "docs/reference.md").read_text()))
    assert not {name for name in names if name not in reference}


def test_the_check_of_the_site_finds_broken_links_and_external_resources(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("build_docs", PROJECT / "tools/build_docs.py")
    assert specification is not None
    assert specification.loader is not None
    build_docs = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(build_docs)
    (tmp_path / "other.html").write_text('<h2 id="known">Known</h2>')
    (tmp_path / "page.html").write_text(
        '<a href="other.html#known">a</a> <a href="other.html#unknown">b</a> <a href="missing.html">c</a>'
        '<script src="https://example.com/a.js"></script>'
    )
    assert build_docs.find_broken_links(tmp_path) == [
        "page.html: the link missing.html has no target",
        "page.html: the link other.html#unknown has no target",
    ]
    assert build_docs.find_external_resources(tmp_path) == [
        "page.html: https://example.com/a.js is loaded from another server"
    ]
