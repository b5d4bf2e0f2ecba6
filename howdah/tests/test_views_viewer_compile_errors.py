"""Row filters with a viewer: what can't be exact is rejected when the view is made, or when a viewer is passed."""

from __future__ import annotations

import enum
from contextvars import ContextVar
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import uuid_utils
from sqlalchemy import (
    BigInteger,
    Date,
    DateTime,
    Dialect,
    Enum,
    Float,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Text,
    TypeDecorator,
    Uuid,
    cast,
    func,
    literal,
    null,
    or_,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, CITEXT
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, InvalidValue, JsonView, ViewCompileError
from howdah_tests.support.inexact_keys import LowerKey
from howdah_tests.support.sample_models import Order, Status, User
from howdah_tests.support.view_schemas import Out

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class OrderOut(Out):
    id: UUID


class UserOut(Out):
    orders: list[OrderOut]


class Prefixed(TypeDecorator[str]):
    """The conversion isn't in `process_bind_param`, so it would be left out: 'p:a' would be equal to a stored 'a'."""

    impl = String
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        return lambda value: f"p:{value}"


REJECTED: dict[str, tuple[Any, str]] = {
    "a function of it": (lambda order, viewer: func.lower(viewer.name) == "a", r"has no type: .* cast\(viewer.name, "),
    "a calculation": (lambda order, viewer: order.total_cents < viewer.a + 1, "has no type"),
    "an interval before now": (lambda order, viewer: order.created_at > func.now() - viewer.age, "has no type"),
    "two attributes": (lambda order, viewer: viewer.a == viewer.b, "has no type"),
    "IS NULL": (lambda order, viewer: viewer.user_id.is_(None), "has no type"),
    "IS": (lambda order, viewer: order.user_id.is_(viewer.user_id), "has no type"),
    "an untyped expression": (lambda order, viewer: func.current_setting("a") == viewer.a, "has no type"),
    "type_coerce": (lambda order, viewer: type_coerce(viewer.id, Uuid) == order.id, "has no type"),
    "a column of a subquery": (
        lambda order, viewer: order.user_id == select(viewer.user_id).scalar_subquery(),
        "has no type",
    ),
    "a CTE": (
        lambda order, viewer: order.user_id.in_(
            select(select(User.id).where(User.email == viewer.email).cte("mine").c.id)
        ),
        r"viewer.email is in a CTE, .*write subquery\(\), or cte\(nesting=True\)",
    ),
    "a text and a UUID": (
        lambda order, viewer: or_(order.user_id == viewer.id, func.md5("a", type_=Text) == viewer.id),
        "is compared with two types",
    ),
    "a value and a list": (
        lambda order, viewer: or_(order.user_id == viewer.id, order.user_id.in_(viewer.id)),
        "is compared with two types",
    ),
    "JSON": (lambda order, viewer: order.details == viewer.details, "can only be a UUID"),
    "a type with its own bind_processor": (
        lambda order, viewer: cast(order.id, Prefixed) == viewer.name,
        "can only be a UUID",
    ),
    "a float": (lambda order, viewer: literal(1.5, Float) < viewer.a, "can only be a UUID"),
    "a Python condition": (
        lambda order, viewer: true() if viewer.role != "guest" else order.total_cents == 0,
        "comparison with the viewer as a Python condition",
    ),
    "a Python condition on a column": (
        lambda order, viewer: true() if order.user_id != viewer.user_id else order.total_cents == 0,
        "comparison with the viewer as a Python condition",
    ),
    "a context variable": (lambda order, viewer: order.status == tenant.get(), "context variable 'tenant'"),
    "a Python value": (lambda order, viewer: True, "isn't an SQL expression"),
    "three parameters": (lambda order, viewer, third: true(), "more than two parameters"),
    "a viewer with a default": (lambda order, viewer=None: order.user_id == viewer, "'viewer' must be positional"),
    "a viewer by keyword": (lambda order, *, viewer: order.user_id == viewer.id, "'viewer' must be positional"),
}


@pytest.mark.parametrize(("row_filter", "reason"), REJECTED.values(), ids=REJECTED.keys())
def test_a_filter_that_is_not_exact_is_rejected(row_filter: Any, reason: str) -> None:
    for model, schema in ((Order, OrderOut), (User, UserOut)):
        with pytest.raises(ViewCompileError, match=rf"where\[Order\] can't be rendered: .*{reason}"):
            JsonView[Any](model, schema, where={Order: row_filter})


MISUSED: dict[str, Any] = {
    "as a truth value": lambda order, viewer: true() if viewer.is_admin else null(),
    "in a format": lambda order, viewer: order.status == f"{viewer.status}",
    "as a text": lambda order, viewer: order.status == str(viewer.status),
    "as a key": lambda order, viewer: order.status == {"a": "paid"}.get(viewer.status, "pending"),
    "as a container": lambda order, viewer: true() if order.user_id in viewer.ids else null(),
    "as an iterable": lambda order, viewer: or_(*(order.user_id == each for each in viewer.ids)),
}


@pytest.mark.parametrize("row_filter", MISUSED.values(), ids=MISUSED.keys())
def test_an_attribute_has_no_value_in_python(row_filter: Any) -> None:
    with pytest.raises(TypeError, match="has no value while the view is made"):
        JsonView[Any](Order, OrderOut, where={Order: row_filter})


@pytest.mark.parametrize("name", ["value", "key", "name", "type", "user_id"])
def test_an_attribute_of_an_attribute_is_rejected(name: str) -> None:
    """`viewer.role.value` must not be the value of the parameter, which is None."""
    with pytest.raises(AttributeError, match=f"viewer.role.{name} can't be used"):
        JsonView[Any](Order, OrderOut, where={Order: lambda order, viewer: order.status == getattr(viewer.role, name)})


def test_a_column_whose_type_writes_an_sql_expression_is_rejected() -> None:
    with pytest.raises(ViewCompileError, match="can only be a UUID"):
        JsonView[Any](LowerKey, KeyOut, where={LowerKey: lambda row, viewer: row.key == viewer.key})


class KeyOut(Out):
    value: int


class Grade(enum.Enum):
    GOOD = 1
    BAD = 2


class UserId(TypeDecorator[int]):
    """Accepts texts such as "u5"."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> int:
        return int(value.removeprefix("u"))


class Typed(Base):
    """A column for each type that a viewer's attribute can have."""

    __tablename__ = "typed"
    metadata = MetaData()

    id: Mapped[int] = mapped_column(primary_key=True)
    small: Mapped[int] = mapped_column(SmallInteger)
    big: Mapped[int] = mapped_column(BigInteger)
    token: Mapped[UUID]
    code: Mapped[str] = mapped_column(String(3))
    any_case: Mapped[str] = mapped_column(CITEXT)
    flag: Mapped[bool]
    grade: Mapped[Grade]
    state: Mapped[str] = mapped_column(Enum("a", "b", native_enum=False))
    amount: Mapped[Decimal] = mapped_column(Numeric(5, 2))
    moment: Mapped[datetime]
    local: Mapped[datetime] = mapped_column(DateTime(timezone=False))
    day: Mapped[date] = mapped_column(Date)
    span: Mapped[timedelta] = mapped_column(Interval)
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    owner: Mapped[int] = mapped_column(UserId)
    second_owner: Mapped[int] = mapped_column(UserId)
    tags: Mapped[list[str]] = mapped_column(ARRAY(String))


class TypedOut(Out):
    id: int


TOKEN = UUID(int=5)
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
# The values that are accepted, with those that are sent, and the values that are refused.
CONVERSIONS: dict[str, tuple[list[tuple[Any, Any]], list[Any]]] = {
    "id": ([(5, 5), (5.0, 5), (Decimal("5.00"), 5), (None, None)], [5.5, "5", True, 2**31, float("nan"), TOKEN]),
    "small": ([(-(2**15), -(2**15))], [2**15]),
    "big": ([(2**63 - 1, 2**63 - 1)], [2**63, Decimal("1E+999999999")]),
    "token": ([(TOKEN, TOKEN), (str(TOKEN), TOKEN), (uuid_utils.UUID(int=5), TOKEN)], ["", 5, b"5", TOKEN.bytes]),
    "code": ([("too long", "too long"), (Status.PAID, "paid")], [5, b"a", TOKEN, "\0", "\ud800", ["a"]]),
    "any_case": ([("A", "A")], [5]),
    "flag": ([(True, True), (False, False)], [1, 0, "true"]),
    "grade": ([(Grade.GOOD, "GOOD"), ("BAD", "BAD")], ["good", 1, Status.PAID]),
    "state": ([("a", "a")], ["c", 1]),
    "amount": ([(Decimal("1.005"), Decimal("1.005")), (1, Decimal(1))], [1.5, True, "1", Decimal("NaN")]),
    "moment": ([(NOON, NOON)], [NOON.replace(tzinfo=None), NOON.date(), "2024-01-01"]),
    "local": ([(NOON.replace(tzinfo=None), NOON.replace(tzinfo=None))], [NOON]),
    "day": ([(NOON.date(), NOON.date())], [NOON]),
    "span": ([(timedelta(1), timedelta(1))], [1]),
    "raw": ([(b"a", b"a")], ["a", bytearray(b"a")]),
    "owner": ([("u5", 5)], ["x", 5, None.__class__]),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_values_are_converted_exactly_or_refused(name: str) -> None:
    accepted, refused = CONVERSIONS[name]
    one = JsonView[Any, Any](Typed, TypedOut, where={Typed: lambda row, viewer: getattr(row, name) == viewer.value})
    many = JsonView[Any, Any](Typed, TypedOut, where={Typed: lambda row, viewer: getattr(row, name).in_(viewer.value)})
    for value, sent in accepted:
        (parameter,) = one.parameters({"value": value}).values()
        assert (parameter, type(parameter)) == (sent, type(sent))
        assert many.parameters({"value": {value}}) == {"howdah_viewer_value": [sent]}
    for value in refused:
        with pytest.raises(InvalidValue, match="a viewer was rejected: its value for 'value' is"):
            one.parameters({"value": value})
        with pytest.raises(InvalidValue, match="a viewer was rejected: its value for 'value' is"):
            many.parameters({"value": [value]})


@pytest.mark.parametrize("value", ["abc", b"abc", 5, {"a": 1}])
def test_a_list_must_be_a_list(value: Any) -> None:
    view = JsonView[Any, Any](Typed, TypedOut, where={Typed: lambda row, viewer: row.code.in_(viewer.codes)})
    with pytest.raises(InvalidValue, match="not a list"):
        view.parameters({"codes": value})


def test_an_attribute_that_is_compared_with_two_integer_types_has_the_larger_one() -> None:
    view = JsonView[Any, Any](
        Typed, TypedOut, where={Typed: lambda row, viewer: or_(row.small == viewer.n, row.big == viewer.n)}
    )
    assert view.parameters({"n": 2**40}) == {"howdah_viewer_n": 2**40}


def test_two_columns_of_the_same_custom_type_have_one_type() -> None:
    view = JsonView[Any, Any](
        Typed, TypedOut, where={Typed: lambda row, viewer: or_(row.owner == viewer.id, row.second_owner == viewer.id)}
    )
    assert view.parameters({"id": "u7"}) == {"howdah_viewer_id": 7}


def test_a_text_with_its_own_comparison_is_not_merged_with_another_one() -> None:
    """A subclass may say that two different values are equal."""

    class Same(str):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

    view: Any = JsonView(Typed, TypedOut, where={Typed: lambda row, viewer: row.code == viewer.code})
    first, second = (view._viewer.read({"code": Same(text)}) for text in "ab")
    assert view._viewer.identify(first) != view._viewer.identify(second)


def test_equal_values_that_may_differ_in_postgresql_are_not_merged() -> None:
    view: Any = JsonView(Typed, TypedOut, where={Typed: lambda row, viewer: cast(viewer.n, Numeric) > row.id})
    first, second = (view._viewer.read({"n": Decimal(text)}) for text in ("1.0", "1.00"))
    assert first == second
    assert view._viewer.identify(first) != view._viewer.identify(second)


def test_arrays_are_compared_as_lists() -> None:
    def row_filter(row: Any, viewer: Any) -> Any:
        return row.tags.overlap(viewer.tags) | row.tags.contains(viewer.tags) | (row.tags == viewer.tags)

    view = JsonView[Any, Any](Typed, TypedOut, where={Typed: row_filter})
    assert view.parameters({"tags": ("a", "b")}) == {"howdah_viewer_tags": ["a", "b"]}
    cast_view = JsonView[Any, Any](
        Typed,
        TypedOut,
        where={Typed: lambda row, viewer: row.id == func.cardinality(cast(viewer.a, ARRAY(Text)))},
    )
    assert cast_view.parameters({"a": ["x"]}) == {"howdah_viewer_a": ["x"]}


def test_a_view_without_a_viewer_has_no_parameters() -> None:
    view: Any = JsonView(Order, OrderOut)
    with pytest.raises(TypeError, match="this view has no viewer"):
        view.parameters({})
