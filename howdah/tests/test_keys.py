"""Primary keys: their values, and lists of keys of any length."""

from __future__ import annotations

import enum
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID, uuid4

import pytest
import uuid_utils
from sqlalchemy import BigInteger, Numeric, String, TypeDecorator, Uuid, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, mapped_column
from sqlalchemy.schema import MetaData
from sqlalchemy.types import Integer

from howdah import Base, InvalidValue
from howdah._keys import (
    collect_keys,
    deduplicate,
    get_key,
    get_key_attributes,
    get_key_names,
    has_exact_keys,
    has_key_in,
    normalize_key,
    normalize_keys,
)
from howdah_tests.support.sample_models import Car, Counter, Engineer, Label, Order, Seat, User

KEY = UUID("01977f1e-7c3a-7000-8000-000000000000")


class Separate(Base):
    """The base of tables that the test database doesn't have."""

    __abstract__ = True
    metadata = MetaData()


class Renamed(Separate):
    __tablename__ = "renamed"
    number = mapped_column("no", Integer, primary_key=True)


class Shifted(TypeDecorator[int]):
    impl = Integer
    cache_ok = True


class Place(enum.IntEnum):
    FIRST = 1


@pytest.mark.parametrize(
    ("model", "names"),
    [(User, ("id",)), (Seat, ("row", "number")), (Renamed, ("number",)), (Engineer, ("id",)), (Car, ("id",))],
)
def test_key_names_are_attributes_in_the_order_of_the_mapper(model: type, names: tuple[str, ...]) -> None:
    assert get_key_names(model) == names


def test_the_key_attributes_of_an_alias_belong_to_the_alias() -> None:
    other = aliased(User)
    assert str(select(*get_key_attributes(other))) == "SELECT users_1.id \nFROM users AS users_1"


@pytest.mark.parametrize("single", [KEY, str(KEY), 1, {"id": KEY}])
def test_a_single_key_instead_of_an_iterable_is_rejected(single: object) -> None:
    with pytest.raises(TypeError, match=f"not a single {type(single).__name__}"):
        collect_keys(User, single)  # type: ignore[arg-type]


def test_a_composite_key_is_a_tuple_and_a_single_key_is_its_value() -> None:
    assert get_key(Seat(row="A", number=1)) == ("A", 1)
    assert get_key(User(id=KEY)) == KEY


def test_a_uuid_may_be_passed_as_text() -> None:
    assert normalize_key(User, str(KEY)) == KEY
    assert normalize_key(User, KEY) is KEY


def test_a_uuid_of_another_library_becomes_one_of_the_standard_library() -> None:
    other = uuid_utils.uuid7()
    key = normalize_key(User, other)
    assert isinstance(key, UUID)
    assert str(key) == str(other)


def test_text_that_is_not_a_uuid_is_an_invalid_value() -> None:
    with pytest.raises(InvalidValue, match=r"its value for User\.id isn't a UUID"):
        normalize_key(User, "seven")


def test_the_position_of_an_invalid_key_is_reported() -> None:
    with pytest.raises(InvalidValue) as caught:
        normalize_keys(User, [KEY, str(KEY), "seven"])
    assert caught.value.row_index == 2
    assert caught.value.__notes__ == ["in row 2 of the input, counted from 0"]


@pytest.mark.parametrize("value", [1, 1.0, True, Decimal(1), Place.FIRST])
def test_a_number_that_equals_an_integer_becomes_an_int(value: object) -> None:
    for key in (
        normalize_key(Counter, value),
        normalize_keys(Counter, [2, value])[1],
        normalize_key(Seat, ("A", value))[1],
    ):
        assert (key, type(key)) == (1, int)


@pytest.mark.parametrize("value", [1.5, Decimal("1.5"), Decimal("NaN"), float("inf"), Fraction(3, 2)])
def test_a_number_that_is_not_an_integer_is_rejected_for_an_integer_column(value: object) -> None:
    """The driver would truncate 1.5 to 1."""
    for call in (lambda: normalize_key(Counter, value), lambda: normalize_keys(Counter, [1, value])):
        with pytest.raises(InvalidValue, match=r"its value for Counter\.id isn't an integer"):
            call()


