"""`upsert_many` works with any names of tables and columns."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Integer, String
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from howdah import UpsertResult, bulk

NAMES = ["excluded", "old", "new", "written", "howdah_values", "howdah_written", "param_1", "param_2", "is_new", "row"]
NAMES += ["count_1", "anon_1", "excluded_1", "set_config", "a%b", 'a"b', "a b", "a(b)", "a.b", "Ä", "select", "id_1"]


def model_of(table: str, key: str, columns: list[str], *, with_array: bool = False) -> Any:
    class Own(DeclarativeBase):
        pass

    attributes: dict[str, Any] = {
        "__tablename__": table,
        "__annotations__": {"key": Mapped[int]},
        "key": mapped_column(key, Integer, primary_key=True, autoincrement=False),
        **{f"c{n}": mapped_column(name, String, nullable=True) for n, name in enumerate(columns)},
    }
    if with_array:
        attributes["numbers"] = mapped_column(ARRAY(Integer), nullable=True)
        attributes["revision"] = mapped_column("version_1", Integer, nullable=False)
        attributes["__mapper_args__"] = {"version_id_col": attributes["revision"]}
    return type("Named", (Own,), attributes)


async def check(session: AsyncSession, model: Any, columns: int, **more: Any) -> None:
    await session.run_sync(lambda sync: model.metadata.create_all(sync.connection()))
    values = {f"c{n}": "x" for n in range(columns)}
    rows = [{"key": n, **values, **more} for n in range(30)]
    assert await bulk.upsert_many(session, model, rows[:20]) == UpsertResult(20, 0, 0)
    rows = [{**row, **(dict.fromkeys(values, "y") if row["key"] < 10 else {})} for row in rows]
    assert await bulk.upsert_many(session, model, rows) == UpsertResult(10, 10, 10)
    loaded = await session.get_one(model, 0)
    assert await bulk.upsert_many(session, model, [{**rows[0], "c0": "z"}], update=["c0"]) == UpsertResult(0, 1, 0)
    assert loaded.c0 == "z"
    assert await bulk.upsert_many(session, model, [*rows, {**rows[0], "key": 30}], update=[]) == UpsertResult(1, 0, 30)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "excluded"])
async def test_a_table_may_have_any_name(session: AsyncSession, name: str) -> None:
    await check(session, model_of(name, "id", ["value"]), 1)


@pytest.mark.parametrize("name", NAMES)
async def test_a_key_may_have_any_name(session: AsyncSession, name: str) -> None:
    await check(session, model_of("named", name, ["value"]), 1)


@pytest.mark.parametrize("with_array", [False, True])
async def test_columns_may_have_any_names(session: AsyncSession, with_array: bool) -> None:
    more: dict[str, Any] = {"numbers": [1]} if with_array else {}
    names = [name for name in NAMES if name != "a.b"]  # SQLAlchemy 2.0 binds it by the same name as "a b"
    await check(session, model_of("named", "id", names, with_array=with_array), len(names), **more)


async def test_a_table_named_excluded_is_rejected(session: AsyncSession) -> None:
    model = model_of("excluded", "id", ["value"])
    with pytest.raises(TypeError, match="can't write to a table named `excluded`"):
        await bulk.upsert_many(session, model, [{"key": 1, "c0": "x"}])
