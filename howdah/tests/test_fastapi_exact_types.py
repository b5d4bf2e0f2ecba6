"""Types that accept one spelling of a value."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any

import pytest
from fastapi import Query
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from howdah.fastapi import DecimalDigits, PageParameters, RFC3339Datetime
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app

DATETIME: TypeAdapter[datetime] = TypeAdapter(RFC3339Datetime)

# The grammar of RFC 3339, section 5.6, written for this test.
GRAMMAR = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    re.IGNORECASE,
)

REJECTED = [
    ("20240101", None),
    ("2024-01-01", "the time and its offset are missing"),
    ("2024-W01-1", None),
    ("2024-W01-1T00:00:00Z", None),
    ("2024-001T00:00:00Z", None),
    ("1700000000", None),
    ("1.7e9", None),
    ("-1", None),
    ("now", None),
    ("", None),
    ("infinity", None),
    ("2024-01-01T00:00:00", "the offset is missing"),
    ("2024-01-01T00:00:00.5", "the offset is missing"),
    ("2024-01-01T00:00Z", "the seconds are missing"),
    ("2024-01-01T00Z", None),
    ("2024-01-01 00:00:00Z", "T must stand between"),
    ("2024-01-01_00:00:00Z", None),
    ("2024-01-01T00:00:00 01:00", "write + as %2B"),
    ("2024-01-01T00:00:00.5 01:00", "write + as %2B"),
    ("2024-01-01T00:00:00 Z", None),
    ("2024-01-01T00:00:00+01", "hours and minutes"),
    ("2024-01-01T00:00:00+0100", "hours and minutes"),
    ("2024-01-01T00:00:00+01:00:00", "hours and minutes"),
    ("2024-01-01T00:00:00+01:60", None),
    ("2024-01-01T00:00:00+24:00", None),
    ("2024-01-01T00:00:00\u221201:00", None),
    ("2024-01-01T00:00:00Z[Europe/London]", None),
    ("2024-01-01T00:00:00UTC", None),
    ("2024-01-01T00:00:00.Z", None),
    ("2024-01-01T00:00:00,5Z", None),
    ("2024-01-01T00:00:00.1234567Z", "at most six digits"),
    ("2024-01-01T00:00:00.000000000Z", "at most six digits"),
    ("2016-12-31T23:59:60Z", "leap second"),
    ("2024-01-01T24:00:00Z", None),
    ("2024-01-01T23:60:00Z", None),
    ("2024-13-01T00:00:00Z", "month"),
    ("2023-02-29T00:00:00Z", "day"),
    ("0000-01-01T00:00:00Z", "year"),
    ("10000-01-01T00:00:00Z", None),
    ("-2024-01-01T00:00:00Z", None),
    ("24-01-01T00:00:00Z", None),
    ("2024-1-1T00:00:00Z", None),
    (" 2024-01-01T00:00:00Z", None),
    ("2024-01-01T00:00:00Z ", None),
    ("2024-01-01T00:00:00Z\n", None),
    ("2024-01-01T00:00:00Z\x00", None),
    ("2024-01-01T00:00:00Zjunk", None),
    ("\u0662024-01-01T00:00:00Z", None),
    ("2024-01-01T00:00:0\u0660Z", None),
    ("\ud800", None),
    ("T" * 100_000, None),
    (1700000000, "a string is expected"),
    (1.7e9, "a string is expected"),
    (float("nan"), "a string is expected"),
    (True, "a string is expected"),
    (None, "a string is expected"),
    (Decimal(1), "a string is expected"),
    (b"2024-01-01T00:00:00Z", "a string is expected"),
    (date(2024, 1, 1), "a string is expected"),
    ([], "a string is expected"),
]


@pytest.mark.parametrize(("value", "hint"), REJECTED, ids=[repr(value)[:40] for value, _ in REJECTED])
def test_a_value_that_is_not_an_rfc_3339_date_time_is_rejected(value: object, hint: str | None) -> None:
    with pytest.raises(ValidationError) as caught:
        DATETIME.validate_python(value)
    [error] = caught.value.errors()
    assert error["type"] == "rfc3339_datetime"
    assert error["msg"].startswith("this is not an RFC 3339 date-time such as 2026-11-26T09:30:00Z")
    assert hint is None or hint in error["msg"]


def test_a_naive_datetime_is_rejected() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        DATETIME.validate_python(datetime(2024, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-01T00:00:00Z", datetime(2024, 1, 1, tzinfo=UTC)),
        ("2024-01-01t00:00:00z", datetime(2024, 1, 1, tzinfo=UTC)),
        ("2024-01-01T00:00:00-00:00", datetime(2024, 1, 1, tzinfo=UTC)),
        ("2024-01-01T00:00:00.5+01:30", datetime(2023, 12, 31, 22, 30, 0, 500_000, tzinfo=UTC)),
        ("2024-02-29T23:59:59.999999-23:59", datetime(2024, 3, 1, 23, 58, 59, 999_999, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_a_date_time_is_read_exactly(text: str, expected: datetime) -> None:
    assert DATETIME.validate_python(text) == expected
    assert DATETIME.validate_json(f'"{text}"') == expected
    assert DATETIME.validate_python(expected) is expected


_DIGITS = st.text("0123456789", min_size=2, max_size=2)
_SHAPED = st.builds(
    "{}{}-{}-{}{}{}:{}:{}{}{}".format,
    *(_DIGITS, _DIGITS, _DIGITS, _DIGITS, st.sampled_from("Tt _"), _DIGITS, _DIGITS, _DIGITS),
    st.just("") | st.from_regex(r"[.,][0-9]{0,8}", fullmatch=True),
    st.sampled_from(["Z", "z", "", " ", "+01", "-0000"]) | st.from_regex(r"[ +-][0-9]{2}:[0-9]{2}(:[0-9]{2})?\n?"),
)


@given(_SHAPED | st.datetimes(timezones=st.timezones() | st.none()).map(datetime.isoformat) | st.text())
@example("2024-01-01T00:00:00+01:99")
@example("2024-01-01T24:00:00Z")
def test_each_accepted_text_is_rfc_3339_and_has_the_value_of_the_standard_library(text: str) -> None:
    try:
        found = DATETIME.validate_python(text)
    except ValidationError:
        return
    assert GRAMMAR.fullmatch(text)
    assert found == datetime.fromisoformat(text.upper())
    assert found.utcoffset() == datetime.fromisoformat(text.upper()).utcoffset()


@given(st.datetimes(), st.integers(-1439, 1439))
def test_each_aware_datetime_is_read_back_from_its_isoformat(naive: datetime, minutes: int) -> None:
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert DATETIME.validate_python(moment.isoformat()) == moment
    assert DATETIME.validate_json(DATETIME.dump_json(moment)) == moment


def test_the_schema_is_a_string_with_the_format_date_time() -> None:
    assert DATETIME.json_schema() == {"type": "string", "format": "date-time"}


class Filters(BaseModel):
    since: RFC3339Datetime | None = None
    number: Annotated[int, Field(ge=-5, le=500), DecimalDigits] | None = None


async def test_the_error_for_a_plus_that_a_url_decodes_to_a_space_is_helpful() -> None:
    app = create_bare_app()

    @app.get("/")
    async def show(filters: Annotated[Filters, Query()]) -> Any:
        return filters

    async with asgi_client(app) as client:
        rejected = await client.get("/?since=2024-01-01T00:00:00+01:00")
        assert rejected.status_code == 422
        [error] = rejected.json()["errors"]
        assert error["loc"] == ["query", "since"]
        assert "write + as %2B in a URL" in error["msg"]
        assert (await client.get("/?since=2024-01-01T00:00:00%2B01:00")).json()["since"] == "2024-01-01T00:00:00+01:00"


@pytest.mark.parametrize(
    "value", ["1.0", " 1", "1 ", "+1", "1_0", "1e2", "", "0x1", "\u0661", "1\n", 1.0, True, None, []]
)
def test_an_integer_in_another_spelling_is_rejected(value: object) -> None:
    with pytest.raises(ValidationError, match="decimal digits"):
        TypeAdapter(Annotated[int, DecimalDigits]).validate_python(value)


@pytest.mark.parametrize(("value", "expected"), [("1", 1), ("-5", -5), ("007", 7), (42, 42)])
def test_an_integer_in_decimal_digits_is_read(value: object, expected: int) -> None:
    assert Filters.model_validate({"number": value}).number == expected


def test_bounds_are_checked_and_are_in_the_schema() -> None:
    for number in ("501", "9" * 5_000):
        with pytest.raises(ValidationError):
            Filters.model_validate({"number": number})
    number = Filters.model_json_schema()["properties"]["number"]
    assert number["anyOf"][0] == {"type": "integer", "minimum": -5, "maximum": 500}


def test_the_limit_of_a_page_must_be_decimal_digits() -> None:
    assert PageParameters.model_validate({"limit": "7"}).limit == 7
    for limit in ("7.0", " 7", "0", "1001"):
        with pytest.raises(ValidationError):
            PageParameters.model_validate({"limit": limit})
