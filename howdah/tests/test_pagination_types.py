"""Pages in the order of a column of any type are the whole list, in the order of the stored values."""

from __future__ import annotations

import enum
import warnings
from collections.abc import AsyncIterator
from functools import partial
from itertools import count
from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Dialect,
    Enum,
    Float,
    Integer,
    Interval,
    Numeric,
    String,
    Text,
    TypeDecorator,
    Uuid,
    cast,
    select,
    text,
)
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.types import TypeEngine, UserDefinedType

from howdah import AsyncRepository, Page
from howdah._reads.sort_values import _BUILT_IN
from howdah.pagination import paginate_as, with_total_order
from howdah_tests.support.page_walks import assert_pages_are, mapped


class EmptyAsNone(TypeDecorator[str]):
    impl = String(20)
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return value or None


class Encrypted(TypeDecorator[str]):
    """Its stored values have another order than the values that are read."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        raise AssertionError("a cursor's value was encrypted again")

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value[::-1]


class Qualified(UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "extensions.citext"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class LevelType(TypeDecorator[Level]):
    impl = Integer
    cache_ok = True

    def process_result_value(self, value: int | None, dialect: Dialect) -> Level | None:
        return None if value is None else Level(value)


class Mood(enum.Enum):
    """Its order is neither that of its names nor that of its values."""

    SAD = "sad"
    OK = "ok"
    HAPPY = "happy"


MOOD = Enum(Mood, name="mood", values_callable=lambda kind: [each.value for each in kind])

# The type of the column in the table, its type in the mapping, and texts of values.
MOODS = "'sad', 'ok', 'happy'"
CASES: list[tuple[str, TypeEngine[Any], list[str]]] = [
    ("smallint", Integer(), ["-5", "0", "7"]),
    ("bigint", Integer(), ["-9223372036854775808", "0", "9223372036854775807"]),
    ("bigint", BigInteger(), ["5", "4", "4"]),
    ("integer", LevelType(), ["1", "2", "2"]),
    ("integer", Numeric(), ["1", "2", "10"]),
    ("integer", String(), ["1", "2", "10"]),
    ("oid", pg.OID(), ["1", "4294967295", "10"]),
    ("numeric(10, 2)", Numeric(10, 2), ["1.25", "-3.10", "NaN"]),
    ("numeric", Numeric(10, 2), ["1.001", "1.002", "1.0021", "1.00", "1.0", "Infinity"]),
    ("numeric", Integer(), ["1.5", "1.4", "1e200", "1e-200"]),
    ("numeric", Float(), ["0.10000000000000000001", "0.1", "1e200"]),
    ("numeric(30, 20)", Numeric(30, 20, asdecimal=False), ["0.10000000000000000001", "0.10000000000000000002"]),
    ("real", Float(), ["0.1", "0.2", "NaN", "Infinity", "-0", "0", "1e-45"]),
    ("double precision", Float(), ["0.1", "0.30000000000000004", "-Infinity", "-0", "0", "5e-324"]),
    ("double precision", Integer(), ["0.1", "0.2", "0.3"]),
    ("boolean", Integer(), ["true", "false", "false"]),
    ("text", Text(), ["", " ", "a", "B", "Ä", "🐘", "a\n", "\\x", "{", '"', "NULL"]),
    ("varchar", EmptyAsNone(), ["", "a", "", "b", "ab"]),
    ("varchar(40)", String(3), ["abcdef", "abcdeg", "abc"]),
    ("text", Encrypted(), ["zx", "ay", "bx", "ax"]),
    ("char(5)", String(), ["a", "ab ", "ab", ""]),
    ("char(5)", pg.CHAR(1), ["abcde", "abcdf", "abcd"]),
    ('"char"', String(), ["a", "b", "Z"]),
    ("name", String(), ["a", "b", "Z"]),
    ("text COLLATE \"C\"", Text(), ["a", "B", "Ä", "b"]),
    ("text COLLATE \"C\"", Text(collation="C"), ["a", "B", "Ä", "b"]),
    ("bytea", pg.BYTEA(), ["\\x", "\\x00ff", "\\x5c78", "\\x6162"]),
    ("uuid", Uuid(), ["00000000-0000-0000-0000-000000000001", "ffffffff-0000-0000-0000-000000000001"]),
    ("uuid", Uuid(as_uuid=False), ["00000000-0000-0000-0000-000000000001", "ffffffff-0000-0000-0000-000000000001"]),
    ("uuid", String(), ["00000000-0000-0000-0000-000000000001", "ffffffff-0000-0000-0000-000000000001"]),
    ("char(32)", Uuid(native_uuid=False), ["00000000000000000000000000000001", "f" * 32]),
    ("date", pg.DATE(), ["2024-01-02", "infinity", "-infinity", "0044-03-15 BC", "20240-01-01"]),
    ("time", pg.TIME(), ["00:00", "24:00", "12:00:00.000001"]),
    ("timetz", pg.TIME(timezone=True), ["00:00+00", "01:00+01", "12:00:00.000001-03:30"]),
    ("timestamp", pg.TIMESTAMP(), ["2024-01-02 03:04:05.000001", "infinity", "0044-03-15 BC", "20240-01-01"]),
    ("timestamptz", pg.TIMESTAMP(timezone=True), ["2024-01-02 03:04:05.000001+00", "infinity", "0044-03-15 BC"]),
    ("timestamptz(6)", pg.TIMESTAMP(timezone=True, precision=0), ["2024-01-02 03:04:05.1", "2024-01-02 03:04:05.2"]),
    ("interval", pg.INTERVAL(), ["1 day", "24:00", "-1 month +3 days -00:00:01.5", "2 years 3 mons", "-1 day"]),
    ("timestamp", Interval(native=False), ["1970-01-02", "1970-01-01 00:00:03"]),
    ("inet", pg.INET(), ["10.0.0.1", "10.0.0.0/8", "::1", "10.0.0.1/24"]),
    ("cidr", pg.CIDR(), ["10.0.0.0/8", "::/0", "10.1.0.0/16"]),
    ("macaddr", pg.MACADDR(), ["08:00:2b:01:02:03", "08:00:2b:01:02:02"]),
    ("macaddr8", pg.MACADDR8(), ["08:00:2b:01:02:03:04:05", "08:00:2b:01:02:02:04:05"]),
    ("bit(3)", pg.BIT(3), ["101", "001", "111"]),
    ("varbit", pg.BIT(varying=True), ["101", "0", "1"]),
    ("pg_lsn", String(), ["16/B374D848", "0/1"]),
    ("xid8", BigInteger(), ["18446744073709551615", "1"]),
    ("jsonb", pg.JSONB(), ["null", "1", '"a"', "{}", "[1]", "1e400", "18446744073709551616", "true", '{"a": null}']),
    ("int4range", pg.INT4RANGE(), ["[1,5)", "empty", "(,3)", "[1,)"]),
    ("numrange", pg.NUMRANGE(), ["[1.5,5)", "empty", "(,3.00]"]),
    ("daterange", pg.DATERANGE(), ["[2024-01-01,2024-02-01)", "(,infinity)"]),
    ("tsrange", pg.TSRANGE(), ["[2024-01-01,2024-02-01)", "(,infinity)"]),
    ("tstzrange", pg.TSTZRANGE(), ["[2024-01-01,2024-02-01)", "(,infinity)", "[1800-01-01,)"]),
    ("int8multirange", pg.INT8MULTIRANGE(), ["{[1,5),[7,9)}", "{}"]),
    ("tstzmultirange", pg.TSTZMULTIRANGE(), ["{[2024-01-01,2024-02-01)}", "{}"]),
    ("int[]", ARRAY(Integer), ["{1,2}", "{}", "{NULL}", "[0:1]={1,2}", "{{1},{2}}"]),
    ("text[]", ARRAY(Text), ['{"a,b"}', '{"\\""}', '{"NULL",NULL}', "{a}", '{""}']),
    ("varchar(40)[]", ARRAY(String(2)), ["{abcd}", "{abce}"]),
    ("char(3)[]", ARRAY(pg.CHAR(1)), ["{abc}", "{abd}"]),
    ("numeric(10, 4)[]", ARRAY(Numeric(10, 2)), ["{1.0001}", "{1.0002}"]),
    ("float8[]", ARRAY(Float), ["{0.1}", "{0.30000000000000004,NaN}"]),
    ("timestamptz[]", ARRAY(pg.TIMESTAMP(timezone=True)), ["{2024-01-01}", "{infinity}"]),
    ("bit(3)[]", ARRAY(pg.BIT(3)), ["{101}", "{100}"]),
    ("mood", MOOD, ["happy", "sad", "ok"]),
    ("mood", pg.ENUM("sad", "ok", "happy", name="mood", create_type=False), ["happy", "sad", "ok"]),
    ("mood[]", ARRAY(pg.ENUM("sad", "ok", "happy", name="mood", create_type=False)), ["{happy}", "{sad,ok}"]),
    ("varchar(9)", Enum(Mood, native_enum=False, length=9), ["HAPPY", "SAD", "OK"]),
    ("positive", Integer(), ["1", "2", "10"]),
    ("positive", pg.DOMAIN("positive", Integer()), ["1", "2", "10"]),
    ("more_positive", Integer(), ["1", "2", "10"]),
    ("words", ARRAY(Text), ["{a}", "{b}", "{a,b}"]),
]  # fmt: skip

PREPARATIONS = [
    f"CREATE TYPE mood AS ENUM ({MOODS})",
    "CREATE DOMAIN positive AS integer CHECK (value > 0)",
    "CREATE DOMAIN more_positive AS positive CHECK (value > 0)",
    "CREATE DOMAIN mood_domain AS mood",
    "CREATE DOMAIN words AS text[]",
]


@pytest.fixture
async def prepared(session: AsyncSession) -> AsyncIterator[AsyncConnection]:
    connection = await session.connection()
    for each in PREPARATIONS:
        await connection.execute(text(each))
    yield connection
    await session.rollback()


async def fill(connection: AsyncConnection, column_type: str, values: list[str], *, each: int = 3) -> None:
    """Insert each value several times, and some rows with NULL."""
    plain = column_type.split(" COLLATE ", maxsplit=1)[0]
    await connection.execute(text(f"CREATE TABLE cases (id integer PRIMARY KEY, value {column_type})"))
    insert = text(
        f"INSERT INTO cases SELECT n, CAST(CAST(:value AS text) AS {plain}) FROM unnest(CAST(:ids AS int[])) n"
    )
    for i, value in enumerate([*values, None]):
        await connection.execute(insert, {"value": value, "ids": [i + 100 * n for n in range(each)]})


# SQLAlchemy 2.1 warns about its own type.
@pytest.mark.filterwarnings("ignore:Type object .*DOMAIN")
@pytest.mark.parametrize(
    ("column_type", "kind", "values"), CASES, ids=lambda each: each if isinstance(each, str) else ""
)
async def test_pages_in_the_order_of_any_type_are_the_whole_list(
    prepared: AsyncConnection, session: AsyncSession, column_type: str, kind: TypeEngine[Any], values: list[str]
) -> None:
    await fill(prepared, column_type, values)
    model = mapped(kind)
    repository: AsyncRepository[Any] = AsyncRepository(session, model)
    for clause in (model.value, model.value.desc(), model.value.nulls_first(), model.value.desc().nulls_last()):
        statement = select(model).order_by(clause, model.id.desc())
        whole = await repository.list(statement, limit=None)
        assert len(whole) == 3 * len(values) + 3
        await assert_pages_are(whole, partial(repository.page, statement), limit=2)
        await assert_pages_are(
            [each.id for each in whole], partial(paginate_as, model.id, prepared, statement, count=False), limit=4
        )


async def assert_paged(session: AsyncSession, model: Any, *, limit: int = 2) -> None:
    for clause in (model.value, model.value.desc().nulls_last()):
        statement = select(model).order_by(clause, model.id.desc())
        repository: AsyncRepository[Any] = AsyncRepository(session, model)
        whole = await repository.list(statement, limit=None)
        await assert_pages_are(whole, partial(repository.page, statement), limit=limit)


async def execute_or_skip(connection: AsyncConnection, *statements: str) -> None:
    try:
        async with connection.begin_nested():
            for each in statements:
                await connection.execute(text(each))
    except DBAPIError as error:
        pytest.skip(f"this server can't: {error.orig}")


async def test_texts_that_a_nondeterministic_collation_finds_equal_are_not_lost(
    prepared: AsyncConnection, session: AsyncSession
) -> None:
    locale = "provider = icu, locale = 'und-u-ks-level2', deterministic = false"
    await execute_or_skip(prepared, f"CREATE COLLATION ignoring_case ({locale})")
    await fill(prepared, "text COLLATE ignoring_case", ["a", "A", "b", "B", "C"])
    for kind in (Text(), Text(collation="ignoring_case"), EmptyAsNone()):
        await assert_paged(session, mapped(kind))


async def test_citext_can_be_paginated_if_the_mapping_declares_it_and_is_rejected_otherwise(
    prepared: AsyncConnection, session: AsyncSession
) -> None:
    """Control: as texts they have another order. An extension outside of the search_path is sorted by its operators,
    but compared by the operators of text."""
    await execute_or_skip(prepared, "CREATE SCHEMA extensions", "CREATE EXTENSION citext SCHEMA extensions")
    await prepared.execute(text("SET LOCAL search_path = public, extensions"))
    await prepared.execute(text("CREATE DOMAIN email AS citext"))
    await fill(prepared, "citext", ["a", "B", "A", "b", "C"])
    assert await session.scalar(text("SELECT CAST('B' AS text) COLLATE \"C\" < 'a' AND CAST('B' AS citext) > 'a'"))
    await assert_paged(session, mapped(pg.CITEXT()))
    for kind in (String(), EmptyAsNone()):
        with pytest.raises(TypeError, match=r"PostgreSQL has it as citext.*Map the column with that type"):
            await assert_paged(session, mapped(kind))
    await prepared.execute(text("ALTER TABLE cases ALTER value TYPE email"))
    await assert_paged(session, mapped(pg.CITEXT()))
    with pytest.raises(TypeError, match="PostgreSQL has it as email"):
        await assert_paged(session, mapped(String()))
    await prepared.execute(text("ALTER TABLE cases ALTER value TYPE citext"))
    await prepared.execute(text("SET LOCAL search_path = public"))
    with pytest.raises(TypeError, match=r"PostgreSQL has it as extensions\.citext"):
        await assert_paged(session, mapped(Qualified()))
    with pytest.raises(TypeError, match=r"PostgreSQL has it as extensions\.citext"):
        await assert_paged(session, mapped(String()))


async def test_an_enum_of_another_schema_can_be_paginated(prepared: AsyncConnection, session: AsyncSession) -> None:
    await prepared.execute(text("CREATE SCHEMA elsewhere"))
    await prepared.execute(text(f'CREATE TYPE elsewhere."Feeling Of" AS ENUM ({MOODS})'))
    await fill(prepared, 'elsewhere."Feeling Of"', ["happy", "sad", "ok"])
    names = ("sad", "ok", "happy")
    await assert_paged(session, mapped(Enum(*names, name="Feeling Of", schema="elsewhere")))
    with pytest.raises(TypeError, match=r'PostgreSQL has it as elsewhere."Feeling Of"'):
        await assert_paged(session, mapped(String()))


async def test_a_domain_over_an_enum_is_rejected_and_a_cast_of_it_can_be_paginated(
    prepared: AsyncConnection, session: AsyncSession
) -> None:
    """PostgreSQL can sort it, but has no comparison operators for it."""
    await fill(prepared, "mood_domain", ["happy", "sad", "ok"])
    mood = pg.ENUM("sad", "ok", "happy", name="mood")
    with warnings.catch_warnings(action="ignore"):
        model = mapped(pg.DOMAIN("mood_domain", mood))
        with pytest.raises(TypeError, match=r"PostgreSQL has it as mood_domain.*order by a cast of it"):
            await AsyncRepository[Any](session, model).page(select(model).order_by(model.value))
    model = mapped(mood)
    statement = select(model).order_by(cast(model.value, mood))
    whole = await AsyncRepository[Any](session, model).list(statement)
    await assert_pages_are(whole, partial(AsyncRepository[Any](session, model).page, statement), limit=2)


async def test_an_enum_of_a_translated_schema_can_be_paginated(
    prepared: AsyncConnection, session: AsyncSession
) -> None:
    await prepared.execute(text("CREATE SCHEMA tenant"))
    await prepared.execute(text("CREATE TYPE tenant.feeling AS ENUM ('b', 'a')"))
    await fill(prepared, "tenant.feeling", ["a", "b"])
    translated = await prepared.execution_options(schema_translate_map={"shared": "tenant"})
    model = mapped(Enum("b", "a", name="feeling", schema="shared"))
    statement = select(model).order_by(model.value)
    whole = list(await translated.scalars(with_total_order(statement).with_only_columns(model.id)))
    await assert_pages_are(whole, partial(paginate_as, model.id, translated, statement, count=False), limit=2)


SETTINGS = [
    ("bytea", "bytea_output = 'escape'", ["\\x", "\\x00ff", "\\x5c78", "\\x6162"]),
    ("timestamptz", "timezone = 'Europe/Amsterdam'", ["1800-01-01", "2024-10-27 02:30+02", "2024-10-27 02:30+01"]),
    ("interval", "intervalstyle = 'iso_8601'", ["1 day", "-1 month +3 days -00:00:01.5", "-1 day"]),
    ("float8", "extra_float_digits = 3", ["0.1", "0.30000000000000004", "5e-324"]),
    ("date", "datestyle = 'ISO, DMY'", ["2024-02-01", "2024-01-02"]),
]


@pytest.mark.parametrize(("column_type", "setting", "values"), SETTINGS)
async def test_pages_can_be_read_under_different_settings(
    prepared: AsyncConnection, session: AsyncSession, column_type: str, setting: str, values: list[str]
) -> None:
    """Every other page is read under another setting."""
    await fill(prepared, column_type, values)
    model = mapped(String())
    statement = select(model).order_by(model.value)
    repository: AsyncRepository[Any] = AsyncRepository(session, model)
    whole = await repository.list(statement, limit=None)
    name = setting.split(maxsplit=1)[0]
    turns = count()

    async def turn(**options: Any) -> Page[Any]:
        await prepared.execute(text(f"SET LOCAL {setting}" if next(turns) % 2 else f"SET LOCAL {name} TO DEFAULT"))
        return await repository.page(statement, **options)

    for limit in (1, 2):
        await assert_pages_are(whole, turn, limit=limit)


REJECTED = [
    ("timestamptz", "DateStyle = 'German, DMY'"),
    ("date", "DateStyle = 'SQL, DMY'"),
    ("daterange", "DateStyle = 'Postgres, MDY'"),
    ("tstzmultirange", "DateStyle = 'SQL, MDY'"),
    ("timestamp[]", "DateStyle = 'SQL, MDY'"),
    ("interval", "IntervalStyle = 'sql_standard'"),
    ("interval[]", "IntervalStyle = 'postgres_verbose'"),
    ("float8", "extra_float_digits = 0"),
    ("real", "extra_float_digits = -3"),
    ("float8[]", "extra_float_digits = 0"),
    ("dated", "DateStyle = 'SQL, MDY'"),
]


@pytest.mark.parametrize(("column_type", "setting"), REJECTED)
async def test_settings_under_which_texts_are_not_exact_are_rejected_at_the_first_page(
    prepared: AsyncConnection, session: AsyncSession, column_type: str, setting: str
) -> None:
    """Control: other types can be paginated under these settings."""
    await prepared.execute(text("CREATE DOMAIN dated AS date"))
    await fill(prepared, column_type, [])
    await prepared.execute(text(f"SET LOCAL {setting}"))
    model = mapped(String())
    repository: AsyncRepository[Any] = AsyncRepository(session, model)
    with pytest.raises(TypeError, match=f"under {setting}, which writes values that other sessions read differently"):
        await repository.page(select(model).order_by(model.value), limit=1)
    assert len((await repository.page(limit=1)).items) == 1


async def test_every_type_with_an_order_is_supported_or_listed_as_unsupported(session: AsyncSession) -> None:
    types = text("""
        SELECT typname, CAST(oid AS int), CAST(typarray AS int) FROM pg_type
        WHERE typnamespace = 'pg_catalog'::regnamespace AND typname = ANY(:names)
        """)
    known = {name: oids for name, *oids in await session.execute(types, {"names": list(_BUILT_IN)})}
    assert {name: tuple(oids) for name, oids in known.items()} == _BUILT_IN
    ordered = await session.scalars(
        text("""
        SELECT typname FROM pg_opclass JOIN pg_type ON pg_type.oid = opcintype
        WHERE opcdefault AND opcmethod = (SELECT oid FROM pg_am WHERE amname = 'btree') AND typtype = 'b'
        """)
    )
    assert set(ordered) - set(_BUILT_IN) == {"money", "oidvector", "tid", "tsquery", "tsvector"}
