"""The snippets of docs/ledger.md run against the service."""

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


@pytest.mark.parametrize("refusal", Refusal)
def test_the_page_lists_every_refusal(refusal: Refusal) -> None:
    assert f"`{refusal.replace('_', '-')}`" in PAGE.read_text()
