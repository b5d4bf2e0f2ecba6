"""Every Python snippet of the documentation runs, in order, against a real database."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

PROJECT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/tutorial.md", "docs/how-to.md"]

# Top-level await is allowed, and each page's snippets share their names. The tables are made before the first snippet
# that needs the database.
RUNNER = """
import ast, asyncio, inspect, os, re, sys, types

async def main(page):
    module = sys.modules["page"] = types.ModuleType("page")  # Pydantic looks for the module of a generic model
    names = vars(module)
    names["DATABASE_URL"] = os.environ["DOCUMENTED_DATABASE_URL"]
    for match in re.finditer(r"^```python\\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        line = page[: match.start(1)].count("\\n")
        source = "\\n" * line + match[1]
        code = compile(source, sys.argv[1], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            await create_tables(names["DATABASE_URL"])
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result

async def create_tables(url):
    from howdah import Base, Database
    async with Database(url) as database, database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

asyncio.run(main(open(sys.argv[1]).read()))
"""


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_runs(page: str, postgres_url: str) -> None:
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
        finished = subprocess.run(
            [sys.executable, "-c", RUNNER, PROJECT / page],
            env={**os.environ, "DOCUMENTED_DATABASE_URL": url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        administer(f'DROP DATABASE "{name}" WITH (FORCE)')
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    text = (PROJECT / page).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [link for link in links if not ((PROJECT / page).parent / link).exists()]
    assert not missing


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    table = (PROJECT / "docs/faults.md").read_text()
    tests = "".join(path.read_text() for path in PROJECT.glob("*/tests/**/test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", table))
    assert len(named) > 15
    assert not {name for name in named if f"def {name}(" not in tests}


@pytest.mark.parametrize("module", ["howdah", "howdah.bulk", "howdah.embedded", "howdah.fastapi", "howdah.testing"])
def test_the_reference_has_every_public_name(module: str) -> None:
    imported = importlib.import_module(module)
    functions = inspect.getmembers(imported, lambda member: inspect.isroutine(member) and member.__module__ == module)
    names = getattr(imported, "__all__", [name for name, _ in functions if not name.startswith("_")])
    assert names
    reference = set(re.findall(r"`(\w+)[`(]", (PROJECT / "docs/reference.md").read_text()))
    assert not {name for name in names if name not in reference}
