"""Finds the sale that a cancellation reverses. The file doesn't name it, so it is told from what was sold to whom."""

from collections import Counter, defaultdict
from itertools import islice, takewhile
from typing import TypeAlias

import polars as pl

_WARE = ("customer", "stock_code", "unit_price_cents")
_LINK = {"position": pl.UInt32(), "sale": pl.UInt32(), "is_whole": pl.Boolean()}

_Ware: TypeAlias = tuple[int, str, int]


def link_cancellations(invoices: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """The cancellations whose sale can be told: `position`, `sale` (its position), `is_whole` (it reverses all of it).

    `invoices` has `position`, `customer` and `is_cancellation`; `lines` has `position`, `stock_code`,
    `unit_price_cents` and `quantity`. A sale's position is below that of any cancellation at its time or later.

    A sale can be meant if it went to the same customer, stands before the cancellation, and has every ware (stock code
    and unit price) of it, in at least that number. If several sales can be meant, nobody can tell which one was, and
    none is linked. Cancellations are taken by position, and each takes its pieces out of the sale that it is linked to:
    together they never exceed a sale.
    """
    wanted = _wares(_cancelled(invoices, lines).collect())
    left = _wares(_sold(invoices, lines).collect(engine="streaming"))
    sales_with = defaultdict[_Ware, list[int]](list)
    for sale in sorted(left):
        for ware in left[sale]:
            sales_with[ware].append(sale)
    pieces = dict(lines.group_by("position").agg(_pieces()).iter_rows())

    links: list[tuple[int, int, bool]] = []
    for position in sorted(wanted):
        wares = wanted[position]
        scarcest = min((sales_with[ware] for ware in wares), key=len)
        earlier = takewhile(position.__gt__, scarcest)
        match list(islice((sale for sale in earlier if wares <= left[sale]), 2)):
            case [sale]:
                left[sale].subtract(wares)
                links.append((position, sale, pieces[position] == pieces[sale]))
    return pl.DataFrame(links, schema=_LINK, orient="row")


def _cancelled(invoices: pl.DataFrame, lines: pl.DataFrame) -> pl.LazyFrame:
    cancellations = invoices.lazy().filter("is_cancellation").select("position", "customer")
    return lines.lazy().join(cancellations, on="position")


def _sold(invoices: pl.DataFrame, lines: pl.DataFrame) -> pl.LazyFrame:
    """Of what was sold, the wares that their customer cancelled at some time."""
    sales = invoices.lazy().filter(~pl.col("is_cancellation")).select("position", "customer")
    return lines.lazy().join(sales, on="position").join(_cancelled(invoices, lines), on=_WARE, how="semi")


def _wares(lines: pl.DataFrame) -> dict[int, Counter[_Ware]]:
    """How many pieces of each ware the invoice at each position has."""
    wares = defaultdict[int, Counter[_Ware]](Counter)
    for position, *ware, quantity in lines.group_by("position", *_WARE).agg(_pieces()).iter_rows():
        wares[position][tuple(ware)] = quantity
    return wares


def _pieces() -> pl.Expr:
    return pl.col("quantity").cast(pl.Int64).sum()
