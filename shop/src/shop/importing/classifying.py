"""Parse every line, and classify it: as a sale, as a cancellation, or as rejected for a `Reason`."""

from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from enum import StrEnum

import polars as pl

from shop.importing.options import TimeFormat
from shop.importing.reading import COLUMNS
from shop.importing.time_formats import parse_time

LARGEST_QUANTITY = 2**31 - 1  # PostgreSQL's integer
LARGEST_CENTS = 2**63 - 1  # PostgreSQL's bigint

# Texts of these lengths fit into the columns of users and orders. A code is shorter than its columns, because
# `Order.reference` has a prefix before the code.
LONGEST_CODE = 50
LONGEST_DESCRIPTION = 500
LONGEST_COUNTRY = 100


class Reason(StrEnum):
    """Why a line is rejected. If several reasons apply, the first one in this order counts. The codes are stable."""

    MALFORMED_RECORD = "malformed-record"
    """A CSV record with too few or too many fields, or with broken quotes. The detail has the problem and the text."""
    UNREADABLE_VALUE = "unreadable-value"
    """A value is not a number, a date or a code, or is too long. The detail names its column."""
    NO_INVOICE = "no-invoice"
    BAD_DEBT = "bad-debt"
    """An adjustment of bad debt: the invoice begins with `A`."""
    NO_CUSTOMER = "no-customer"
    MISSING_VALUE = "missing-value"
    """The stock code, quantity or date is missing. The detail names the column."""
    NO_PRICE = "no-price"
    """The price is missing, zero or negative."""
    SALE_NOT_POSITIVE = "sale-not-positive"
    """A sale with a quantity of zero or less."""
    CANCELLATION_NOT_NEGATIVE = "cancellation-not-negative"
    """A cancellation (the invoice begins with `C`) with a quantity of zero or more."""
    OUT_OF_RANGE = "out-of-range"
    """Too large for PostgreSQL: the quantity (integer), the price, the line's amount or the invoice's sum (bigint)."""
    ANOTHER_CUSTOMER = "another-customer"
    """Most lines of the invoice have another customer. The detail names that customer."""


REASON_TYPE = pl.Enum([reason.value for reason in Reason])

_INVOICE, _STOCK_CODE, _DESCRIPTION, _QUANTITY, _DATE, _PRICE, _CUSTOMER, _COUNTRY = map(pl.col, COLUMNS)
_NUMBERS = ("Quantity", "Price", "Customer ID")

# If a column has gaps, a spreadsheet or pandas writes its whole numbers as floats, such as 13085.0.
_WHOLE_NUMBER = r"^(-?[0-9]+)(?:\.0*)?$"
_CUSTOMER_NUMBER = r"^([0-9]{1,18})(?:\.0*)?$"
_DECIMAL_NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
# U+FFFD replaces bytes that aren't UTF-8, so two different codes could become equal. PostgreSQL can't store U+0000.
_INVALID_IN_CODE = "[\ufffd\x00]"


def classify(lines: pl.DataFrame, times: TimeFormat) -> pl.DataFrame:
    """Parse the rows of `read_lines`. The result has a row for each of them, in the same order.

    `times` is the format of the file's times. The columns are:

    - `line`, `reason` (null for a sale or a cancellation), `detail`,
    - `customer` and `country`, for rejected lines too,
    - `invoice`, `is_cancellation`, `placed_at` (UTC), `stock_code`, `description`, `quantity` (above zero, for a
      cancellation too), `unit_price_cents`.

    Spaces around a value are removed. An empty value is null, and so is "NaN" in a column of numbers. A character that
    PostgreSQL can't store becomes U+FFFD in a description or a country.
    """
    values = lines.with_columns(pl.col(COLUMNS).str.strip_chars()).with_columns(
        pl.when(_is_present(name)).then(pl.col(name)) for name in COLUMNS
    )
    parsed = values.with_columns(
        _CUSTOMER.str.extract(_CUSTOMER_NUMBER).cast(pl.Int64).alias("customer"),
        _replace_nul(pl.when(_is_within(_COUNTRY, LONGEST_COUNTRY)).then(_COUNTRY)).alias("country"),
        _INVOICE.alias("invoice"),
        _INVOICE.str.starts_with("C").alias("is_cancellation"),
        parse_time(_DATE, times).alias("placed_at"),
        _STOCK_CODE.alias("stock_code"),
        _replace_nul(_DESCRIPTION).alias("description"),
        _QUANTITY.str.extract(_WHOLE_NUMBER).cast(pl.Int64, strict=False).alias("signed_quantity"),
        _parse_cents(values["Price"]).alias("unit_price_cents"),
    )
    return _with_reason(parsed).select(
        "line",
        "reason",
        "detail",
        "customer",
        "country",
        pl.col("invoice").cast(pl.Categorical),
        "is_cancellation",
        "placed_at",
        pl.col("stock_code").cast(pl.Categorical),
        pl.col("description").cast(pl.Categorical),
        pl.col("signed_quantity").abs().cast(pl.Int32, strict=False).alias("quantity"),
        "unit_price_cents",
    )


