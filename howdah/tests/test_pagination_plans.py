"""The query plan of a page starts at the cursor in an index."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import CHAR, Enum, Integer, Numeric, String, TextClause, event, select, text
from sqlalchemy.dialects.postgresql import BIT, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import TypeEngine

from howdah import AsyncRepository, Page
from howdah_tests.support.page_walks import mapped
from howdah_tests.support.sample_models import User


async def plan_of(session: AsyncSession, page: Callable[[], Any]) -> tuple[Page[Any], list[dict[str, Any]]]:
    """The page, and the nodes of the plan of its statement, from the top."""
    sent: list[tuple[str, Any]] = []

    def record(*args: Any) -> None:
        sent.append((args[2], args[3]))

    engine = session.get_bind().engine
    event.listen(engine, "before_cursor_execute", record)
    try:
        result = await page()
    finally:
        event.remove(engine, "before_cursor_execute", record)
    raw = (await (await session.connection()).get_raw_connection()).driver_connection
    assert raw is not None
    (statement, parameters), *_ = sent
    nodes = [(await raw.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *parameters))[0]["Plan"]]
    while "Plans" in nodes[-1]:  # an InitPlan reads the settings, once
        nodes.append(next(node for node in nodes[-1]["Plans"] if node["Parent Relationship"] != "InitPlan"))
    return result, nodes


async def add_users(session: AsyncSession, *, created_at: TextClause) -> None:
    await session.execute(
        text(f"""
            INSERT INTO users (id, email, name, created_at, updated_at)
            SELECT gen_random_uuid(), n || '@example.org', 'N', {created_at}, now() FROM generate_series(1, 20000) AS n
            """)
    )


async def test_a_page_in_key_order_starts_at_the_cursor_in_the_index_and_sorts_nothing(
    session: AsyncSession,
) -> None:
    """Control: a page by offset reads the rows that it skips."""
    await add_users(session, created_at=text("now()"))
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


@pytest.mark.parametrize(
    ("order", "condition"),
    [
        (["created_at"], "ROW(created_at, id) > ROW("),
        (["created_at desc"], "ROW(created_at, id) < ROW("),
        (["created_at", "id desc"], "created_at >= "),
    ],
)
async def test_a_page_in_another_order_starts_at_the_cursor_in_its_index(
    session: AsyncSession, order: list[str], condition: str
) -> None:
    """Many rows have the same time. The index condition needs a comparison that isn't within an OR."""
    await add_users(session, created_at=text("'2026-01-01'::timestamptz + n / 100 * interval '1 minute'"))
    directions = ", ".join(order if len(order) > 1 else [*order, order[0].replace("created_at", "id")])
    await session.execute(text(f"CREATE INDEX ON users ({directions})"))
    await session.execute(text("ANALYZE users"))
    users = AsyncRepository(session, User)
    clauses = [getattr(User, each.split()[0]) for each in order]
    list_query = select(User).order_by(
        *(clause.desc() if "desc" in each else clause for clause, each in zip(clauses, order, strict=True))
    )
    everything = [user.id for user in await users.list(list_query, limit=None)]
    deep = (await users.page(list_query, limit=1000)).next
    for page_number in range(2, 10):
        deep = (await users.page(list_query, limit=1000, after=deep)).next
        assert deep is not None, page_number
    page, nodes = await plan_of(session, partial(users.page, list_query, limit=50, after=deep))
    assert [user.id for user in page.items] == everything[9000:9050]
    assert [node["Node Type"] for node in nodes] == ["Limit", "Index Scan"]
    assert condition in nodes[1]["Index Cond"].replace("users.", "").replace("(created_at >= ", "created_at >= ")


@pytest.mark.parametrize(
    ("column_type", "kind", "value"),
    [
        ("numeric(10, 2)", Numeric(10, 2), "n"),
        ("varchar(9)", String(9), "n"),
        ("char(9)", CHAR(9), "n"),
        ("bit(30)", BIT(30), "CAST(CAST(n AS int) AS bit(30))"),
        ("timestamptz(3)", TIMESTAMP(timezone=True, precision=3), "now() + n * interval '1 s'"),
        ("bigint", Integer(), "n"),
        ("positive", Integer(), "n"),
        ("mood", Enum(*"abc", name="mood"), "CAST(substr('abc', CAST(n % 3 + 1 AS int), 1) AS mood)"),
    ],
    ids=str,
)
async def test_the_types_of_cursors_can_use_the_index(
    session: AsyncSession, column_type: str, kind: TypeEngine[Any], value: str
) -> None:
    """Types with a length, types that differ from the mapping, and types that the database defines."""
    for each in (
        "CREATE DOMAIN positive AS int; CREATE TYPE mood AS ENUM ('a', 'b', 'c')",
        f"CREATE TABLE cases (id integer PRIMARY KEY, value {column_type} NOT NULL)",
        f"INSERT INTO cases SELECT n, {value} FROM generate_series(1, 10000) n",
        "CREATE INDEX ON cases (value, id); ANALYZE cases",
    ):
        for statement in each.split("; "):
            await session.execute(text(statement))
    model = mapped(kind, nullable=False)
    cases: AsyncRepository[Any] = AsyncRepository(session, model)
    list_query = select(model).order_by(model.value)
    first = await cases.page(list_query, limit=500)
    page, nodes = await plan_of(session, partial(cases.page, list_query, limit=50, before=first.next))
    assert page.items == first.items[:-1][-50:]
    assert [node["Node Type"] for node in nodes] == ["Limit", "Index Only Scan"]
    assert "Index Cond" in nodes[1]
