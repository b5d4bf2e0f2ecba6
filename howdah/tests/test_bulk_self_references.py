"""Rows that refer to each other: the result is the same for any number and order of rows, with COPY and without."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import ARRAY, ForeignKey, ForeignKeyConstraint, Integer, String, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import MetaData

from howdah import Base, CheckViolation, Database, ForeignKeyViolation, UniqueViolation, UUIDv7PrimaryKey, bulk, uuid7
from howdah._writes.references import find_self_references, order_parents_first
from howdah.testing import assert_statements


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class TreeNode(UUIDv7PrimaryKey, Separate):
    __tablename__ = "nodes"

    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("nodes.id"))
    name: Mapped[str] = mapped_column(String(20), unique=True, default=lambda: str(uuid7())[-20:])
    tags: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))


class TreeNumbered(Separate):
    """The database generates the keys."""

    __tablename__ = "numbered_nodes"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("numbered_nodes.id"))
    code: Mapped[str | None] = mapped_column(unique=True)
    parent_code: Mapped[str | None] = mapped_column(ForeignKey("numbered_nodes.code"))


class TreeFolder(Separate):
    __tablename__ = "folders"
    __table_args__ = (ForeignKeyConstraint(["tenant", "parent"], ["folders.tenant", "folders.number"]),)

    tenant: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent: Mapped[int | None]


class TreePerson(UUIDv7PrimaryKey, Separate):
    __tablename__ = "people"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012

    kind: Mapped[str]
    friend_id: Mapped[UUID | None] = mapped_column(ForeignKey("people.id"))


class TreeWorker(TreePerson):
    __tablename__ = "workers"
    __mapper_args__ = {"polymorphic_identity": "worker"}  # noqa: RUF012

    id: Mapped[UUID] = mapped_column(ForeignKey("people.id"), primary_key=True)
    boss_id: Mapped[UUID | None] = mapped_column(ForeignKey("workers.id"))


SIZES = [2, 19, 20, 1100]


@pytest.fixture(params=[True, False], ids=["copy", "insert"])
async def session(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[AsyncSession]:
    async with Database(database_url, copy=request.param) as database, database.session() as session:
        await (await session.connection()).run_sync(Separate.metadata.create_all)
        yield session


def has_copy(session: AsyncSession) -> bool:
    return bool(session.get_bind().engine.get_execution_options()["howdah_copy"])


def chain(count: int) -> list[dict[str, Any]]:
    """Rows whose parent is the next row."""
    ids = [uuid7() for _ in range(count)]
    return [{"id": key, "parent_id": parent} for key, parent in zip(ids, [*ids[1:], None], strict=True)]


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("order", ["children first", "any", "parents first"])
async def test_a_row_may_come_before_the_row_that_it_refers_to(session: AsyncSession, count: int, order: str) -> None:
    rows = chain(count)
    if order == "any":
        random.Random(count).shuffle(rows)
    elif order == "parents first":
        rows.reverse()
    created = await bulk.insert_many(session, TreeNode, rows)
    assert created.keys == [row["id"] for row in rows]
    assert dict((await session.execute(select(TreeNode.id, TreeNode.parent_id))).all()) == {
        row["id"]: row["parent_id"] for row in rows
    }


@pytest.mark.parametrize("count", SIZES)
async def test_a_root_may_leave_out_its_parent(session: AsyncSession, count: int) -> None:
    rows = chain(count)
    del rows[-1]["parent_id"]
    assert (await bulk.insert_many(session, TreeNode, rows)).keys == [row["id"] for row in rows]
    assert await session.scalar(select(func.count()).select_from(TreeNode).where(TreeNode.parent_id.is_(None))) == 1


@pytest.mark.parametrize("count", SIZES)
async def test_rows_with_an_array_may_refer_to_later_rows(session: AsyncSession, count: int) -> None:
    rows = [{**row, "tags": [1, 2]} for row in chain(count)]
    assert (await bulk.insert_many(session, TreeNode, rows)).count == count


@pytest.mark.parametrize("count", SIZES)
async def test_rows_may_refer_to_each_other_in_a_circle(session: AsyncSession, count: int) -> None:
    rows = chain(count)
    rows[-1]["parent_id"] = rows[0]["id"]
    assert (await bulk.insert_many(session, TreeNode, rows)).count == count


@pytest.mark.parametrize("count", SIZES)
async def test_a_circle_of_rows_with_arrays_is_copied_or_rejected(session: AsyncSession, count: int) -> None:
    """Without COPY a statement inserts at most 1,000 rows with arrays."""
    rows = [{**row, "tags": [1]} for row in chain(count)]
    rows[-1]["parent_id"] = rows[0]["id"]
    if has_copy(session) or count <= 1000:
        assert (await bulk.insert_many(session, TreeNode, rows)).count == count
    else:
        with pytest.raises(ForeignKeyViolation):
            await bulk.insert_many(session, TreeNode, rows)


async def test_a_row_may_refer_to_itself(session: AsyncSession) -> None:
    key = uuid7()
    assert (await bulk.insert_many(session, TreeNode, [{"id": key, "parent_id": key}])).keys == [key]


@pytest.mark.parametrize("count", SIZES)
async def test_a_rejected_row_is_identified_and_no_child_is_blamed_for_its_parent(
    session: AsyncSession, count: int
) -> None:
    rows = [{**row, "name": str(position)} for position, row in enumerate(chain(count))]
    position = count // 2
    await bulk.insert_many(session, TreeNode, [{"name": str(position)}])
    with pytest.raises(UniqueViolation) as caught:
        await bulk.insert_many(session, TreeNode, rows)
    assert caught.value.row_index == position
    rows[position]["name"] = "other"
    rows[0]["parent_id"], missing = uuid7(), rows[0]["parent_id"]
    with pytest.raises(ForeignKeyViolation) as missing_parent:
        await bulk.insert_many(session, TreeNode, rows)
    assert missing_parent.value.row_index == 0
    rows[0]["parent_id"] = missing
    assert (await bulk.insert_many(session, TreeNode, rows)).count == count


@pytest.mark.parametrize("count", SIZES)
async def test_a_reference_to_a_later_chunk_is_rejected_and_its_row_is_identified(
    session: AsyncSession, count: int
) -> None:
    rows = chain(count)
    half = count // 2
    with pytest.raises(ForeignKeyViolation) as caught:
        await bulk.insert_many(session, TreeNode, rows, chunk_size=half)
    assert caught.value.row_index == half - 1
    rows.reverse()
    assert (await bulk.insert_many(session, TreeNode, rows, chunk_size=half)).count == count


@pytest.mark.parametrize("count", SIZES)
async def test_a_foreign_key_may_refer_to_another_unique_column(session: AsyncSession, count: int) -> None:
    codes = [f"c{number}" for number in range(count)]
    rows = [{"code": code, "parent_code": parent} for code, parent in zip(codes, [*codes[1:], None], strict=True)]
    keys = (await bulk.insert_many(session, TreeNumbered, rows)).keys
    found = dict((await session.execute(select(TreeNumbered.id, TreeNumbered.code))).all())
    assert [found[key] for key in keys] == codes


@pytest.mark.parametrize("count", SIZES)
async def test_a_foreign_key_may_have_two_columns(session: AsyncSession, count: int) -> None:
    rows = [{"tenant": 1, "number": number, "parent": number + 1} for number in range(count - 1)]
    rows.append({"tenant": 1, "number": count - 1, "parent": None})  # type: ignore[dict-item]
    assert (await bulk.insert_many(session, TreeFolder, rows)).count == count


@pytest.mark.parametrize("count", SIZES)
async def test_rows_of_joined_table_inheritance_may_refer_to_each_other(session: AsyncSession, count: int) -> None:
    ids = [uuid7() for _ in range(count)]
    rows = [{"id": key, "boss_id": boss, "friend_id": boss} for key, boss in zip(ids, [*ids[1:], None], strict=True)]
    assert (await bulk.insert_many(session, TreeWorker, rows)).keys == ids
    assert await session.scalar(select(func.count()).select_from(TreeWorker)) == count


async def test_keys_that_are_passed_as_text_are_matched(session: AsyncSession) -> None:
    rows = [{"id": str(row["id"]), "parent_id": row["parent_id"]} for row in chain(5)]
    assert (await bulk.insert_many(session, TreeNode, rows)).count == 5


async def test_rows_that_refer_to_each_other_are_written_by_one_statement(session: AsyncSession) -> None:
    with assert_statements(session, 1):
        await bulk.insert_many(session, TreeNode, chain(5))
    with assert_statements(session, 1) as sent:
        await bulk.insert_many(session, TreeNumbered, [{"code": "x"}, {"code": "y"}])
    assert sent[0].startswith("INSERT")  # the database generates the keys, so no row can refer to another one


async def test_a_check_violation_identifies_its_row_among_rows_that_refer_to_each_other(session: AsyncSession) -> None:
    await session.execute(text("ALTER TABLE nodes ADD CHECK (name <> 'bad')"))
    rows = [{**row, "name": f"n{position}"} for position, row in enumerate(chain(10))]
    rows[3]["name"] = "bad"
    with pytest.raises(CheckViolation) as caught:
        await bulk.insert_many(session, TreeNode, rows)
    assert caught.value.row_index == 3


def test_only_foreign_keys_within_the_model_are_self_references() -> None:
    assert [tuple(each) for each in find_self_references(TreeNode)] == [(("parent_id",), ("id",))]
    assert [tuple(each) for each in find_self_references(TreeFolder)] == [(("tenant", "parent"), ("tenant", "number"))]
    assert {each.referring for each in find_self_references(TreeWorker)} == {("friend_id",), ("boss_id",)}


def test_rows_keep_their_order_if_possible_and_a_long_chain_needs_no_recursion() -> None:
    references = find_self_references(TreeNode)
    rows = chain(50_000)
    assert order_parents_first(references, rows) == [*reversed(range(50_000))]
    assert order_parents_first(references, rows[::-1]) == [*range(50_000)]
    rows = [
        {"id": name, "parent_id": parent}
        for name, parent in [("a", "-"), ("b", "d"), ("c", "-"), ("d", "a"), ("e", "c")]
    ]
    assert order_parents_first(references, rows) == [0, 3, 1, 2, 4]
