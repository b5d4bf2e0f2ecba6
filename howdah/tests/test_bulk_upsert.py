"""`upsert_many`: its counts, the rows that it matches, and the columns that it changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import MetaData, String, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, Database, UnknownAttribute, UpsertResult, bulk, utcnow
from howdah_tests.support.sample_models import Order, Seat, Specimen, Status, User
from howdah_tests.support.sample_rows import LONG_AGO, make_orders, make_users, user_rows


class Separate(Base):
    """The base of tables that the test database doesn't have."""

    __abstract__ = True
    metadata = MetaData()


class Touched(Separate):
    __tablename__ = "touched"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]
    by_constant: Mapped[str | None] = mapped_column(onupdate="constant")
    by_expression: Mapped[str | None] = mapped_column(onupdate=func.lower("EXPRESSION"))
    by_function: Mapped[str | None] = mapped_column(onupdate=lambda: "function")


class Tagged(Separate):
    __tablename__ = "tagged"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]
    tag = mapped_column(String)
    __mapper_args__ = {"version_id_col": tag, "version_id_generator": lambda version: uuid4().hex}  # noqa: RUF012


async def test_upserts_count_created_updated_and_unchanged_rows(session: AsyncSession) -> None:
    await make_users(session, 10)
    rows = [row if i < 4 else {**row, "age": 100 + i} for i, row in enumerate(user_rows(15))]
    assert await bulk.upsert_many(session, User, rows, on=["email"], chunk_size=4) == UpsertResult(5, 6, 4)
    found = list(await session.scalars(select(User).order_by(User.age)))
    assert [user.age for user in found] == [0, 1, 2, 3, *range(104, 115)]
    assert [user.updated_at > LONG_AGO for user in found] == [False] * 4 + [True] * 11


async def test_an_upsert_never_changes_the_key_of_an_existing_row(session: AsyncSession) -> None:
    keys = await make_users(session, 2)
    rows = [{**row, "id": uuid4(), "name": "New"} for row in user_rows(3)]
    assert await bulk.upsert_many(session, User, rows, on=["email"]) == UpsertResult(1, 2, 0)
    assert list(await session.scalars(select(User.id).order_by(User.age))) == [*keys, rows[2]["id"]]
    for name in ("id", "email"):
        with pytest.raises(ValueError, match="`update` can't name the key"):
            await bulk.upsert_many(session, User, rows, on=["email"], update=[name])


async def test_an_upsert_generates_keys_for_new_rows_only(session: AsyncSession) -> None:
    keys = await make_users(session, 1)
    await bulk.upsert_many(session, User, user_rows(2, nickname="x"), on=["email"])
    assert (await session.scalars(select(User.id).order_by(User.age).limit(1))).one() == keys[0]


async def test_update_chooses_which_attributes_of_an_existing_row_change(session: AsyncSession) -> None:
    await make_users(session, 2)
    rows = user_rows(3, name="New", nickname="new")
    assert await bulk.upsert_many(session, User, rows, on=["email"], update=["nickname"]) == UpsertResult(1, 2, 0)
    found = list(await session.scalars(select(User).order_by(User.age)))
    assert [(user.name, user.nickname) for user in found] == [("User 0", "new"), ("User 1", "new"), ("New", "new")]
    assert await bulk.upsert_many(session, User, user_rows(4), on=["email"], update=[]) == UpsertResult(1, 0, 3)
    assert [user.name for user in found] == ["User 0", "User 1", "New"]


async def test_every_row_must_have_the_attributes_that_update_names(session: AsyncSession) -> None:
    """Otherwise existing rows would get the default of a column that the caller didn't pass."""
    with pytest.raises(ValueError, match="row 0 of the input, counted from 0, must name nickname"):
        await bulk.upsert_many(session, User, user_rows(2), on=["email"], update=["nickname"])
    wrongs: list[dict[str, Any]] = [{"on": ["orders"]}, {"update": ["emial"]}, {"on": ["emial"]}]
    for wrong in wrongs:
        with pytest.raises(UnknownAttribute):
            await bulk.upsert_many(session, User, user_rows(2), **wrong)


async def test_rows_with_the_same_key_have_the_result_of_single_upserts_for_every_chunk_size(
    committed_database: Database,
) -> None:
    rows = [
        {"email": "a", "name": "1", "age": 1},
        {"email": "b", "name": "1", "age": 1},
        {"email": "a", "name": "2", "age": 2},
        {"email": "a", "name": "2", "age": 2},
        {"email": "a", "name": "3", "age": 3},
    ]
    for update_names, counts, a in (
        (None, UpsertResult(2, 2, 1), ("3", 3)),
        (["name"], UpsertResult(2, 2, 1), ("3", 1)),
        ([], UpsertResult(2, 0, 3), ("1", 1)),
    ):
        for chunk_size in (1, 2, 3, 1000):
            async with committed_database.session() as session:
                options: dict[str, Any] = {"on": ["email"], "update": update_names, "chunk_size": chunk_size}
                assert await bulk.upsert_many(session, User, rows, **options) == counts
                assert (await session.execute(select(User.name, User.age).where(User.email == "a"))).one() == a


