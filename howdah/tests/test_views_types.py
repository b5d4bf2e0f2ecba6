"""A view writes each column type like Pydantic writes the value that SQLAlchemy reads, or rejects the type."""

from __future__ import annotations

import enum
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, create_model
from sqlalchemy import (
    ARRAY,
    CHAR,
    JSON,
    REAL,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Double,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    PickleType,
    SmallInteger,
    String,
    Table,
    Time,
    TypeDecorator,
    Unicode,
    Uuid,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from howdah import AwareDateTime, Database, InvalidValue, JsonView, ViewCompileError
from howdah_tests.support.savepoints import rollback_at_end
from howdah_tests.support.value_strategies import FLOATS, JSON_VALUES, TEXT
from howdah_tests.support.view_schemas import Out, assert_same


class Separate(DeclarativeBase):
    pass


class State(enum.StrEnum):
    OPEN = "open"
    SHUT = "shut"


class Lower(enum.StrEnum):
    open = "open"
    shut = "shut"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Plain(enum.Enum):
    OPEN = "open"


class Mixed(enum.Enum):
    A = "a"
    B = 1


class GUID(TypeDecorator[Any]):
    """Its type in PostgreSQL differs from its generic type."""

    impl = CHAR(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(pg.UUID() if dialect.name == "postgresql" else CHAR(32))


class Encrypted(String):
    """An SQL expression decrypts the value."""

    def column_expression(self, column: Any) -> Any:
        return func.reverse(column, type_=self)


class Shouted(String):
    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        return str.upper


SPANS = st.timedeltas(timedelta(days=-(10**4)), timedelta(days=10**4))
UUIDS = st.uuids()
NUMBERS = st.integers(-(2**15), 2**15 - 1)
DECIMALS = st.decimals(-1000, 1000, places=3)
NAIVE = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))  # noqa: DTZ001
AWARE = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
LABELS = st.sampled_from(["open", "shut"])

# A type, the possible types of the field, and the values.
EXACT: list[tuple[Any, list[Any], st.SearchStrategy[Any]]] = [
    (Interval(native=False), [timedelta], SPANS),
    (Interval(second_precision=3), [timedelta], SPANS),
    (pg.INTERVAL(fields="DAY TO SECOND"), [timedelta], SPANS),
    (Uuid(native_uuid=False), [UUID], UUIDS),
    (Uuid(as_uuid=False), [str, UUID], UUIDS.map(str)),
    (Uuid(as_uuid=False, native_uuid=False), [str, UUID], UUIDS.map(str)),
    (GUID(), [UUID], UUIDS),
    (Enum("open", "shut", name="door_labels"), [str, Literal["open", "shut"], State], LABELS),
    (Enum("open", "shut", native_enum=False), [str, Literal["open", "shut"], State], LABELS),
    (Enum(State, name="door_states"), [str, Literal["open", "shut"], State], st.sampled_from(State)),
    (Enum(State, native_enum=False), [str, Literal["open", "shut"], State], st.sampled_from(State)),
    (
        Enum(State, name="state_values", values_callable=lambda states: [state.value for state in states]),
        [str, Literal["open", "shut"], State],
        st.sampled_from(State),
    ),
    (Enum(Level, name="door_levels"), [int, Literal[1, 2], Level], st.sampled_from(Level)),
    (Enum(Plain, name="door_plain"), [Plain], st.sampled_from(Plain)),
    (Boolean(create_constraint=True), [bool], st.booleans()),
    (DateTime(), [datetime], NAIVE),
    (pg.TIMESTAMP(precision=3), [datetime], NAIVE),
    (AwareDateTime(), [datetime], AWARE),
    (Numeric(20, 3, asdecimal=False), [float], st.integers(-(10**6), 10**6).map(lambda n: n / 8)),
    (Numeric(20, 3), [Decimal, float], DECIMALS),
    (Float(), [float], FLOATS),
    (Double(), [float], FLOATS),
    (REAL(), [float], st.floats(-(2.0**60), 2.0**60, width=32)),
    (SmallInteger(), [int, float, Decimal], NUMBERS),
    (BigInteger().with_variant(Integer(), "sqlite"), [int], st.integers(-(2**63), 2**63 - 1)),
    (String().with_variant(Integer(), "postgresql"), [int], NUMBERS),
    (String(collation="C"), [str], TEXT),
    (Unicode(20), [str], TEXT),
    (CHAR(21), [str], TEXT),
    (JSON().with_variant(pg.JSONB(), "postgresql"), [Any], JSON_VALUES),
    (Date(), [date], st.dates()),
    (Time(), [time], st.times()),
    (ARRAY(Integer, zero_indexes=True), [list[int]], st.lists(NUMBERS, max_size=3)),
    (ARRAY(Boolean), [list[bool]], st.lists(st.booleans(), max_size=3)),
    (ARRAY(Uuid()), [list[UUID]], st.lists(UUIDS, max_size=3)),
    (ARRAY(Uuid(as_uuid=False)), [list[str], list[UUID]], st.lists(UUIDS.map(str), max_size=3)),
    (ARRAY(Numeric(20, 3)), [list[Decimal]], st.lists(DECIMALS, max_size=3)),
    (ARRAY(Numeric(20, 3, asdecimal=False)), [list[float]], st.lists(NUMBERS.map(lambda n: n / 8), max_size=3)),
    (ARRAY(Float), [list[float]], st.lists(FLOATS, max_size=3)),
    (ARRAY(CHAR(3)), [list[str]], st.lists(st.text("ab ", max_size=3), max_size=3)),
    (
        ARRAY(String, dimensions=2),
        [list[list[str]]],
        st.lists(TEXT, min_size=2, max_size=2).map(lambda row: [row, row]),
    ),
    (ARRAY(Enum(Lower, name="lower_states")), [list[Lower], list[str]], st.lists(st.sampled_from(Lower), max_size=3)),
    (pg.DOMAIN("whole", Integer), [int], NUMBERS),
    (pg.DOMAIN("words", String(collation="C")), [str], TEXT),
    (pg.DOMAIN("instant", DateTime(timezone=True)), [datetime], AWARE),
    (pg.DOMAIN("amount", Numeric(20, 3)), [Decimal], DECIMALS),
]

