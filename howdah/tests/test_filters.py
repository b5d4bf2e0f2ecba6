"""Each operator of a declared filter finds the rows that an independent predicate finds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import NaiveDatetime, ValidationError
from sqlalchemy import (
    REAL,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Numeric,
    Select,
    String,
    Table,
    Time,
    TypeDecorator,
    exists,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import CITEXT, asyncpg
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.hybrid import Comparator, hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from howdah import AsyncRepository, Base, Condition, Filter, Filters, InvalidCursor, Sort, paginate
from howdah.fastapi import RFC3339Datetime
from howdah_tests.support.filter_models import (
    CODES,
    TIMES,
    Author,
    Binding,
    BookFilters,
    BookPageParameters,
    Genre,
    Opus,
    build_books,
    create_books,
)
from howdah_tests.support.sample_models import Loud

Row = dict[str, Any]
Predicate = Callable[[Row], bool]

CASES: list[tuple[str, Any, Predicate]] = [
    ("title", "Emma", lambda row: row["title"] == "Emma"),
    ("title", "", lambda row: row["title"] == ""),
    ("title", "x" * 40, lambda row: False),  # longer than the column
    *(
        ("title_prefix", prefix, lambda row, prefix=prefix: row["title"].startswith(prefix))
        for prefix in ("E", "e", "100%", "a_", "%", "_", "back\\", "\\", "", "É", "Emma", "Emma!")
    ),
    ("titles", ["Emma", "a_b", "Emma", "?"], lambda row: row["title"] in ("Emma", "a_b")),
    ("titles", [], lambda row: False),
    ("titles", [str(number) for number in range(40_000)] + ["Emma"], lambda row: row["title"] == "Emma"),
    ("q", "fox", lambda row: row["summary"] in ("The running fox", "foxes and hounds")),
    ("q", "run -hound", lambda row: row["summary"] == "The running fox"),
    ("q", "hound or dog", lambda row: row["summary"] in ("foxes and hounds", "a dog")),
    ("q", "the", lambda row: False),  # only a stop word
    ("q", "'\" & | ! ( : *", lambda row: False),
    ("words", "emma", lambda row: row["title"].lower() == "emma"),
    ("genre", Genre.NOVEL, lambda row: row["genre"] is Genre.NOVEL),
    ("genres", [Genre.NOVEL, Genre.POETRY], lambda row: row["genre"] in (Genre.NOVEL, Genre.POETRY)),
    ("bindings", {Binding.HARD}, lambda row: row["binding"] is Binding.HARD),
    ("binding", Binding.SOFT, lambda row: row["binding"] is Binding.SOFT),
    ("pages", 200, lambda row: row["pages"] == 200),
    ("pages_from", 200, lambda row: row["pages"] is not None and row["pages"] >= 200),
    ("pages_over", 200, lambda row: row["pages"] is not None and row["pages"] > 200),
    ("pages_below", 200, lambda row: row["pages"] is not None and row["pages"] < 200),
    ("pages_to", 200, lambda row: row["pages"] is not None and row["pages"] <= 200),
    ("page_counts", [100, 300, 7], lambda row: row["pages"] in (100, 300)),
    ("copies", 2**62, lambda row: row["copies"] == 2**62),
    ("stars", -1, lambda row: row["stars"] == -1),
    ("price", Decimal("10"), lambda row: row["price"] == 10),
    ("price", Decimal("9.991"), lambda row: False),
    ("price_from", 10, lambda row: row["price"] is not None and row["price"] >= 10),
    ("prices", [Decimal("9.99"), Decimal("9.994")], lambda row: row["price"] == Decimal("9.99")),
    ("printed_from", date(2021, 1, 1), lambda row: row["printed"] == date(2021, 1, 1)),
    ("lent_from", TIMES[1], lambda row: row["lent_at"] in TIMES[1:]),
    ("lent_before", TIMES[1], lambda row: row["lent_at"] == TIMES[0]),
    ("is_lent", True, lambda row: row["lent_at"] is not None),
    ("is_lent", False, lambda row: row["lent_at"] is None),
    ("has_no_genre", True, lambda row: row["genre"] is None),
    ("has_no_genre", False, lambda row: row["genre"] is not None),
    ("code", CODES[1], lambda row: row["code"] == CODES[1]),
    ("codes", [CODES[1], UUID(int=99)], lambda row: row["code"] == CODES[1]),
    ("signed", False, lambda row: row["signed"] is False),
    ("author", "Ada", lambda row: row["author_id"] == 1),
]


async def find_ids(session: AsyncSession, statement: Select[Any]) -> list[int]:
    return [*(await session.scalars(statement.with_only_columns(Opus.id)))]


async def test_each_filter_finds_the_rows_that_a_predicate_finds(session: AsyncSession) -> None:
    rows = await create_books(session)
    for name, value, matches in CASES:
        found = await find_ids(session, BookFilters(**{name: value}).apply(select(Opus).order_by(Opus.id)))
        assert found == [row["id"] for row in rows if matches(row)], (name, value)
    assert {name for name, *_ in CASES} >= BookFilters.model_fields.keys() - {"title_any_case", "title_prefix_any_case"}


async def test_control_like_reads_wildcards_in_a_prefix(session: AsyncSession) -> None:
    rows = await create_books(session)
    found = await find_ids(session, select(Opus).where(Opus.title.startswith("a_")).order_by(Opus.id))
    assert found != [row["id"] for row in rows if row["title"].startswith("a_")]


async def test_upper_and_lower_case_are_ignored_as_postgresql_folds_them(session: AsyncSession) -> None:
    await create_books(session)
    rows = await session.execute(select(Opus.id, func.lower(Opus.title)))
    folded = {row[0]: row[1] for row in rows}
    for value in ("EMMA", "émile", "STRASSE", "E", ""):
        lower = await session.scalar(select(func.lower(value)))
        assert lower is not None
        equal = await find_ids(session, BookFilters(title_any_case=value).apply(select(Opus)))
        beginning = await find_ids(session, BookFilters(title_prefix_any_case=value).apply(select(Opus)))
        assert {*equal} == {id for id, text in folded.items() if text == lower}
        assert {*beginning} == {id for id, text in folded.items() if text.startswith(lower)}
    assert len(await find_ids(session, BookFilters(title_any_case="EMMA").apply(select(Opus)))) == 2


async def test_filters_are_combined_and_a_filter_that_is_none_is_not_applied(session: AsyncSession) -> None:
    rows = await create_books(session)
    both = BookFilters(pages_from=200, lent_before=TIMES[2]).apply(select(Opus))
    expected = [
        row["id"] for row in rows if (row["pages"] or 0) >= 200 and row["lent_at"] and row["lent_at"] < TIMES[2]
    ]
    assert sorted(await find_ids(session, both)) == expected
    assert expected
    assert len(await find_ids(session, BookFilters(pages=None).apply(select(Opus)))) == len(rows)


_values = st.fixed_dictionaries(
    {},
    optional={
        "title_prefix": st.sampled_from(["", "E", "a", "100%"]),
        "genres": st.lists(st.sampled_from(Genre), max_size=3),
        "pages_from": st.sampled_from([0, 100, 200]),
        "pages_below": st.sampled_from([200, 300, 400]),
        "is_lent": st.booleans(),
    },
)
_orders = st.lists(st.sampled_from(["title", "pages", "lent"]), unique=True, max_size=3)


async def test_pages_of_any_filters_and_order_have_every_row_once_in_the_order(session: AsyncSession) -> None:
    rows = await create_books(session)
    columns = {"title": "title", "pages": "pages", "lent": "lent_at"}
    positions: dict[str, dict[Any, int]] = {}
    for name, column in columns.items():
        found = positions.setdefault(name, {})
        for value in await session.scalars(select(getattr(Opus, column)).order_by(getattr(Opus, column))):
            found.setdefault(value, len(found))

    def sort_key(name: str, row: Row) -> int:
        """The position of the value; a NULL of `lent` is last in both directions."""
        value = row[columns[name.removeprefix("-")]]
        position = positions[name.removeprefix("-")][value]
        if name == "-lent":
            return 1_000 if value is None else -position
        return -position if name.startswith("-") else position

    async def check(values: dict[str, Any], names: list[str]) -> None:
        parameters = BookPageParameters(**values, sort=names, limit=3)
        expected = [
            row
            for row in rows
            if row["title"].startswith(values.get("title_prefix", ""))
            and ("genres" not in values or row["genre"] in values["genres"])
            and ("pages_from" not in values or (row["pages"] or -1) >= values["pages_from"])
            and ("pages_below" not in values or (row["pages"] or 999) < values["pages_below"])
            and ("is_lent" not in values or (row["lent_at"] is not None) is values["is_lent"])
        ]
        is_descending = bool(names) and names[-1].startswith("-")
        expected.sort(
            key=lambda row: [*(sort_key(name, row) for name in names), -row["id"] if is_descending else row["id"]]
        )
        found: list[int] = []
        after = None
        while True:
            page = await paginate(session, parameters.apply(select(Opus)), limit=3, after=after)
            found += [book.id for book in page.items]
            if (after := page.next) is None:
                break
        assert found == [row["id"] for row in expected], (values, names)

    cases: list[tuple[dict[str, Any], list[str]]] = []

    @given(values=_values, names=_orders, signs=st.lists(st.booleans(), min_size=3, max_size=3))
    def collect(values: dict[str, Any], names: list[str], signs: list[bool]) -> None:
        cases.append((values, [("-" if sign else "") + name for name, sign in zip(names, signs, strict=False)]))

    collect()
    for values, names in cases[:20]:
        await check(values, names)


async def test_a_cursor_belongs_to_its_filters_and_its_order(session: AsyncSession) -> None:
    await create_books(session)
    users = AsyncRepository(session, Opus)
    parameters = BookPageParameters(genres=[Genre.NOVEL, Genre.POETRY], limit=1)
    page = await users.page(parameters.apply(select(Opus)), **parameters.page_arguments)
    following = parameters.model_copy(update={"after": page.next})
    assert (await users.page(following.apply(select(Opus)), **following.page_arguments)).items
    for change in ({"genres": [Genre.NOVEL]}, {"sort": ["-title"]}, {"pages": 100}, {"title_prefix": "E"}):
        other = following.model_copy(update=change)
        with pytest.raises(InvalidCursor):
            await users.page(other.apply(select(Opus)), **other.page_arguments)


async def test_the_order_of_the_statement_stays_if_the_sort_is_none(session: AsyncSession) -> None:
    class Parameters(Filters):
        sort: Annotated[Literal["pages"] | None, Sort({"pages": Opus.pages})] = None

    statement = select(Opus).order_by(Opus.title)
    assert "ORDER BY books.title" in str(Parameters().apply(statement))
    assert str(Parameters(sort="pages").apply(statement)).endswith("ORDER BY books.pages ASC")


def test_a_filter_of_a_table_that_the_statement_does_not_have_is_an_error() -> None:
    class Parameters(Filters):
        author: Annotated[str | None, Filter(Author.name, "prefix")] = None

    class OpusParameters(Filters):
        title: Annotated[str | None, Filter(Opus.title)] = None

    assert "^@" in str(Parameters(author="A").apply(select(Opus).join(Opus.author)))
    assert "^@" in str(Parameters(author="A").apply(select(Author)))
    opuses = select(Opus)
    for _ in range(2):  # the second call doesn't check the tables again
        assert OpusParameters().apply(opuses) is opuses
    for statement in (opuses, select(aliased(Author))):
        with pytest.raises(ValueError, match=r"Parameters\.author needs authors, .*join"):
            Parameters().apply(statement)  # also without a value, so that the first request shows it


def test_a_condition_on_a_table_that_the_statement_does_not_have_is_an_error() -> None:
    class Parameters(Filters):
        author: Annotated[str | None, Condition(lambda name: Author.name == name)] = None
        written: Annotated[str | None, Condition(lambda name: Opus.author.has(Author.name == name))] = None
        exists: Annotated[
            str | None, Condition(lambda name: exists().where(Author.id == Opus.author_id, Author.name == name))
        ] = None
        signed: Annotated[bool | None, Condition(lambda value: Opus.signed)] = None
        none: Annotated[bool | None, Condition(lambda value: None)] = None

    assert "authors.name = " in str(Parameters(author="A").apply(select(Opus).join(Opus.author)))
    assert "EXISTS" in str(Parameters(written="A", exists="A", signed=True).apply(select(Opus)))
    with pytest.raises(ValueError, match=r"Parameters\.author needs authors, .*join"):
        Parameters(author="A").apply(select(Opus))
    with pytest.raises(TypeError, match="must return an SQL expression, not None"):
        Parameters(none=True).apply(select(Opus))


def test_a_column_of_a_subclass_whose_tables_are_joined_can_be_a_filter() -> None:
    class Plain(DeclarativeBase):
        pass

    class Person(Plain):
        __tablename__ = "persons"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Worker(Person):
        __tablename__ = "workers"
        id: Mapped[int] = mapped_column(ForeignKey(Person.id), primary_key=True)
        pay: Mapped[int]

    class Task(Plain):
        __tablename__ = "tasks"
        id: Mapped[int] = mapped_column(primary_key=True)
        worker_id: Mapped[int] = mapped_column(ForeignKey(Worker.id))

    class Parameters(Filters):
        pay: Annotated[int | None, Filter(Worker.pay)] = None

    joined = select(Task).join(Worker, Worker.id == Task.worker_id)
    for statement in (joined, select(Worker)):
        assert "WHERE workers.pay = :" in str(Parameters(pay=1).apply(statement))
    with pytest.raises(ValueError, match=r"Parameters\.pay needs persons and workers, which"):
        Parameters().apply(select(Task))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pages", 2**31, "integers from -2147483648 to 2147483647"),
        ("pages", -(2**31) - 1, "integers from"),
        ("page_counts", [1, 2**31], "integers from"),
        ("copies", 2**63, "integers from"),
        ("stars", 2**15, "integers from -32768 to 32767"),
        ("title", "a\0b", r"U\+0000"),
        ("titles", ["a", "\0"], r"U\+0000"),
        ("author", "\0", r"U\+0000"),
        ("title_prefix", "\ud800", "surrogate|unicode"),
        ("q", "é" * 1024, "at most 2046 bytes"),
        ("q", "a or b " + "-! " * 31, "at most 30 times '-'"),
        ("price", Decimal("1e-16384"), "too many digits"),
        ("price", Decimal("1e200000"), "too many digits"),
        ("genre", "drama", "novel"),
        ("lent_from", datetime(2026, 1, 1), "offset|timezone"),  # noqa: DTZ001
        ("lent_from", "0001-01-01T00:00:00+01:00", "years 1 to 9999"),
        ("lent_from", "2026-01-01", "RFC 3339"),
        ("sort", ["title", "-title"], "once"),
        ("sort", ["id"], "Input should be"),
        ("colour", "red", "Extra inputs"),
    ],
)
def test_a_value_that_the_column_can_not_have_is_a_validation_error(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        BookPageParameters(**{name: value})
    assert caught.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize("bound", [2**31 - 1, -(2**31)])
async def test_the_largest_values_of_a_type_are_accepted(session: AsyncSession, bound: int) -> None:
    await create_books(session)
    longest = BookFilters(pages=bound, copies=2**63 - 1, stars=-(2**15), q="x" * 2_046, price=Decimal("9e99999"))
    assert await find_ids(session, longest.apply(select(Opus))) == []
    first_day = BookFilters(lent_before=datetime(1, 1, 1, tzinfo=UTC))
    assert await find_ids(session, first_day.apply(select(Opus))) == []


class Reversed(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        return lambda value: value[::-1]


_plain = Table(
    "plain",
    MetaData(),
    Column("id", Integer),
    Column("name", String),
    Column("shelf", CITEXT),
    Column("at", DateTime),
    Column("loud", Loud),
    Column("ratio", Numeric(10, 2, asdecimal=False)),
    Column("single", REAL),
    Column("short", Float(24)),
    Column("opens", Time),
    Column("reversed", Reversed),
)


class CaseInsensitive(Comparator[str]):  # noqa: PLW1641
    def __eq__(self, other: object) -> Any:
        return func.lower(self.__clause_element__()) == func.lower(other)


class Tag(Base):
    __abstract__ = True
    metadata = MetaData()


class Word(Tag):
    __tablename__ = "words"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]

    @hybrid_property
    def insensitive(self) -> str:
        return self.text.lower()

    @insensitive.inplace.comparator
    @classmethod
    def _insensitive_comparator(cls) -> CaseInsensitive:
        return CaseInsensitive(cls.text)


WRONG: list[tuple[Any, Callable[[], Any], str]] = [
    (str | None, lambda: Filter(Opus.pages), "declare int, not str"),
    (bool | None, lambda: Filter(Opus.pages), "declare int, not bool"),
    (int | None, lambda: Filter(Opus.title), "declare str, not int"),
    (int | None, lambda: Filter(Opus.signed), "declare bool, not int"),
    (float | None, lambda: Filter(Opus.price), "declare Decimal, not float"),
    (float | None, lambda: Filter(_plain.c.ratio), "declare Decimal, not float"),
    (Decimal | None, lambda: Filter(Opus.pages), "declare int, not Decimal"),
    (str | None, lambda: Filter(Opus.genre), "declare Genre, not str"),
    (Binding | None, lambda: Filter(Opus.genre), "declare Genre, not Binding"),
    (str | None, lambda: Filter(Opus.code), "declare UUID, not str"),
    (datetime | None, lambda: Filter(Opus.lent_at, ">="), "declare RFC3339Datetime or AwareDatetime, not datetime"),
    (datetime | None, lambda: Filter(Opus.printed, ">="), "declare date, not datetime"),
    (list[int] | None, lambda: Filter(Opus.pages), "use 'in'"),
    (int | None, lambda: Filter(Opus.pages, "in"), "needs a list of values, such as list\\[int\\]"),
    (list[str] | None, lambda: Filter(Opus.pages, "in"), "declare int, not str"),
    (int | None, lambda: Filter(Opus.pages, "is null"), "needs a bool"),
    (int | None, lambda: Filter(Opus.pages, "prefix"), "needs a column of text"),  # type: ignore[call-overload]
    (Genre | None, lambda: Filter(Opus.genre, "prefix"), "needs a column of text"),
    (str | None, lambda: Filter(_plain.c.shelf, "prefix"), "needs a column of text"),  # citext compares as text
    (Genre | None, lambda: Filter(Opus.genre, "<"), "needs values with an order"),
    (int | None, lambda: Filter(Opus.pages, "full text", config="english"), "needs a column of text or tsvector"),
    (list[str] | None, lambda: Filter(Opus.title, "full text", config="english"), "use 'in'"),
    (str | None, lambda: Filter(Opus.words), "can't be compared"),
    (int | str | None, lambda: Filter(Opus.pages), "declare int"),
    (RFC3339Datetime | None, lambda: Filter(_plain.c.at), "declare NaiveDatetime"),
    (str | None, lambda: Filter(_plain.c.loud, "prefix"), "converts values"),
    (str | None, lambda: Filter(_plain.c.reversed, "prefix"), "converts values"),
    (str | None, lambda: Filter(_plain.c.loud, "=", ignore_case=True), "converts values"),
    (str, lambda: Sort({"pages": Opus.pages}), "must be a Literal"),
    (Literal["id"], lambda: Sort({"pages": Opus.pages}), "Sort has no column for 'id'"),
    (Literal["pages"], lambda: Sort({"pages": Opus.pages, "id": Opus.id}), "Sort has 'id', which the Literal lacks"),
]


@pytest.mark.parametrize(("annotation", "declare", "message"), WRONG)
def test_a_wrong_declaration_is_an_error_that_names_the_field(
    annotation: Any, declare: Callable[[], Any], message: str
) -> None:
    with pytest.raises(TypeError, match=rf"^Wrong\.field: .*{message}"):
        type("Wrong", (Filters,), {"__annotations__": {"field": Annotated[annotation, declare()]}, "field": None})


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: Filter(Opus.title, "like"), "'like' is not an operator"),  # type: ignore[call-overload]
        (lambda: Filter(Opus.author), "is a relationship"),
        (lambda: Filter("title"), "is not a column"),  # type: ignore[call-overload]
        (lambda: Filter(Opus), "is not a column"),  # type: ignore[call-overload]
        (lambda: Filter(Opus.pages, "<", ignore_case=True), "ignore_case is for"),  # type: ignore[call-overload]
        (lambda: Filter(Opus.title, "full text"), "needs config"),  # type: ignore[call-overload]
        (lambda: Filter(Opus.title, "prefix", config="english"), "needs config"),  # type: ignore[call-overload]
        (lambda: Filter(Opus.title, "full text", config="english'); drop"), "is not the name"),
        (lambda: Sort({}), "needs at least one name"),
        (lambda: Sort({"-pages": Opus.pages}), "or begin with '-'"),
        (lambda: Sort({"pages": Opus.pages.desc()}), "has a direction"),
    ],
)
def test_a_declaration_that_can_never_be_right_is_an_error_at_once(declare: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        declare()


def test_two_declarations_that_contradict_each_other_are_an_error() -> None:
    with pytest.raises(TypeError, match=r"Twice\.b is the same filter as a: books\.pages ="):

        class Twice(Filters):
            a: Annotated[int | None, Filter(Opus.pages)] = None
            b: Annotated[int | None, Filter(Opus.pages)] = None

    with pytest.raises(TypeError, match=r"Both\.a has 2 declarations"):

        class Both(Filters):
            a: Annotated[int | None, Filter(Opus.pages), Filter(Opus.pages, "<")] = None

    with pytest.raises(TypeError, match=r"Orders has more than one Sort: a, b"):

        class Orders(Filters):
            a: Annotated[Literal["pages"], Sort({"pages": Opus.pages})] = "pages"
            b: Annotated[Literal["id"], Sort({"id": Opus.id})] = "id"

    with pytest.raises(TypeError, match=r"Nested\.a: Filter must be in the outermost Annotated"):

        class Nested(Filters):
            a: Annotated[int, Filter(Opus.pages)] | None = None

    for base in (BookFilters, BookPageParameters):
        with pytest.raises(TypeError, match=r"Other\.pages: it is a filter in Book\w+, but not here"):
            type("Other", (base,), {"__annotations__": {"pages": int}, "pages": 100})
    with pytest.raises(TypeError, match=r"Other\.sort: it is a filter in"):
        type("Other", (BookPageParameters,), {"__annotations__": {"sort": list[str]}, "sort": ["pages"]})

    with pytest.raises(TypeError, match=r"Lenient: extra must be 'forbid'"):

        class Lenient(Filters, extra="ignore"):
            a: Annotated[int | None, Filter(Opus.pages)] = None


def test_a_column_of_a_table_without_a_class_can_be_declared() -> None:
    class Parameters(Filters):
        name: Annotated[str | None, Filter(_plain.c.name, "prefix")] = None

    assert "^@" in str(Parameters(name="x").apply(select(_plain)))


def test_the_types_and_operators_of_the_column_are_used() -> None:
    class Parameters(Filters):
        at: Annotated[NaiveDatetime | None, Filter(_plain.c.at)] = None
        loud: Annotated[str | None, Filter(_plain.c.loud)] = None
        louds: Annotated[list[str] | None, Filter(_plain.c.loud, "in")] = None

    class Words(Filters):
        word: Annotated[str | None, Filter(Word.insensitive)] = None

    statement = Parameters(loud="a", louds=["b"], at=datetime(2026, 1, 1)).apply(select(_plain))  # noqa: DTZ001
    compiled: Any = statement.compile(dialect=asyncpg.dialect())  # type: ignore[no-untyped-call]
    processed = [
        process(compiled.params[name]) if (process := compiled._bind_processors.get(name)) else compiled.params[name]
        for name in compiled.positiontup or ()
    ]
    assert processed == [datetime(2026, 1, 1), "A", ["B"]]  # noqa: DTZ001
    assert "lower(words.text) = lower(" in str(Words(word="a").apply(select(Word)))


async def test_a_float_is_compared_in_the_precision_of_its_column(session: AsyncSession) -> None:
    class Parameters(Filters):
        single: Annotated[float | None, Filter(_plain.c.single)] = None
        singles: Annotated[list[float] | None, Filter(_plain.c.single, "in")] = None
        short_to: Annotated[float | None, Filter(_plain.c.short, "<=")] = None
        shorts: Annotated[list[float] | None, Filter(_plain.c.short, "in")] = None
        opens: Annotated[time | None, Filter(_plain.c.opens)] = None

    await session.execute(text("CREATE TEMP TABLE plain (single real, short float(24))"))
    await session.execute(text("INSERT INTO plain VALUES (0.1, 0.1)"))
    for name, value in {"single": 0.1, "singles": [0.1], "short_to": 0.1, "shorts": [0.1]}.items():
        statement = Parameters(**{name: value}).apply(select(_plain.c.single))
        assert len((await session.execute(statement)).all()) == 1, name
    # double precision, as SQLAlchemy sends it, is another number
    assert (await session.execute(select(_plain.c.single).where(_plain.c.single == 0.1))).all() == []
    for name, wrong in {"single": 1e39, "shorts": [-1e39], "opens": time(tzinfo=UTC)}.items():
        with pytest.raises(ValidationError, match=r"too large for the column|without an offset"):
            Parameters(**{name: wrong})


def test_a_class_whose_types_are_defined_later_is_checked_when_it_is_used() -> None:
    class Parameters(Filters):
        pages: Annotated[Later | None, Filter(Opus.pages)] = None  # type: ignore[name-defined]  # noqa: F821

    Parameters.model_rebuild(_types_namespace={"Later": str, "Filter": Filter, "Opus": Opus, "Annotated": Annotated})
    with pytest.raises(TypeError, match=r"Parameters\.pages: declare int, not str"):
        Parameters(pages="1").apply(select(Opus))


def test_the_rows_of_the_oracle_have_nulls_in_every_nullable_column() -> None:
    rows = build_books()
    nullable = {column.name for column in Opus.__table__.c if column.nullable} - {"words", "isbn", "plain"}
    assert all(any(row[name] is None for row in rows) for name in nullable)
