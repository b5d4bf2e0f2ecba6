"""Reads all pages of a list, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Integer
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.types import TypeEngine

from howdah import Page


def mapped(kind: TypeEngine[Any], *, nullable: bool = True) -> Any:
    """A class of a table `cases` with a column `value`, which has this type in the mapping."""

    class Separate(DeclarativeBase):
        """Has its own registry, since many classes are called `Case`."""

    columns = {
        "id": mapped_column(Integer, primary_key=True),
        "value": mapped_column(kind, nullable=nullable, deferred=True),
    }
    return type("Case", (Separate,), {"__tablename__": "cases", **columns})


def ids(page: Page[Any]) -> list[Any]:
    return [item.id for item in page.items]


async def walk(turn: Callable[[str | None], Any], following: str) -> list[Page[Any]]:
    pages = [await turn(None)]
    while (cursor := getattr(pages[-1], following)) is not None:
        pages.append(await turn(cursor))
        assert len(pages) < 100, "more than 100 pages: the cursors go round in circles"
    return pages


async def assert_pages_are(whole: Sequence[Any], turn: Callable[..., Any], *, limit: int) -> None:
    """Check that the pages that `turn(limit=…, after=…, before=…)` reads, forward and backward, are the whole list."""
    forward = await walk(lambda cursor: turn(limit=limit, after=cursor, before=None), "next")
    assert [item for page in forward for item in page.items] == list(whole)
    if len(forward) == 1:
        return
    start = forward[-1].previous
    backward = await walk(lambda cursor: turn(limit=limit, after=None, before=cursor or start), "previous")
    assert [item for page in reversed(backward) for item in page.items] == list(whole)[: -len(forward[-1].items)]
    again = await turn(limit=limit, after=backward[0].next, before=None)
    assert again.items == forward[-1].items