things = Table(
    "things",
    Separate.metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    *(Column(f"c{position}", kind) for position, (kind, _, _) in enumerate(EXACT)),
)


class Thing(Separate):
    __table__ = things


ROWS = st.lists(
    st.fixed_dictionaries({f"c{position}": st.none() | values for position, (_, _, values) in enumerate(EXACT)}),
    min_size=1,
    max_size=3,
)


@pytest.fixture
async def tables(session: AsyncSession) -> None:
    await (await session.connection()).run_sync(Separate.metadata.create_all)


def schemas() -> list[type[BaseModel]]:
    """Schemas that contain all possible types of the fields. Each schema has a column at most once."""
    count = max(len(annotations) for _, annotations, _ in EXACT)
    models: list[type[BaseModel]] = []
    for number in range(count):
        fields: dict[str, Any] = {
            f"c{position}": (annotations[number] | None if annotations[number] is not Any else Any, ...)
            for position, (_, annotations, _) in enumerate(EXACT)
            if number < len(annotations)
        }
        models.append(create_model("Schema", __base__=Out, **fields))
    return models


SCHEMAS = schemas()


def assert_equal(body: bytes, schema: type[BaseModel], row: object) -> None:
    """Like `assert_same`, but values may have another text: durations, decimals and floats."""
    expected = schema.model_validate(row)
    assert schema.model_validate_json(body) == expected


