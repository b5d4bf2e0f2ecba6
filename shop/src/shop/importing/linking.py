"""Find the sale that a cancellation reverses. The file doesn't name it, so customers and items are compared."""

from collections import Counter, defaultdict
from itertools import islice, takewhile
from typing import TypeAlias

import polars as pl

_PRODUCT = ("customer", "stock_code", "unit_price_cents")
_LINK = {"position": pl.UInt32(), "sale": pl.UInt32(), "is_whole": pl.Boolean()}

_Product: TypeAlias = tuple[int, str, int]


def link_cancellations(invoices: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """The cancellations whose sale was found. The columns are `position`, `sale` and `is_whole`.

    `sale` is the position of the sale. `is_whole` is true if the cancellation reverses the whole sale.

    `invoices` has `position`, `customer` and `is_cancellation`; `lines` has `position`, `stock_code`,
    `unit_price_cents` and `quantity`. The position of a sale is lower than the positions of all cancellations at the
    same time or later.

    A sale matches if it has the same customer, is before the cancellation, and has at least the quantity of every
    product (stock code and unit price) of the cancellation. If several sales match, none is linked, because the file
    doesn't say which one is meant. Cancellations are processed by position. Each one reduces the quantities of the sale
    that it is linked to, so together they never exceed a sale.
    """
    cancelled = _quantities_by_product(_cancelled_lines(invoices, lines).collect())
    remaining = _quantities_by_product(_sold_lines(invoices, lines).collect(engine="streaming"))
    sales_with = defaultdict[_Product, list[int]](list)
    for sale in sorted(remaining):
        for product in remaining[sale]:
            sales_with[product].append(sale)
    quantities = dict(lines.group_by("position").agg(_total_quantity()).iter_rows())

    links: list[tuple[int, int, bool]] = []
    for position in sorted(cancelled):
        products = cancelled[position]
        candidates = min((sales_with[product] for product in products), key=len)
        earlier = takewhile(position.__gt__, candidates)
        match list(islice((sale for sale in earlier if products <= remaining[sale]), 2)):
            case [sale]:
                remaining[sale].subtract(products)
                links.append((position, sale, quantities[position] == quantities[sale]))
    return pl.DataFrame(links, schema=_LINK, orient="row")


def _cancelled_lines(invoices: pl.DataFrame, lines: pl.DataFrame) -> pl.LazyFrame:
    cancellations = invoices.lazy().filter("is_cancellation").select("position", "customer")
    return lines.lazy().join(cancellations, on="position")


def _sold_lines(invoices: pl.DataFrame, lines: pl.DataFrame) -> pl.LazyFrame:
    """The lines of sales, but only those of products that the same customer has cancelled."""
    sales = invoices.lazy().filter(~pl.col("is_cancellation")).select("position", "customer")
    return lines.lazy().join(sales, on="position").join(_cancelled_lines(invoices, lines), on=_PRODUCT, how="semi")


def _quantities_by_product(lines: pl.DataFrame) -> dict[int, Counter[_Product]]:
    """The quantity of each product, by the position of the invoice."""
    products = defaultdict[int, Counter[_Product]](Counter)
    for position, *product, quantity in lines.group_by("position", *_PRODUCT).agg(_total_quantity()).iter_rows():
        products[position][tuple(product)] = quantity
    return products


def _total_quantity() -> pl.Expr:
    return pl.col("quantity").cast(pl.Int64).sum()
