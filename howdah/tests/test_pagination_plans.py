"""A page reads the index from its cursor on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sample import User
from sqlalchemy import event, func, insert, literal, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository, Page


async def plan_of(session: AsyncSession, page: Callable[[], Any]) -> tuple[Page[Any], list[dict[str, Any]]]:
    """The page, and the nodes of its statement's plan, from the top."""
    sent: list[tuple[str, Any]] = []

    def remember(*args: Any) -> None:
        sent.append((args[2], args[3]))

    engine = session.get_bind().engine
    event.listen(engine, "before_cursor_execute", remember)
    try:
        result = await page()
    finally:
        event.remove(engine, "before_cursor_execute", remember)
    raw = (await (await session.connection()).get_raw_connection()).driver_connection
    assert raw is not None
    (statement, parameters), *_ = sent
    nodes = [(await raw.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *parameters))[0]["Plan"]]
    while "Plans" in nodes[-1]:
        nodes.append(nodes[-1]["Plans"][0])
    return result, nodes


async def test_a_page_in_key_order_reads_the_index_from_the_cursor_on_and_sorts_nothing(
    session: AsyncSession,
) -> None:
    """Control: a page by offset reads what it skips."""
    numbers = select(func.generate_series(1, 20_000).label("n")).subquery()
    columns = [func.gen_random_uuid(), func.concat(numbers.c.n, "@example.org"), literal("N"), func.now(), func.now()]
    await session.execute(
        insert(User).from_select(["id", "email", "name", "created_at", "updated_at"], select(*columns))
    )
    await session.execute(text("ANALYZE users"))
    users = AsyncRepository(session, User)
    everything = [user.id for user in await users.list(limit=None)]
    for statement in (select(User), select(User).order_by(User.id.desc())):
        page = partial(users.page, statement, limit=50)
        first, nodes = await plan_of(session, page)
        assert [node["Node Type"] for node in nodes] == ["Limit", "Index Scan"]
        second, nodes = await plan_of(session, partial(page, after=first.next))
        assert [node["Node Type"] for node in nodes] == ["Limit", "Index Scan"]
        assert "Index Cond" in nodes[1]
        back, nodes = await plan_of(session, partial(page, before=second.previous))
        assert [node["Node Type"] for node in nodes] == ["Limit", "Index Scan"]
        assert "Index Cond" in nodes[1]
        assert back.items == first.items
    assert [user.id for user in second.items] == everything[::-1][50:100]
    _, nodes = await plan_of(session, lambda: users.list(offset=19_000, limit=50))
    assert "Index Cond" not in nodes[-1]
