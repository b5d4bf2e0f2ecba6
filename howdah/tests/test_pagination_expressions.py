"""Pages in the order of an expression are the whole list. The type is that of PostgreSQL, not SQLAlchemy's guess."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Numeric,
    Text,
    case,
    cast,
    extract,
    func,
    insert,
    literal,
    null,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import UserDefinedType

from howdah import AsyncRepository, Base, JsonView
from howdah.pagination import paginate_as, with_total_order
from howdah_tests.support.page_walks import assert_pages_are, walk


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Gadget(Separate):
    __tablename__ = "gadgets"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    whole: Mapped[int | None]
    other: Mapped[int | None]
    price: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
    rate: Mapped[Decimal | None] = mapped_column(Numeric(6, 4))
    real: Mapped[float | None] = mapped_column(Float)
    big: Mapped[int | None] = mapped_column(BigInteger)
    name: Mapped[str | None]
    code: Mapped[str | None]
    moment: Mapped[datetime | None]
    later: Mapped[datetime | None]
    day: Mapped[date | None]
    span: Mapped[timedelta | None]
    doc: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    tags: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    numbers: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))


class Piece(Separate):
    __tablename__ = "pieces"

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey(Gadget.id))
    cents: Mapped[int | None]
    cost: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
    label: Mapped[str | None]


class GadgetOut(BaseModel):
    id: int


GADGET_VIEW = JsonView(Gadget, GadgetOut)

EXPRESSIONS: list[Any] = [
    Gadget.price * Gadget.rate,
    Gadget.price / func.nullif(Gadget.whole, 0),
    Gadget.price - Gadget.real,
    Gadget.whole + Gadget.other,
    Gadget.big * 1000,
    Gadget.whole / 7.0,
    Gadget.real * Gadget.rate,
    Gadget.real / 3,
    -Gadget.whole,
    Gadget.whole % 3,
    func.sqrt(func.abs(Gadget.whole)),
    func.length(Gadget.name),
    func.round(Gadget.price),
    func.greatest(Gadget.whole, Gadget.price),
    func.coalesce(Gadget.price, Gadget.whole),
    func.coalesce(Gadget.whole, Gadget.real),
    case((Gadget.whole > 1, Gadget.price), else_=Gadget.real),
    case((Gadget.whole > 1, "x"), (Gadget.whole.is_(None), "y"), else_=Gadget.name),
    cast(Gadget.price, Integer),
    cast(Gadget.whole, Text),
    cast(Gadget.real, Numeric),
    extract("epoch", Gadget.moment),
    extract("month", Gadget.day),
    Gadget.later - Gadget.moment,
    func.age(Gadget.later, Gadget.moment),
    Gadget.moment + Gadget.span,
    Gadget.moment - Gadget.span,
    Gadget.day + Gadget.whole,
    func.date_trunc("hour", Gadget.moment),
    func.to_char(Gadget.day, "YYYY"),
    func.justify_hours(Gadget.span),
    Gadget.span,
    Gadget.name + Gadget.code,
    Gadget.name.concat(Gadget.whole),
    func.lower(Gadget.name),
    Gadget.name.collate("C"),
    func.lower(Gadget.name).collate("C"),
    func.coalesce(Gadget.name, Gadget.code),
    func.nullif(Gadget.name, ""),
    Gadget.whole > Gadget.other,
    Gadget.name.is_(None),
    (Gadget.whole > 0) & (Gadget.other > 0),
    Gadget.doc,
    Gadget.doc["k"],
    Gadget.doc["k"].as_string(),
    Gadget.doc["k"]["z"],
    func.jsonb_typeof(Gadget.doc["k"]),
    Gadget.doc["n"].as_numeric(40, 5),
    cast(Gadget.doc["n"].as_string(), Numeric),
    func.coalesce(Gadget.doc["k"], cast("0", JSONB)),
    Gadget.tags,
    Gadget.tags[1],
    Gadget.numbers,
    array([Gadget.whole, Gadget.other]),
    func.cardinality(Gadget.tags),
    func.numrange(func.least(Gadget.price, Gadget.rate), func.greatest(Gadget.price, Gadget.rate)),
    func.tstzrange(func.least(Gadget.moment, Gadget.later), null()),
    func.decode(func.md5(Gadget.name), "hex"),
    func.convert_to(Gadget.name, "UTF8"),
    func.int8(Gadget.whole),
    select(func.sum(Piece.cents)).where(Piece.item_id == Gadget.id).scalar_subquery(),
    select(func.count()).where(Piece.item_id == Gadget.id).scalar_subquery() / 2.0,
]
AGGREGATES: list[ColumnElement[Any]] = [
    func.sum(Piece.cents),
    func.coalesce(func.sum(Piece.cents), 0),
    func.sum(Piece.cost),
    func.sum(Piece.cost) / func.count(),
    func.avg(Piece.cents),
    func.stddev(Piece.cents),
    func.count(Piece.id),
    func.max(Piece.cost) * Gadget.rate,
    func.min(Piece.label),
    func.string_agg(Piece.label, literal(",")),
    func.bool_or(Piece.cents > 0),
    func.array_agg(Piece.cents),
    func.jsonb_agg(Piece.cents),
    func.count(Piece.id.distinct()),
    func.sum(Piece.cents).filter(Piece.cents > 0),
]

INTEGERS = st.one_of(st.integers(-3, 3), st.integers(-(10**6), 10**6))
PRICES = st.decimals(-99999, 99999, places=2)
TEXTS = st.text("abAB ÄZ🐘_-\n", max_size=4)
MOMENTS = st.datetimes(datetime(1999, 1, 1), datetime(2030, 1, 1)).map(lambda each: each.replace(tzinfo=UTC))  # noqa: DTZ001
MEMBERS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from([2**62, -(2**60), 1e300, 0.1, -0.0])),
    *(TEXTS, st.just({"z": 1}), st.just({"z": None}), st.just([1, "a"])),
)
DOCUMENTS = st.one_of(
    st.fixed_dictionaries({}, optional={"k": MEMBERS, "n": st.integers(-(2**60), 2**60) | st.just(1e30)}),
    st.just([1, 2]),
)


def values(**columns: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: st.none() | each for name, each in columns.items()})


ITEMS = st.lists(
    values(
        whole=INTEGERS,
        other=INTEGERS,
        price=PRICES,
        rate=st.decimals(-99, 99, places=4),
        real=st.floats(-1e15, 1e15) | st.sampled_from([float("nan"), float("inf"), -0.0, 0.1]),
        big=st.integers(-(2**52), 2**52),
        name=TEXTS,
        code=TEXTS,
        moment=MOMENTS,
        later=MOMENTS,
        day=st.dates(date(1990, 1, 1), date(2040, 1, 1)),
        span=st.timedeltas(timedelta(-100), timedelta(100)),
        doc=DOCUMENTS,
        tags=st.lists(TEXTS, max_size=3),
        numbers=st.lists(st.integers(-5, 5), max_size=3),
    ),
    min_size=2,
    max_size=9,
)
PARTS = st.lists(
    st.tuples(
        st.integers(0, 8),
        values(cents=INTEGERS | st.just(2**31 - 1), cost=PRICES, label=st.text("ab", max_size=2)),
    ),
    max_size=14,
)


def ordered(expressions: list[ColumnElement[Any]]) -> st.SearchStrategy[ColumnElement[Any]]:
    def direct(expression: ColumnElement[Any], descending: bool, nulls: str | None) -> ColumnElement[Any]:
        clause: ColumnElement[Any] = expression.desc() if descending else expression.asc()
        if nulls is None:
            return clause
        return clause.nulls_first() if nulls == "first" else clause.nulls_last()

    return st.builds(direct, st.sampled_from(expressions), st.booleans(), st.sampled_from([None, "first", "last"]))


fewer_examples = settings(
    max_examples=settings().max_examples // 3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture
async def items(session: AsyncSession) -> AsyncIterator[AsyncRepository[Gadget]]:
    await (await session.connection()).run_sync(Separate.metadata.create_all)
    yield AsyncRepository(session, Gadget)
    await session.rollback()


async def assert_paged(items: AsyncRepository[Gadget], statement: Any, limit: int) -> None:
    """Check the pages of the repository, and the JSON pages on a connection."""
    whole = await items.list(statement, limit=None)
    await assert_pages_are(whole, partial(items.page, statement), limit=limit)
    connection = await items.session.connection()
    every_body = with_total_order(statement).with_only_columns(GADGET_VIEW.body, maintain_column_froms=True)
    bodies = (await connection.execute(every_body)).scalars().all()
    await assert_pages_are(
        bodies, partial(paginate_as, GADGET_VIEW.body, connection, statement, count=False), limit=limit
    )


async def fill(items: AsyncRepository[Gadget], rows: list[Any], parts: list[Any]) -> None:
    await items.session.execute(insert(Gadget), [{"id": (i * 7) % 31, **row} for i, row in enumerate(rows)])
    of_items = [{"item_id": ((i % len(rows)) * 7) % 31, **part} for i, part in parts]
    if of_items:
        await items.session.execute(insert(Piece), of_items)


@fewer_examples
@given(rows=ITEMS, parts=PARTS, order=st.lists(ordered(EXPRESSIONS), min_size=1, max_size=2), limit=st.integers(1, 3))
async def test_pages_in_the_order_of_any_expression_are_the_whole_list(
    items: AsyncRepository[Gadget], rows: list[Any], parts: list[Any], order: list[Any], limit: int
) -> None:
    savepoint = await items.session.begin_nested()
    try:
        await fill(items, rows, parts)
        await assert_paged(items, select(Gadget).order_by(*order), limit)
    finally:
        await savepoint.rollback()


@fewer_examples
@given(
    rows=ITEMS,
    parts=PARTS,
    order=st.lists(ordered(AGGREGATES), min_size=1, max_size=2),
    outer=st.booleans(),
    limit=st.integers(1, 3),
)
async def test_pages_of_groups_in_the_order_of_any_aggregate_are_the_whole_list(  # noqa: PLR0917
    items: AsyncRepository[Gadget], rows: list[Any], parts: list[Any], order: list[Any], outer: bool, limit: int
) -> None:
    savepoint = await items.session.begin_nested()
    try:
        await fill(items, rows, parts)
        grouped = select(Gadget).join(Piece, Piece.item_id == Gadget.id, isouter=outer).group_by(Gadget.id)
        await assert_paged(items, grouped.order_by(*order), limit)
    finally:
        await savepoint.rollback()


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
async def test_each_expression_can_be_paginated(items: AsyncRepository[Gadget], expression: ColumnElement[Any]) -> None:
    """Many rows have the same value, some have NULL."""
    rows = [
        {
            "whole": i % 5 or None,
            "other": i % 3,
            "price": Decimal(i % 4) / 3,
            "rate": Decimal(i % 7) / 9,
            "real": i / 7,
            "big": 2**40 + i % 2,
            "name": "aAbB"[i % 4],
            "code": "xy"[i % 2],
            "moment": datetime(2024, 1, 1 + i % 4, i, tzinfo=UTC),
            "later": datetime(2025, 1, 1 + i, tzinfo=UTC),
            "day": date(2024, 1 + i % 12, 1),
            "span": timedelta(i % 3, i % 5),
            "tags": ["a", str(i % 3)],
            "doc": {"k": [None, i, {"z": i}, "t"][i % 4], "n": i**9},
            "numbers": [i % 2, i % 3],
        }
        for i in range(20)
    ]
    await fill(items, rows, [(i % 20, {"cents": 2**31 - 1 - i % 2}) for i in range(50)])
    for clause in (expression, expression.desc().nulls_last()):
        await assert_paged(items, select(Gadget).order_by(clause), 6)


async def test_a_sum_of_more_than_31_bits_can_be_paginated(items: AsyncRepository[Gadget]) -> None:
    await fill(items, [{"whole": 1}] * 5, [(i, {"cents": 2**31 - 1}) for i in range(5) for _ in range(i + 1)])
    await assert_paged(items, select(Gadget).join(Piece).group_by(Gadget.id).order_by(func.sum(Piece.cents)), 2)


async def test_json_null_and_numbers_that_a_float_cannot_hold_can_be_paginated(items: AsyncRepository[Gadget]) -> None:
    documents = [["null", f"{2**63 + i}", f"1e{300 + i}"][i % 3] for i in range(80)]
    await items.session.execute(
        insert(Gadget).from_select(
            ["id", "doc"],
            select(
                func.unnest(cast(list(range(100, 180)), ARRAY(Integer))),
                cast(func.unnest(cast([f'{{"k": {each}}}' for each in documents], ARRAY(Text))), JSONB),
            ),
        )
    )
    statement = select(Gadget).with_only_columns(Gadget.id).order_by(Gadget.doc["k"], Gadget.id)
    whole = list(await items.session.scalars(statement))
    connection = await items.session.connection()
    turn: Callable[..., Any] = partial(
        paginate_as, Gadget.id.expression, connection, select(Gadget).order_by(Gadget.doc["k"]), count=False
    )
    await assert_pages_are(whole, turn, limit=7)


@pytest.mark.parametrize(
    "volatile",
    [func.random(), func.now() - Gadget.moment, func.gen_random_uuid(), func.current_date(), func.clock_timestamp()],
    ids=str,
)
async def test_an_order_that_changes_between_two_pages_is_rejected(
    items: AsyncRepository[Gadget], volatile: ColumnElement[Any]
) -> None:
    with pytest.raises(ValueError, match="has another value when the next page is read"):
        await items.page(select(Gadget).order_by(volatile))


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        (func.row(Gadget.whole, Gadget.other), "record"),
        (func.to_tsvector("simple", Gadget.name), "tsvector"),
        (func.money(Gadget.whole), "money"),
    ],
    ids=["record", "tsvector", "money"],
)
async def test_an_order_of_a_type_that_a_cursor_cannot_contain_is_rejected_at_the_first_page(
    items: AsyncRepository[Gadget], expression: ColumnElement[Any], name: str
) -> None:
    await fill(items, [{"whole": 1, "name": "a"}], [])
    with pytest.raises(TypeError, match=f"PostgreSQL has it as {name}.*order by a cast of it"):
        await items.page(select(Gadget).order_by(expression))


class Money(UserDefinedType[Decimal]):
    """A custom type for a built-in type with a precision."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "NUMERIC(10, 2)"


async def test_the_length_of_a_custom_type_does_not_round_an_expression(session: AsyncSession) -> None:
    class Priced(Separate):
        __tablename__ = "priced"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        price: Mapped[Any] = mapped_column(Money)
        rate: Mapped[Decimal] = mapped_column(Numeric(10, 4))

    await session.execute(text("CREATE TABLE priced (id int PRIMARY KEY, price numeric(10, 2), rate numeric(10, 4))"))
    rows = "SELECT n, 1 + n % 7 / 10.0, 1 + n / 10000.0 FROM generate_series(1, 40) n"
    await session.execute(text(f"INSERT INTO priced {rows}"))
    repository = AsyncRepository(session, Priced)
    list_query = select(Priced).order_by(Priced.price * Priced.rate)
    whole = [row.id for row in await repository.list(list_query)]
    pages = await walk(lambda cursor: repository.page(list_query, limit=3, after=cursor), "next")
    assert [row.id for page in pages for row in page.items] == whole
