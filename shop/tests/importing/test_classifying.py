from collections.abc import Mapping
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shop.importing.classifying import LARGEST_CENTS, LARGEST_QUANTITY, Reason, classify, price_in_cents
from shop.importing.options import TimeFormat
from shop.importing.reading import COLUMNS
from shop_tests.support.retail_lines import A_SALE

Values = Mapping[str, str | None]


def classify_lines(*lines: Values, times: TimeFormat = TimeFormat.ISO) -> pl.DataFrame:
    schema = {"line": pl.UInt32, "malformed": pl.String} | dict.fromkeys(COLUMNS, pl.String)
    rows = [{"malformed": None} | A_SALE | dict(line) | {"line": number} for number, line in enumerate(lines, 1)]
    return classify(pl.DataFrame(rows, schema=schema), times)


def classify_line(**values: str | None) -> dict[str, object]:
    return classify_lines({name.replace("_", " "): value for name, value in values.items()}).row(0, named=True)


def test_a_sale_has_its_values() -> None:
    assert classify_line() == {
        "line": 1,
        "reason": None,
        "detail": None,
        "customer": 13085,
        "country": "United Kingdom",
        "invoice": "500001",
        "is_cancellation": False,
        "placed_at": datetime(2010, 1, 5, 10, 30, tzinfo=UTC),
        "stock_code": "22111",
        "description": "SCOTTIE DOG",
        "quantity": 2,
        "unit_price_cents": 495,
    }


def test_the_quantity_of_a_cancellation_is_positive() -> None:
    line = classify_line(Invoice="C500001", Quantity="-2")
    assert (line["reason"], line["is_cancellation"], line["quantity"]) == (None, True, 2)


@pytest.mark.parametrize(
    ("values", "reason", "detail"),
    [
        ({"malformed": "3 fields instead of 8: a,b,c"}, Reason.MALFORMED_RECORD, "3 fields instead of 8: a,b,c"),
        ({"Quantity": "two"}, Reason.UNREADABLE_VALUE, "Quantity: 'two' is no whole number"),
        ({"Quantity": "1.5"}, Reason.UNREADABLE_VALUE, "Quantity: '1.5' is no whole number"),
        ({"Quantity": "٢"}, Reason.UNREADABLE_VALUE, "Quantity: '٢' is no whole number"),
        ({"Price": "£4.95"}, Reason.UNREADABLE_VALUE, "Price: '£4.95' is no number"),
        ({"Price": "1_0"}, Reason.UNREADABLE_VALUE, "Price: '1_0' is no number"),
        ({"Price": "inf"}, Reason.UNREADABLE_VALUE, "Price: 'inf' is no number"),
        ({"InvoiceDate": "05/01/2010"}, Reason.UNREADABLE_VALUE, "InvoiceDate: '05/01/2010' is no date and time"),
        (
            {"InvoiceDate": "2010-02-30 10:00:00"},
            Reason.UNREADABLE_VALUE,
            "InvoiceDate: '2010-02-30 10:00:00' is no date and time",
        ),
        (
            {"InvoiceDate": "2010-02-03 10:00:60"},
            Reason.UNREADABLE_VALUE,
            "InvoiceDate: '2010-02-03 10:00:60' is no date and time",
        ),
        ({"Customer ID": "-7"}, Reason.UNREADABLE_VALUE, "Customer ID: '-7' is no customer number"),
        ({"Invoice": "50000\ufffd"}, Reason.UNREADABLE_VALUE, "Invoice: '50000\ufffd' is no invoice code"),
        ({"StockCode": "22\x00"}, Reason.UNREADABLE_VALUE, "StockCode: '22\x00' is no stock code"),
        ({"StockCode": "2" * 51}, Reason.UNREADABLE_VALUE, f"StockCode: '{'2' * 51}' is no stock code"),
        ({"Description": "é" * 501}, Reason.UNREADABLE_VALUE, f"Description: '{'é' * 501}' is too long"),
        ({"Country": "F" * 101}, Reason.UNREADABLE_VALUE, f"Country: '{'F' * 101}' is too long"),
        ({"Invoice": " "}, Reason.NO_INVOICE, None),
        ({"Invoice": None}, Reason.NO_INVOICE, None),
        ({"Invoice": "A506401"}, Reason.BAD_DEBT, None),
        ({"Customer ID": ""}, Reason.NO_CUSTOMER, None),
        ({"Customer ID": "NaN"}, Reason.NO_CUSTOMER, None),
        ({"StockCode": ""}, Reason.MISSING_VALUE, "StockCode is missing"),
        ({"Quantity": ""}, Reason.MISSING_VALUE, "Quantity is missing"),
        ({"InvoiceDate": None}, Reason.MISSING_VALUE, "InvoiceDate is missing"),
        ({"Price": ""}, Reason.NO_PRICE, None),
        ({"Price": "NaN"}, Reason.NO_PRICE, None),
        ({"Price": "0.0"}, Reason.NO_PRICE, None),
        ({"Price": "-1"}, Reason.NO_PRICE, None),
        ({"Price": "-0.001"}, Reason.NO_PRICE, None),
        ({"Quantity": "0"}, Reason.SALE_NOT_POSITIVE, None),
        ({"Quantity": "-1"}, Reason.SALE_NOT_POSITIVE, None),
        ({"Invoice": "C1", "Quantity": "0"}, Reason.CANCELLATION_NOT_NEGATIVE, None),
        ({"Invoice": "C1", "Quantity": "1"}, Reason.CANCELLATION_NOT_NEGATIVE, None),
        ({"Quantity": str(LARGEST_QUANTITY + 1)}, Reason.OUT_OF_RANGE, None),
        ({"Quantity": "9" * 30}, Reason.OUT_OF_RANGE, None),
        ({"Invoice": "C1", "Quantity": str(-(2**63))}, Reason.OUT_OF_RANGE, None),
        ({"Price": "92233720368547758.08"}, Reason.OUT_OF_RANGE, None),
        ({"Price": "46116860184273879.04"}, Reason.OUT_OF_RANGE, None),
        ({"Price": "1e999999999999999999999"}, Reason.OUT_OF_RANGE, None),
    ],
)
def test_a_line_is_rejected_with_its_reason(values: Values, reason: Reason, detail: str | None) -> None:
    line = classify_lines(values).row(0, named=True)
    assert (line["reason"], line["detail"]) == (reason, detail)