@pytest.mark.usefixtures("tables")
@pytest.mark.timeout(600)
@given(rows=ROWS)
@settings(max_examples=settings().max_examples // 3, deadline=None, suppress_health_check=list(HealthCheck))
async def test_any_value_of_any_type_is_equal_to_that_of_the_object(
    session: AsyncSession, database: Database, rows: list[dict[str, Any]]
) -> None:
    async with rollback_at_end(session):
        await session.execute(insert(Thing), [{"id": id, **row} for id, row in enumerate(rows)])
        found = (await session.scalars(select(Thing).order_by(things.c.id))).all()
        for schema in SCHEMAS:
            async with JsonView(Thing, schema).open(database) as view:
                for body, row in zip(await view.get_many(range(len(rows))), found, strict=True):
                    assert_equal(body, schema, row)


REJECTED: list[tuple[Any, Any, str]] = [
    (Time(timezone=True), time, "a field of type time doesn't fit a column"),
    (PickleType(), Any, "converts its values in Python"),
    (Encrypted(), str, "converts its values in Python"),
    (Shouted(), str, "converts its values in Python"),
    (Float(asdecimal=True), float, "a field of type float doesn't fit a column"),
    (Float(asdecimal=True), Decimal, "a field of type decimal doesn't fit a column"),
    (Numeric(asdecimal=False), Decimal, "a field of type decimal doesn't fit a column"),
    (ARRAY(Float(asdecimal=True)), list[float], "a list of float doesn't fit a column"),
    (ARRAY(Float(asdecimal=True)), list[Decimal], "a list of decimal doesn't fit a column"),
    (ARRAY(Float), list[Decimal], "a list of decimal doesn't fit a column"),
    (ARRAY(Numeric(asdecimal=False)), list[Decimal], "a list of decimal doesn't fit a column"),
    (ARRAY(Uuid(native_uuid=False)), list[UUID], "a list of uuid doesn't fit a column"),
    (ARRAY(Interval()), list[timedelta], "a list of timedelta doesn't fit a column"),
    (ARRAY(Interval(native=False)), list[timedelta], "a list of timedelta doesn't fit a column"),
    (ARRAY(DateTime(timezone=True)), list[datetime], "a list of datetime doesn't fit a column"),
    (ARRAY(LargeBinary), list[bytes], "a list of bytes doesn't fit a column"),
    (ARRAY(Enum(State, name="door_states")), list[State], "a list of enum doesn't fit a column"),
    (ARRAY(Enum(State, name="door_states")), list[str], "a list of str doesn't fit a column"),
    (pg.MONEY(), str, "a field of type str doesn't fit a column"),
    (pg.INET(), str, "a field of type str doesn't fit a column"),
    (pg.CIDR(), str, "a field of type str doesn't fit a column"),
    (pg.MACADDR(), str, "a field of type str doesn't fit a column"),
    (pg.BIT(4), str, "a field of type str doesn't fit a column"),
    (pg.OID(), int, "a field of type int doesn't fit a column"),
    (pg.HSTORE(), dict[str, str], "a field of type dict doesn't fit a column"),
    (pg.TSVECTOR(), str, "a field of type str doesn't fit a column"),
    (pg.INT4RANGE(), Any, "a field of type any doesn't fit a column"),
    (pg.INT4MULTIRANGE(), Any, "a field of type any doesn't fit a column"),
    (Uuid(), str, "a field of type str doesn't fit a column"),
    (Uuid(native_uuid=False), str, "a field of type str doesn't fit a column"),
    (GUID(), str, "a field of type str doesn't fit a column"),
    (SmallInteger(), bool, "a field of type bool doesn't fit a column"),
    (Boolean(), int, "a field of type int doesn't fit a column"),
    (DateTime(timezone=True), date, "a field of type date doesn't fit a column"),
    (Date(), datetime, "a field of type datetime doesn't fit a column"),
    (Enum(Plain, name="door_plain"), str, "a field of type str doesn't fit a column"),
    (Enum(Plain, name="door_plain"), Literal["open"], "a field of type literal doesn't fit a column"),
    (Enum(Mixed, name="mixed"), Mixed, "a field of type enum doesn't fit a column"),
    (Enum(State, name="door_states"), Lower, "a field of type enum doesn't fit a column"),
    (Enum(Level, name="door_levels"), str, "a field of type str doesn't fit a column"),
    (Enum(State, name="door_states"), int, "a field of type int doesn't fit a column"),
    (String().with_variant(Integer(), "postgresql"), str, "a field of type str doesn't fit a column"),
    (pg.DOMAIN("span", Interval()), timedelta, "doesn't convert the values of a domain"),
    (pg.DOMAIN("state", Enum(State, name="door_states")), State, "doesn't convert the values of a domain"),
    (pg.DOMAIN("document", pg.JSONB()), Any, "doesn't convert the values of a domain"),
    (pg.DOMAIN("token", Uuid(as_uuid=False)), str, "doesn't convert the values of a domain"),
]


@pytest.mark.parametrize(("kind", "annotation", "reason"), REJECTED, ids=[f"{k!r}-{a}" for k, a, _ in REJECTED])
def test_a_type_that_cannot_be_rendered_exactly_is_rejected(kind: Any, annotation: Any, reason: str) -> None:
    class Own(DeclarativeBase):
        pass

    mapped: Any = type(
        "Mapped",
        (Own,),
        {"__tablename__": "mapped", "id": mapped_column(Integer, primary_key=True), "value": mapped_column(kind)},
    )
    with pytest.raises(ViewCompileError) as caught:
        JsonView(mapped, create_model("Schema", value=(annotation if annotation is Any else annotation | None, ...)))
    assert caught.value.path == "Schema.value"
    assert reason in caught.value.reason


class Choice(Separate):
    __tablename__ = "choices"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    size: Mapped[Literal["small", "large"]]
    state: Mapped[State] = mapped_column(Enum(State, native_enum=False))
    level: Mapped[Level] = mapped_column(Enum(Level, native_enum=False))


class ChoiceOut(Out):
    id: int
    size: Literal["small", "large"]
    state: State
    level: Level


@pytest.mark.usefixtures("tables")
async def test_a_mapped_literal_can_be_rendered(session: AsyncSession, database: Database) -> None:
    session.add(Choice(id=1, size="small", state=State.SHUT, level=Level.HIGH))
    await session.flush()
    async with JsonView(Choice, ChoiceOut).open(database) as view:
        assert_same(await view.get(1), ChoiceOut, await session.get_one(Choice, 1))


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("column", ["state", "level"])
async def test_a_label_that_is_missing_in_the_enumeration_is_an_error(
    session: AsyncSession, database: Database, column: str
) -> None:
    """Reading the object raises LookupError. An earlier version wrote `null`, which the schema forbids."""
    session.add(Choice(id=1, size="small", state=State.SHUT, level=Level.HIGH))
    await session.flush()
    await session.execute(text(f"ALTER TABLE choices ALTER {column} TYPE text"))
    await session.execute(text(f"UPDATE choices SET {column} = 'AJAR'"))
    async with JsonView(Choice, ChoiceOut).open(database) as view:
        with pytest.raises(InvalidValue):
            await view.get(1)