def price_in_cents(text: str) -> int | None:
    """A price in whole pence, with half a penny rounded up. None if it exceeds PostgreSQL's bigint.

    The price is computed as a decimal number. A float must be passed as its shortest decimal text. So 1.005 is 101
    pence, although the float 1.005 is slightly less than the decimal number.
    """
    try:
        cents = int(Decimal(text).quantize(Decimal("0.01"), ROUND_HALF_UP).scaleb(2))
    except InvalidOperation:
        return None
    return cents if abs(cents) <= LARGEST_CENTS else None


def _with_reason(parsed: pl.DataFrame) -> pl.DataFrame:
    """Add the columns `reason` and `detail`: the first `Reason` that applies."""
    is_cancellation = pl.col("is_cancellation")
    quantity, cents = pl.col("signed_quantity"), pl.col("unit_price_cents")
    unreadable = pl.coalesce(
        _unreadable("Invoice", _is_code(_INVOICE), "no invoice code"),
        _unreadable("StockCode", _is_code(_STOCK_CODE), "no stock code"),
        _unreadable("Description", _is_within(_DESCRIPTION, LONGEST_DESCRIPTION), "too long"),
        _unreadable("Quantity", _QUANTITY.str.contains(_WHOLE_NUMBER), "no whole number"),
        _unreadable("InvoiceDate", pl.col("placed_at").is_not_null(), "no date and time"),
        _unreadable("Price", _PRICE.str.contains(_DECIMAL_NUMBER), "no number"),
        _unreadable("Customer ID", pl.col("customer").is_not_null(), "no customer number"),
        _unreadable("Country", _is_within(_COUNTRY, LONGEST_COUNTRY), "too long"),
    )
    missing = pl.coalesce(
        pl.when(pl.col(name).is_null()).then(pl.lit(f"{name} is missing"))
        for name in ("StockCode", "Quantity", "InvoiceDate")
    )
    applies = {
        Reason.MALFORMED_RECORD: pl.col("malformed").is_not_null(),
        Reason.UNREADABLE_VALUE: pl.col("unreadable").is_not_null(),
        Reason.NO_INVOICE: _INVOICE.is_null(),
        Reason.BAD_DEBT: _INVOICE.str.starts_with("A"),
        Reason.NO_CUSTOMER: pl.col("customer").is_null(),
        Reason.MISSING_VALUE: pl.col("missing").is_not_null(),
        Reason.NO_PRICE: _PRICE.is_null() | (_PRICE.cast(pl.Float64, strict=False) <= 0),
        Reason.SALE_NOT_POSITIVE: ~is_cancellation & (quantity <= 0),
        Reason.CANCELLATION_NOT_NEGATIVE: is_cancellation & (quantity >= 0),
        # A number that was too large to parse is null. The division detects that quantity × cents would overflow.
        Reason.OUT_OF_RANGE: quantity.is_null()
        | ~quantity.is_between(-LARGEST_QUANTITY, LARGEST_QUANTITY)
        | cents.is_null()
        | (cents > LARGEST_CENTS // quantity.abs()),
    }
    return (
        parsed.with_columns(unreadable.alias("unreadable"), missing.alias("missing"))
        .with_columns(
            pl.coalesce(
                pl.when(test).then(pl.lit(reason.value, REASON_TYPE)) for reason, test in applies.items()
            ).alias("reason")
        )
        .with_columns(
            pl.when(pl.col("reason") == Reason.MALFORMED_RECORD.value)
            .then(pl.col("malformed"))
            .when(pl.col("reason") == Reason.UNREADABLE_VALUE.value)
            .then(pl.col("unreadable"))
            .when(pl.col("reason") == Reason.MISSING_VALUE.value)
            .then(pl.col("missing"))
            .alias("detail")
        )
    )


def _is_present(name: str) -> pl.Expr:
    value = pl.col(name)
    return value.str.to_lowercase().is_in(["", "nan"]).not_() if name in _NUMBERS else value != ""


def _is_code(value: pl.Expr) -> pl.Expr:
    return _is_within(value, LONGEST_CODE) & ~value.str.contains(_INVALID_IN_CODE)


def _is_within(text: pl.Expr, longest: int) -> pl.Expr:
    return text.str.len_chars() <= longest


def _unreadable(name: str, is_readable: pl.Expr, what: str) -> pl.Expr:
    value = pl.col(name)
    return pl.when(value.is_not_null() & ~is_readable).then(pl.format(f"{name}: '{{}}' is {what}", value))


def _replace_nul(text: pl.Expr) -> pl.Expr:
    return text.str.replace_all("\x00", "\ufffd", literal=True)


def _parse_cents(prices: pl.Series) -> pl.Series:
    """`price_in_cents` of each price that is a number. Equal prices are parsed once."""
    distinct = prices.filter(prices.str.contains(_DECIMAL_NUMBER)).unique()
    cents = pl.Series([price_in_cents(text) for text in distinct], dtype=pl.Int64)
    return prices.replace_strict(distinct, cents, default=None, return_dtype=pl.Int64)