async def test_rows_with_keys_that_only_postgresql_finds_equal_have_the_result_of_single_upserts(
    session: AsyncSession,
) -> None:
    """CHAR ignores trailing blanks. Control: one statement can't write a row twice."""
    await session.execute(text("CREATE UNIQUE INDEX ON specimens (code)"))
    rows = [{"id": n, "code": code, "whole": n} for n, code in enumerate(["a", "b", "b ", "c", "a ", "d", "a"])]
    statement = insert(Specimen).values(rows)
    set_to = {"whole": statement.excluded.whole}
    with pytest.raises(DBAPIError, match="cannot affect row a second time"):
        async with session.begin_nested():
            await session.execute(statement.on_conflict_do_update(index_elements=["code"], set_=set_to))
    assert await bulk.upsert_many(session, Specimen, rows, on=["code"]) == UpsertResult(4, 3, 0)
    stored = await session.execute(select(func.trim(Specimen.code), Specimen.whole))
    found = {row[0]: row[1] for row in stored}
    assert found == {"a": 6, "b": 2, "c": 3, "d": 5}


async def test_arrays_and_values_with_an_sql_expression_are_upserted(session: AsyncSession) -> None:
    rows: list[dict[str, Any]] = [{"id": i, "whole": i, "tags": [str(i), "x"]} for i in range(50)]
    assert await bulk.upsert_many(session, Specimen, rows[:30]) == UpsertResult(30, 0, 0)
    rows[3]["tags"] = []
    assert await bulk.upsert_many(session, Specimen, rows) == UpsertResult(20, 1, 29)
    assert list(await session.scalars(select(Specimen.tags).order_by(Specimen.id))) == [row["tags"] for row in rows]


async def test_null_conflicts_with_nothing(session: AsyncSession) -> None:
    await session.execute(text("CREATE UNIQUE INDEX ON specimens (words)"))
    rows = [{"id": i, "words": word} for i, word in enumerate([None, "a", None, "b", None])]
    assert await bulk.upsert_many(session, Specimen, rows, on=["words"]) == UpsertResult(5, 0, 0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("state", [Status.PAID, None, Status.PENDING]),
        ("exact", [Decimal(2), 1, None, 3]),
        ("token", [UUID(int=3), None, UUID(int=1)]),
        ("moment", [utcnow(), None, LONG_AGO]),
        ("flag", [True, None, False]),
        ("raw", [b"b", None, b"a"]),
        ("loud", ["b", None, "a"]),
    ],
)
async def test_rows_can_be_matched_by_values_that_cannot_be_sorted(
    session: AsyncSession, name: str, values: list[Any]
) -> None:
    await session.execute(text(f"CREATE UNIQUE INDEX ON specimens ({name}, whole)"))
    rows = [{"id": i, "whole": None if i == 0 else 1, name: value} for i, value in enumerate(values)]
    assert await bulk.upsert_many(session, Specimen, rows, on=[name, "whole"]) == UpsertResult(len(values), 0, 0)


async def test_an_upsert_increments_the_version_of_changed_rows_and_cannot_set_it(session: AsyncSession) -> None:
    keys = await make_orders(session, 2)
    user = await session.scalar(select(User.id))
    rows = [{"id": key, "user_id": user, "total_cents": 1} for key in [*keys, uuid4()]]
    assert await bulk.upsert_many(session, Order, rows) == UpsertResult(1, 1, 1)
    assert sorted(await session.scalars(select(Order.version))) == [1, 1, 2]
    with pytest.raises(ValueError, match="can't check a version"):
        await bulk.upsert_many(session, Order, [{**row, "version": 1} for row in rows])
    with pytest.raises(ValueError, match="the version"):
        await bulk.upsert_many(session, Order, rows, update=["version"])


async def test_an_upsert_applies_every_kind_of_onupdate_to_changed_rows(session: AsyncSession) -> None:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    rows = [{"id": 1, "value": 1}, {"id": 2, "value": 2}]
    await bulk.upsert_many(session, Touched, rows)
    assert await bulk.upsert_many(session, Touched, [{"id": 1, "value": 1}, {"id": 2, "value": 3}]) == UpsertResult(
        0, 1, 1
    )
    found = (await session.scalars(select(Touched).order_by(Touched.id))).all()
    assert [(each.by_constant, each.by_expression, each.by_function) for each in found] == [
        (None, None, None),
        ("constant", "expression", "function"),
    ]


async def test_a_version_that_is_not_a_number_is_rejected(session: AsyncSession) -> None:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    await bulk.insert_many(session, Tagged, [{"id": 1, "value": 1}])
    with pytest.raises(TypeError, match=r"Tagged\.tag has its own version_id_generator"):
        await bulk.update_many(session, Tagged, [{"id": 1, "value": 2}])
    assert await session.scalar(select(Tagged.value)) == 1


async def test_new_rows_are_inserted_if_no_existing_row_changes(session: AsyncSession) -> None:
    assert await bulk.upsert_many(session, Seat, [{"row": "A", "number": 1}]) == UpsertResult(1, 0, 0)
    assert await bulk.upsert_many(session, Seat, [{"row": "A", "number": n} for n in (2, 1)]) == UpsertResult(1, 0, 1)


@dataclass
class SeatData:
    row: str
    number: int
    taken_by: str | None = None
    history: list[str] = field(default_factory=list)


async def test_unknown_fields_of_a_dataclass_are_reported(session: AsyncSession) -> None:
    with pytest.raises(UnknownAttribute, match="'history'"):
        await bulk.upsert_many(session, Seat, [SeatData("A", 1)])
