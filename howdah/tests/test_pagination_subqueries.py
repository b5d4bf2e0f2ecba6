"""Pages of a class that is mapped to a union or another subquery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import MetaData, Select, Subquery, func, select, text, union_all
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import registry

from howdah import Page, paginate
from howdah._reads.sort_keys import is_after_position
from howdah._reads.sort_values import SortValue
from howdah.pagination import get_sort_keys
from howdah_tests.support.sample_models import User

_FIELDS = (User.id, User.email, User.age)


@pytest.fixture
def mapper() -> Iterator[registry]:
    mapper = registry(metadata=MetaData())
    yield mapper
    mapper.dispose()


def mapped_to(mapper: registry, source: Subquery) -> type:
    model = type("Listed", (), {})
    mapper.map_imperatively(model, source, primary_key=[source.c.id])
    return model


def union_of_users() -> Subquery:
    both = (select(*_FIELDS).where(User.name == "one"), select(*_FIELDS).where(User.name == "other"))
    return union_all(*both).subquery()


async def pages(session: AsyncSession, statement: object, *, limit: int) -> list[Page[object]]:
    found = [await paginate(session, statement, limit=limit)]  # type: ignore[arg-type]
    while found[-1].next is not None:
        found.append(await paginate(session, statement, limit=limit, after=found[-1].next))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("column", ["id", "email", "age"])
@pytest.mark.parametrize("descending", [False, True])
async def test_a_union_can_be_paginated_in_both_directions(
    session: AsyncSession, mapper: registry, column: str, descending: bool
) -> None:
    await session.execute(
        text("""
            INSERT INTO users (id, email, name, age, created_at, updated_at)
            SELECT gen_random_uuid(), n || '@example.org', CASE WHEN n % 3 = 0 THEN 'one' ELSE 'other' END,
                CASE WHEN n % 4 > 0 THEN n % 5 END, now(), now() FROM generate_series(1, 23) AS n
            """)
    )
    model = mapped_to(mapper, union_of_users())
    key = getattr(model, column)
    statement: Select[Any] = select(model).order_by(key.desc() if descending else key)
    found = await pages(session, statement, limit=5)
    everything = [*await session.scalars(statement.order_by(model.id.desc() if descending else model.id))]  # type: ignore[attr-defined]
    assert [item for page in found for item in page.items] == everything
    for page, before in zip(found[1:], found, strict=False):
        assert (await paginate(session, statement, limit=5, before=page.previous)).items == before.items


def condition_of(statement: object) -> str:
    """The condition of the second page, in SQL."""
    keys = get_sort_keys(statement)  # type: ignore[arg-type]
    return str(
        is_after_position(keys, [SortValue("1", None) for _ in keys], inclusive=False).compile(
            dialect=postgresql.dialect()  # type: ignore[no-untyped-call]
        )
    )


def test_a_column_that_every_part_of_a_union_has_is_compared_without_null(mapper: registry) -> None:
    """Then PostgreSQL can merge the parts by their indexes. A condition on NULL would prevent this."""
    model = mapped_to(mapper, union_of_users())
    assert "NULL" not in condition_of(select(model).order_by(model.id))  # type: ignore[attr-defined]
    assert "NULL" in condition_of(select(model).order_by(model.age))  # type: ignore[attr-defined]


def test_a_column_of_group_by_may_be_null(mapper: registry) -> None:
    """ROLLUP adds rows in which it is NULL."""
    rollup = select(User.id, func.count().label("users")).group_by(func.rollup(User.id)).subquery()
    model = mapped_to(mapper, rollup)
    assert "NULL" in condition_of(select(model).order_by(model.id))  # type: ignore[attr-defined]
