"""Walks through pages, and what is on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sample import Specimen

from howdah import Page


def ids(page: Page[Specimen]) -> list[int]:
    return [specimen.id for specimen in page.items]


async def walk(turn: Callable[[str | None], Any], following: str) -> list[Page[Any]]:
    pages = [await turn(None)]
    while (cursor := getattr(pages[-1], following)) is not None:
        pages.append(await turn(cursor))
        assert len(pages) < 100, "going round in circles"
    return pages
