"""The query plans of a repository's statements."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession


async def explain(session: AsyncSession, read: Callable[[], Awaitable[Any]]) -> list[dict[str, Any]]:
    """The nodes of the query plan of the first statement that `read` sends, with its parameters."""
    sent: list[tuple[str, Any]] = []

    def record(*args: Any) -> None:
        sent.append((args[2], args[3]))

    engine = session.get_bind().engine
    event.listen(engine, "before_cursor_execute", record)
    try:
        await read()
    finally:
        event.remove(engine, "before_cursor_execute", record)
    raw = (await (await session.connection()).get_raw_connection()).driver_connection
    assert raw is not None
    (statement, parameters), *_ = sent
    return list(_nodes((await raw.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *parameters))[0]["Plan"]))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def uses_index(nodes: list[dict[str, Any]], index: str) -> bool:
    """Whether the plan's only scan is one of this index, with a condition."""
    scans = [node for node in nodes if "Scan" in node["Node Type"] and node["Node Type"] != "Bitmap Heap Scan"]
    return [(node.get("Index Name"), "Index Cond" in node) for node in scans] == [(index, True)]