def test_a_key_may_be_a_mapping_of_attribute_names_to_values() -> None:
    assert normalize_key(Seat, {"number": 1, "row": "A"}) == ("A", 1)
    assert normalize_key(User, {"id": str(KEY)}) == KEY
    assert normalize_key(Renamed, {"number": 1}) == 1
    for wrong in ({"row": "A"}, {"row": "A", "number": 1, "more": 2}, {}):
        with pytest.raises(ValueError, match="a key of Seat as a mapping must name row, number, not "):
            normalize_key(Seat, wrong)


def test_only_keys_of_plain_integer_and_uuid_columns_are_exact() -> None:
    assert [model for model in (User, Seat, Label, Counter, Engineer, Renamed) if has_exact_keys(model)] == [
        *(User, Counter, Engineer, Renamed)
    ]
    kinds: list[tuple[Any, bool]] = [
        (BigInteger(), True),
        (BigInteger().with_variant(String(), "sqlite"), True),
        (BigInteger().with_variant(Numeric(), "postgresql"), False),
        (Uuid(as_uuid=False), False),
        (Uuid(native_uuid=False), False),
        (Numeric(), False),
        (Shifted(), False),
    ]
    for number, (kind, exact) in enumerate(kinds):
        model = type(
            f"Kind{number}", (Separate,), {"__tablename__": f"k{number}", "id": mapped_column(kind, primary_key=True)}
        )
        assert has_exact_keys(model) == exact, kind


def test_a_composite_key_may_be_any_sequence_of_its_values() -> None:
    assert normalize_key(Seat, ["A", 1]) == ("A", 1)
    assert deduplicate(normalize_keys(Seat, [("A", 1), ["A", 1], ("B", 2)])) == [("A", 1), ("B", 2)]


@pytest.mark.parametrize("key", ["A1", 1, ("A",), ("A", 1, 2), ()])
def test_a_composite_key_with_the_wrong_number_of_values_is_rejected(key: object) -> None:
    with pytest.raises(ValueError, match=r"a key of Seat needs one value for each column \(row, number\), not "):
        normalize_key(Seat, key)


def test_two_values_are_rejected_for_a_key_of_one_column() -> None:
    with pytest.raises(ValueError, match=r"a key of User needs one value for each column \(id\)"):
        normalize_key(User, (KEY, KEY))


def test_each_key_occurs_once_in_the_order_of_first_appearance_in_any_spelling() -> None:
    other = uuid4()
    assert deduplicate(normalize_keys(User, [other, str(KEY), KEY, other])) == [other, KEY]


async def test_only_the_rows_of_the_composite_keys_are_found(session: AsyncSession) -> None:
    session.add_all([Seat(row=row, number=number) for row in "AB" for number in (1, 2)])
    found = await session.scalars(select(Seat).where(has_key_in(Seat, [("A", 2), ("B", 1), ("C", 3)])))
    assert {get_key(seat) for seat in found} == {("A", 2), ("B", 1)}


async def test_a_key_that_is_too_long_is_not_truncated(session: AsyncSession) -> None:
    """Control: a cast to VARCHAR(5)[], as SQLAlchemy's array type adds it, truncates."""
    from sqlalchemy import ARRAY, any_, cast, literal

    session.add(Label(name="abcde"))
    assert (await session.scalars(select(Label).where(has_key_in(Label, ["abcdefgh"])))).all() == []
    truncating = Label.name == any_(cast(literal(["abcdefgh"], ARRAY(String)), ARRAY(Label.name.type)))
    assert len((await session.scalars(select(Label).where(truncating))).all()) == 1


async def test_the_statement_is_the_same_for_any_number_of_keys() -> None:
    texts = {str(select(User).where(has_key_in(User, [uuid4() for _ in range(n)]))) for n in (1, 2, 1000)}
    assert len(texts) == 1


async def test_more_keys_than_the_maximum_of_parameters_can_be_used(session: AsyncSession) -> None:
    session.add_all([Counter(id=id) for id in (1, 40_000, 90_000)])
    keys = list(range(2, 90_001))
    assert len((await session.scalars(select(Counter).where(has_key_in(Counter, keys)))).all()) == 2
    pairs = [("A", number) for number in range(90_000)]
    session.add(Seat(row="A", number=77_777))
    assert len((await session.scalars(select(Seat).where(has_key_in(Seat, pairs)))).all()) == 1


async def test_an_empty_list_of_keys_finds_no_rows(session: AsyncSession) -> None:
    session.add_all([Counter(), Seat(row="A", number=1), Order(user=User(email="a@example.org", name="A"))])
    for model in (Counter, Seat, Order):
        assert (await session.scalars(select(model).where(has_key_in(model, [])))).all() == []
