"""Bulk writes of tables and columns with names that the statements use, too."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import MetaData, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah import AsyncRepository, Base, MatchResult, UpsertResult, Versioned, bulk, lock


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


NAMES = (
    *("howdah_locked", "howdah_values", "howdah_requested", "howdah_position"),
    *("param_1", "position", "key0", "unnest_1"),
)


def model_of(name: str, *, exact: bool) -> type[Any]:
    """A class of a table with this name, whose columns have all the names."""
    columns = {each: mapped_column(default=0) for each in NAMES}
    key = int if exact else str
    annotations = {"id": Mapped[key], **dict.fromkeys(NAMES, Mapped[int])}  # type: ignore[valid-type]
    table = name if exact else f"{name}_"
    return type(
        f"Model_{table}",
        (Versioned, Separate),
        {
            "__tablename__": table,
            "__annotations__": annotations,
            "id": mapped_column(primary_key=True, autoincrement=False),
            **columns,
        },
    )


MODELS = [model_of(name, exact=exact) for name in NAMES for exact in (True, False)]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__tablename__)
async def test_tables_and_columns_may_have_names_that_the_statements_use(session: AsyncSession, model: Any) -> None:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    keys: list[Any] = [1, 2, 3] if model.id.type.python_type is int else ["1", "2", "3"]
    names = [name for name in model.__mapper__.columns.keys() if name not in ("id", "version")]  # noqa: SIM118
    await bulk.insert_many(session, model, [{"id": key, **dict.fromkeys(names, 1)} for key in keys])
    rows = [{"id": key, **dict.fromkeys(names, 2), "version": 1} for key in keys[:2]]
    assert await bulk.update_many(session, model, rows) == MatchResult(2, [])
    for name in names:
        assert (await session.scalars(select(getattr(model, name)).order_by(model.id))).all() == [2, 2, 1]
    rows = [{"id": key, name: number} for number, name in enumerate(names, 10) for key in keys[:1]]
    for row in rows:
        assert await bulk.update_many(session, model, [row]) == MatchResult(1, [])
    values = dict.fromkeys(names, 7)
    assert await bulk.update_by_key(session, model, keys[1:], values) == MatchResult(2, [])
    assert await bulk.update_where(session, model, model.param_1 == 7, {"position": model.position + 1}) == 2
    read = select(model).order_by(model.id).execution_options(populate_existing=True)
    for number, row in enumerate(await session.scalars(read)):
        expected = dict(zip(names, range(10, 100), strict=False)) if number == 0 else {**values, "position": 8}
        assert {name: getattr(row, name) for name in names} == expected
    assert list(await lock(session, model, keys)) == keys
    assert len(await AsyncRepository(session, model).get_by_ids(keys)) == 3
    upserted = await bulk.upsert_many(session, model, [{"id": keys[0], **values}])
    assert upserted == UpsertResult(0, 1, 0)
    assert await bulk.delete_many(session, model, keys) == MatchResult(3, [])
