"""The page about the ledger runs against the service, as it stands."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import httpx
import pytest

from shop.ledger.requests import Refusal

PAGE = Path(__file__).parents[2] / "docs/ledger.md"


async def test_every_snippet_runs(client: httpx.AsyncClient) -> None:
    page = PAGE.read_text()
    names: dict[str, object] = {"client": client}
    for match in re.finditer(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        source = "\n" * page[: match.start(1)].count("\n") + match[1]
        result = eval(compile(source, PAGE.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)  # noqa: S307
        if inspect.isawaitable(result):
            await result


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text())
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_is_told_of(refusal: Refusal) -> None:
    assert f"`{refusal.replace('_', '-')}`" in PAGE.read_text()
