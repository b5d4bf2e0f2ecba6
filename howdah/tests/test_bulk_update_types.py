"""`update_many` of column types whose values are lists, and of versions with a custom generator."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import ARRAY, JSON, BigInteger, Dialect, Integer, MetaData, String, TypeDecorator, select
from sqlalchemy.dialects.postgresql import DOMAIN, INT4MULTIRANGE, JSONB, TSTZMULTIRANGE, Range
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah import AsyncRepository, Base, MatchResult, UpsertResult, bulk


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Tags(TypeDecorator[list[str]]):
    """An array on PostgreSQL, JSON elsewhere."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(ARRAY(String) if dialect.name == "postgresql" else JSON())


class Nested(TypeDecorator[list[str]]):
    impl = Tags
    cache_ok = True


class ListColumns(Separate):
    __tablename__ = "lists"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    spans: Mapped[Any | None] = mapped_column(INT4MULTIRANGE)
    times: Mapped[Any | None] = mapped_column(TSTZMULTIRANGE)
    word_list: Mapped[list[str] | None] = mapped_column(DOMAIN("word_list", ARRAY(String)))
    matrix: Mapped[list[list[int]] | None] = mapped_column(DOMAIN("matrix", ARRAY(Integer)))
    json: Mapped[Any | None] = mapped_column(JSONB)
    variant: Mapped[list[str] | None] = mapped_column(JSON().with_variant(ARRAY(String), "postgresql"))
    tags: Mapped[list[str] | None] = mapped_column(Tags)
    nested: Mapped[list[str] | None] = mapped_column(Nested)


@pytest.fixture
async def tables(session: AsyncSession) -> AsyncSession:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    return session


VALUES: dict[str, list[Any]] = {
    "spans": [
        [Range(1, 3), Range(5, 9)],
        [],
        None,
        [Range(2, 3)],
        [Range(None, 4)],
        [Range(1, 2), Range(3, 4), Range(5, 6)],
    ],
    "word_list": [["a", "b"], [], None, ["x"], ["a,b", '"', "{}"], ["a", "b", "c"]],
    "matrix": [[[1, 2], [3, 4]], [], None, [[5]], [[1, 2, 3]], [[1], [2], [3]]],
    "json": [[1, [2]], [], None, [{"a": []}], {"b": [1]}, "text"],
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("count", [1, 25, 1100])
async def test_values_that_are_lists_are_stored_unchanged(tables: AsyncSession, name: str, count: int) -> None:
    values = VALUES[name]
    await bulk.insert_many(tables, ListColumns, [{"id": n} for n in range(count)])
    for shift in range(len(values)):
        rows = [{"id": n, name: values[(n + shift) % len(values)]} for n in range(count)]
        expected = [row[name] for row in rows]
        assert await bulk.update_many(tables, ListColumns, rows) == MatchResult(count, [])
        found = (await tables.scalars(select(getattr(ListColumns, name)).order_by(ListColumns.id))).all()
        assert found == expected
        if name not in ("word_list", "matrix"):  # SQLAlchemy warns about every comparison of a DOMAIN
            upserted = await bulk.upsert_many(tables, ListColumns, rows[::-1])
            assert upserted == UpsertResult(0, 0, count)


@pytest.mark.parametrize("name", ["variant", "tags", "nested"])
async def test_arrays_behind_variants_and_decorators_are_stored_unchanged(tables: AsyncSession, name: str) -> None:
    """`unnest` would flatten the arrays, because PostgreSQL has no arrays of arrays."""
    rows = [{"id": n, name: ["a", "b"]} for n in range(3)]
    await bulk.insert_many(tables, ListColumns, rows)
    changes: list[dict[str, Any]] = [{"id": 0, name: ["c"]}, {"id": 1, name: []}, {"id": 2, name: None}]
    assert await bulk.update_many(tables, ListColumns, changes) == MatchResult(3, [])
    found = await tables.scalars(select(getattr(ListColumns, name)).order_by(ListColumns.id))
    assert found.all() == [["c"], [], None]


class InTens(Separate):
    __tablename__ = "in_tens"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {  # noqa: RUF012
        "version_id_col": version,
        "version_id_generator": lambda version: (version or 0) + 10,
    }


class ByDatabase(Separate):
    __tablename__ = "by_database"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(BigInteger, default=7)
    __mapper_args__ = {"version_id_col": version, "version_id_generator": False}  # noqa: RUF012


class ByDefault(Separate):
    __tablename__ = "by_default"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


async def test_a_version_with_a_custom_generator_is_rejected(tables: AsyncSession) -> None:
    """Control: an update through the ORM calls the generator."""
    loaded = await AsyncRepository(tables, InTens).create(id=1)
    loaded.value = 1
    await tables.flush()
    assert loaded.version == 20
    message = r"InTens\.version has its own version_id_generator, .* update the objects one by one, or let the database"
    with pytest.raises(TypeError, match=message):
        await bulk.update_many(tables, InTens, [{"id": 1, "value": 2}])
    with pytest.raises(TypeError, match=message):
        await bulk.update_many(tables, InTens, [{"id": 1, "value": 2, "version": 20}])
    with pytest.raises(TypeError, match=message):
        await bulk.update_by_key(tables, InTens, [1], {"value": 2})
    with pytest.raises(TypeError, match=message):
        await bulk.update_where(tables, InTens, InTens.id == 1, {"value": 2})
    with pytest.raises(TypeError, match=message):
        await bulk.upsert_many(tables, InTens, [{"id": 1, "value": 2}])
    assert (await tables.execute(select(InTens.value, InTens.version))).all() == [(1, 20)]
    assert await bulk.delete_many(tables, InTens, [1]) == MatchResult(1, [])


@pytest.mark.parametrize(("model", "expected_version"), [(ByDatabase, 7), (ByDefault, 2)])
async def test_a_version_without_a_custom_generator_gets_its_default_or_is_incremented(
    tables: AsyncSession, model: type[Any], expected_version: int
) -> None:
    await bulk.insert_many(tables, model, [{"id": 1}])
    await bulk.update_many(tables, model, [{"id": 1, "value": 2}])
    assert (await tables.execute(select(model.value, model.version))).all() == [(2, expected_version)]
