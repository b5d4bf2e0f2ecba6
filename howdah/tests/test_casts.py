"""The length or precision of a column's type changes no parameter: SQLAlchemy's casts have none."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from asyncpg import BitString
from sqlalchemy import ARRAY, CHAR, Float, MetaData, Numeric, String, any_, cast, insert, literal, select, text, update
from sqlalchemy.dialects.postgresql import BIT, DOMAIN, INTERVAL
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, mapped_column

from howdah import AsyncRepository, Base, BigIntPrimaryKey, DatabaseError, InvalidValue, TooLong, bulk


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Sized(BigIntPrimaryKey, Separate):
    __tablename__ = "sized"

    price: Mapped[Any | None] = mapped_column(Numeric(10, 2))
    letter: Mapped[Any | None] = mapped_column(CHAR)
    code: Mapped[Any | None] = mapped_column(CHAR(3))
    bits: Mapped[Any | None] = mapped_column(BIT(3), index=True)
    some_bits: Mapped[Any | None] = mapped_column(BIT(3, varying=True))
    duration: Mapped[Any | None] = mapped_column(INTERVAL(precision=0))
    days: Mapped[Any | None] = mapped_column(INTERVAL(fields="DAY"))
    word: Mapped[Any | None] = mapped_column(DOMAIN("short_word", String(3), create_type=False))
    collated: Mapped[Any | None] = mapped_column(ARRAY(String(3, collation="C")))
    small: Mapped[Any | None] = mapped_column(Float(24))


@pytest.fixture
async def sized(session: AsyncSession) -> AsyncSession:
    await session.execute(text("CREATE DOMAIN short_word AS varchar(3)"))
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    return session


TOO_LONG: list[tuple[str, Any, type[DatabaseError]]] = [
    ("letter", "ab", TooLong),
    ("code", "abcd", TooLong),
    ("bits", BitString("1011"), InvalidValue),
    ("bits", BitString("10"), InvalidValue),
    ("some_bits", BitString("1011"), TooLong),
    ("word", "abcd", TooLong),
    ("collated", ["abcd"], TooLong),
]


@pytest.mark.parametrize(("name", "value", "error"), TOO_LONG)
async def test_a_value_that_is_too_long_is_rejected(
    sized: AsyncSession, name: str, value: Any, error: type[DatabaseError]
) -> None:
    sized.add(one := Sized())
    await sized.flush()

    async def add(count: int) -> None:
        sized.add_all([Sized(**{name: value}) for _ in range(count)])
        await sized.flush()

    statement = insert(Sized.__table__).returning(Sized.id)  # type: ignore[arg-type]
    for write in (
        lambda: add(1),
        lambda: add(2),
        lambda: sized.execute(statement, [{name: value}] * 2),
        lambda: sized.execute(update(Sized).values({name: value})),
        lambda: bulk.insert_many(sized, Sized, [{name: value}] * 2),
        lambda: bulk.update_many(sized, Sized, [{"id": one.id, name: value}]),
        lambda: AsyncRepository(sized, Sized).update_where(Sized.id == one.id, **{name: value}),
    ):
        with pytest.raises(error):
            async with sized.begin_nested():
                await write()


async def test_a_comparison_uses_the_whole_value(sized: AsyncSession) -> None:
    stored: dict[str, Any] = {
        "price": Decimal("9.99"),
        "letter": "a",
        "code": "abc",
        "bits": BitString("101"),
        "some_bits": BitString("101"),
        "duration": timedelta(seconds=2),
        "days": timedelta(days=1),
        "small": 1.1,
    }
    others: dict[str, Any] = {
        "price": Decimal("9.991"),
        "letter": "ab",
        "code": "abcd",
        "bits": BitString("1011"),
        "some_bits": BitString("1011"),
        "duration": timedelta(seconds=1.6),
        "days": timedelta(days=1, hours=2),
        "small": 1.2,
    }
    repository = AsyncRepository(sized, Sized)
    await repository.create(**stored)
    for name, value in stored.items():
        column: Any = getattr(Sized, name)
        for wanted, is_found in ((value, True), (others[name], False)):
            assert (await repository.get_by(**{name: wanted}) is not None) is is_found, (name, wanted)
            assert await repository.exists(select(Sized).where(column.in_([wanted]))) is is_found, (name, wanted)
            array = literal([wanted], ARRAY(column.type))
            assert await repository.exists(select(Sized).where(column == any_(array))) is is_found, (name, wanted)


async def test_a_calculation_uses_the_whole_value_and_the_column_rounds_its_result(sized: AsyncSession) -> None:
    repository = AsyncRepository(sized, Sized)
    one = await repository.create(price=Decimal(1000))
    assert await repository.update_where(Sized.id == one.id, price=Sized.price * Decimal("1.075")) == 1
    await sized.refresh(one)
    assert one.price == Decimal("1075.00")
    await repository.create(price=Decimal("9.996"))
    assert await repository.exists(select(Sized).where(Sized.price == Decimal("10.00")))


async def test_an_explicit_cast_keeps_its_length(sized: AsyncSession) -> None:
    explicit = cast(Decimal("9.991"), Numeric(10, 2)), cast("abcd", CHAR(3)), cast(["abcd"], ARRAY(String(3)))
    row = (await sized.execute(select(*explicit))).one()
    assert tuple(row) == (Decimal("9.99"), "abc", ["abc"])


async def test_an_index_on_bits_is_used(sized: AsyncSession) -> None:
    await sized.execute(text("SET LOCAL enable_seqscan = off"))
    compiled = select(Sized.id).where(Sized.bits == BitString("101")).compile(dialect=sized.get_bind().dialect)
    statement = str(compiled).replace("$1", "B'101'")
    plan = await sized.execute(text(f"EXPLAIN {statement}"))
    assert "Index Cond" in "\n".join(plan.scalars())


async def test_without_these_casts_another_value_is_found(database_url: str) -> None:
    engine = create_async_engine(database_url.replace("postgresql:", "postgresql+asyncpg:"))
    price = literal(Decimal("9.99"), Numeric(10, 2))
    async with engine.connect() as connection:
        assert await connection.scalar(select(price == Decimal("9.991"))) is True
    await engine.dispose()