def test_every_reason_that_a_single_line_can_have_is_tested() -> None:
    (mark,) = [mark for mark in test_a_line_is_rejected_with_its_reason.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {reason for _, reason, _ in mark.args[1]} == set(Reason) - {Reason.ANOTHER_CUSTOMER}


def test_the_first_reason_in_the_order_of_definition_is_given() -> None:
    """The line has all faults. They are removed one by one, in the order of the reasons."""
    faults: list[tuple[Reason, dict[str, str | None]]] = [
        (Reason.MALFORMED_RECORD, {"malformed": "broken"}),
        (Reason.UNREADABLE_VALUE, {"InvoiceDate": "never"}),
        (Reason.NO_INVOICE, {"Invoice": None}),
        (Reason.BAD_DEBT, {"Invoice": "A1"}),
        (Reason.NO_CUSTOMER, {"Customer ID": None}),
        (Reason.MISSING_VALUE, {"StockCode": None}),
        (Reason.NO_PRICE, {"Price": "0"}),
        (Reason.SALE_NOT_POSITIVE, {"Quantity": "-9999999999"}),
        (Reason.OUT_OF_RANGE, {"Quantity": "9999999999"}),
    ]
    for place, (reason, _) in enumerate(faults):
        values: dict[str, str | None] = {}
        for _, fault in reversed(faults[place:]):
            values |= fault
        assert classify_lines(values)["reason"].to_list() == [reason]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"Quantity": "2.0"}, ("quantity", 2)),
        ({"Quantity": " 2 "}, ("quantity", 2)),
        ({"Quantity": str(LARGEST_QUANTITY), "Price": "0.01"}, ("quantity", LARGEST_QUANTITY)),
        ({"Invoice": "C1", "Quantity": str(-LARGEST_QUANTITY)}, ("quantity", LARGEST_QUANTITY)),
        ({"Customer ID": "013085"}, ("customer", 13085)),
        ({"Price": "1e2"}, ("unit_price_cents", 10_000)),
        ({"Price": "92233720368547758.07", "Quantity": "1"}, ("unit_price_cents", LARGEST_CENTS)),
        ({"Price": "46116860184273879.03", "Quantity": "2"}, ("unit_price_cents", LARGEST_CENTS // 2)),
        ({"Description": "CAT BOWL "}, ("description", "CAT BOWL")),
        ({"Description": " "}, ("description", None)),
        ({"Description": "é" * 500}, ("description", "é" * 500)),
        ({"StockCode": "2" * 50}, ("stock_code", "2" * 50)),
        ({"Description": "nan"}, ("description", "nan")),
        ({"Description": "A\x00B"}, ("description", "A\ufffdB")),
        ({"InvoiceDate": "2010-01-05T10:30:00.25"}, ("placed_at", datetime(2010, 1, 5, 10, 30, 0, 250_000, UTC))),
    ],
)
def test_a_valid_value_is_accepted(values: Values, expected: tuple[str, object]) -> None:
    line = classify_lines(values).row(0, named=True)
    name, value = expected
    assert line["reason"] is None
    assert line[name] == value


def test_a_rejected_line_has_its_customer() -> None:
    line = classify_line(Price="0", Quantity="many")
    assert (line["customer"], line["country"]) == (13085, "United Kingdom")


@pytest.mark.parametrize(
    ("price", "cents"),
    [
        ("0.001", 0),
        ("0.005", 1),
        ("0.0049999999999999999999999999999", 0),
        ("1.005", 101),  # the float is a little less: round(1.005 * 100) is 100
        ("2.675", 268),
        ("0.29", 29),  # 0.29 * 100 is 28.999999999999996
        ("25111.09", 2_511_109),
        ("1e-7", 0),
    ],
)
def test_half_a_penny_is_rounded_up(price: str, cents: int) -> None:
    assert price_in_cents(price) == cents


@settings(max_examples=settings().max_examples // 3, deadline=None)
@given(st.integers(0, 10**12))
def test_a_float_of_whole_pence_is_exact(cents: int) -> None:
    assert price_in_cents(repr(cents / 100)) == cents


@settings(max_examples=settings().max_examples // 3, deadline=None)
@given(st.from_regex(r"\A[+-]?[0-9]{1,30}(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,25})?\Z"))
def test_any_number_is_converted_or_too_large(text: str) -> None:
    cents = price_in_cents(text)
    assert cents is None or abs(cents) <= LARGEST_CENTS


def test_a_country_that_is_too_long_is_left_out() -> None:
    assert classify_line(Country="F" * 101)["country"] is None


def test_summer_time_is_an_hour_ahead_of_utc() -> None:
    assert classify_line(InvoiceDate="2010-07-01 12:00:00")["placed_at"] == datetime(2010, 7, 1, 11, tzinfo=UTC)


def test_an_ambiguous_local_time_is_the_first_one() -> None:
    assert classify_line(InvoiceDate="2010-10-31 01:30:00")["placed_at"] == datetime(2010, 10, 31, 0, 30, tzinfo=UTC)


def test_a_skipped_local_time_is_read_as_winter_time() -> None:
    assert classify_line(InvoiceDate="2010-03-28 01:30:00")["placed_at"] == datetime(2010, 3, 28, 1, 30, tzinfo=UTC)


@settings(max_examples=settings().max_examples // 3, deadline=None)
@given(st.datetimes(min_value=datetime(1980, 1, 1), max_value=datetime(2037, 1, 1)))  # noqa: DTZ001 - the file has local times
def test_local_times_are_read_like_in_the_standard_library(local: datetime) -> None:
    local = local.replace(microsecond=0)
    assert classify_line(InvoiceDate=str(local))["placed_at"] == local.replace(
        tzinfo=ZoneInfo("Europe/London")
    ).astimezone(UTC)
