"""The contents of a retail file: customers, invoices with their items, and rejected lines.

Nothing here depends on the database. The result depends only on the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl

from shop.importing.classifying import Reason, classify
from shop.importing.grouping import AMOUNT, group_into_invoices, reject_in_context
from shop.importing.options import TimeFormat
from shop.importing.reading import UnreadableFile, read_lines
from shop.importing.rejects import write_rejects
from shop.importing.time_formats import NoTimeFormat, find_time_format

Status = Literal["delivered", "cancelled", "refunded"]


@dataclass(frozen=True, slots=True)
class Customer:
    """A customer of the file. A customer is included even if all of their lines are rejected."""

    number: int
    country: str | None
    """The last country that the customer's lines have."""

    @property
    def name(self) -> str:
        return f"Customer {self.number}"

    @property
    def email(self) -> str:
        return f"customer-{self.number}@retail.example"


class Item(NamedTuple):
    """A line of an invoice. A tuple needs less memory than an object, and a file has hundreds of thousands of lines."""

    line_no: int
    """From 1 within the invoice, in the order of the file, without rejected lines."""
    stock_code: str
    description: str | None
    quantity: int
    """Above zero, for a cancellation too."""
    unit_price_cents: int
    """Zero for a price below half a penny."""


@dataclass(frozen=True, slots=True)
class Invoice:
    """A sale or a cancellation, with its accepted lines. It has at least one."""

    reference: str
    """`retail:` and the invoice's code, the same in every import."""
    customer_number: int
    placed_at: datetime
    """UTC; the time of the earliest line."""
    status: Status
    """A sale is `delivered`. A cancellation is `cancelled` if it reverses a whole sale, otherwise `refunded`."""
    cancels: str | None
    """The reference of the sale that a cancellation reverses, if it was found."""
    items: tuple[Item, ...]

    @property
    def total_cents(self) -> int:
        return sum(item.quantity * item.unit_price_cents for item in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`sale_lines`, `cancellation_lines` and `rejected_lines` add up to `lines`."""

    times: TimeFormat | None
    """The format of the file's times; None if no line has a time."""
    lines: int
    sale_lines: int
    cancellation_lines: int
    rejected: dict[Reason, int]
    """The number of lines by reason, in the order of `Reason`. Reasons that don't occur are left out."""
    customers: int
    sales: int
    sales_cents: int
    cancellations: int
    cancellations_cents: int
    linked: int
    """Cancellations whose sale was found."""
    cancelled: int
    """Linked cancellations that reverse a whole sale."""

    @property
    def rejected_lines(self) -> int:
        return sum(self.rejected.values())


class RetailFile:
    """The result of `read_retail`."""

    def __init__(
        self,
        path: Path,
        *,
        customers: tuple[Customer, ...],
        invoices: pl.DataFrame,
        lines: pl.DataFrame,
        rejects: pl.DataFrame,
        summary: Summary,
    ) -> None:
        self.customers = customers
        """In the order of their numbers."""
        self.rejects = rejects
        """`line`, `reason`, `detail` of each rejected line, in the order of the file."""
        self.summary = summary
        self._path = path
        self._invoices = invoices
        self._lines = lines

    def batches(self, *, items: int = 10_000) -> Iterator[list[Invoice]]:
        """Lists of invoices with about `items` items each. All calls return the same lists.

        The invoices are ordered by `placed_at`, with sales before cancellations, then by code. So a sale comes before
        its cancellation.
        """
        items_before = pl.col("item_count").cum_sum() - pl.col("item_count")
        numbered = self._invoices.with_columns((items_before // items).alias("batch"))
        start = 0
        for invoices in numbered.partition_by("batch", maintain_order=True):
            count = int(invoices["item_count"].sum())
            yield list(_build_invoices(invoices, self._lines.slice(start, count)))
            start += count

    def write_rejects(self, target: Path) -> None:
        """Write the rejected lines to `target`. Reads the file again."""
        write_rejects(self._path, self.rejects, target)


def read_retail(path: Path, times: TimeFormat | None = None) -> RetailFile:
    """Read a whole file. `times` is the format of the file's times. By default `find_time_format` determines it.

    Raises `UnreadableFile` if it isn't a retail file, or if the format of its times can't be determined. An unreadable
    line is rejected, and reading continues. Every line is a sale, a cancellation or a reject. Identical lines are all
    counted.
    """
    accepted_parts, rejects_parts, customers_parts = [], [], []
    line_count = 0
    try:
        times = find_time_format(read_lines(path, ["InvoiceDate"]), times)
    except NoTimeFormat as error:
        raise UnreadableFile(path, str(error)) from error
    for lines in (classify(each, times or TimeFormat.ISO) for each in read_lines(path)):
        line_count += lines.height
        is_accepted = pl.col("reason").is_null()
        accepted_parts.append(lines.filter(is_accepted).drop("reason", "detail", "country"))
        rejects_parts.append(lines.filter(~is_accepted).select("line", "reason", "detail"))
        customers_parts.append(_select_customers(lines))
    accepted = pl.concat(accepted_parts)
    accepted_parts.clear()

    in_context = reject_in_context(accepted)
    accepted = accepted.join(in_context, on="line", how="anti", maintain_order="left")
    rejects = pl.concat([*rejects_parts, in_context]).sort("line")
    invoices, lines = group_into_invoices(accepted)
    customers = _select_customers(pl.concat(customers_parts)).sort("customer")
    return RetailFile(
        path,
        customers=tuple(Customer(number, country) for number, country in customers.iter_rows()),
        invoices=invoices,
        lines=lines,
        rejects=rejects,
        summary=_summarize(invoices, lines, rejects, customers, times=times, line_count=line_count),
    )


def _select_customers(lines: pl.DataFrame) -> pl.DataFrame:
    """Every `customer` of the lines, with the last `country` that they have."""
    return (
        lines.filter(pl.col("customer").is_not_null())
        .group_by("customer", maintain_order=True)
        .agg(pl.col("country").drop_nulls().last())
    )


def _summarize(
    invoices: pl.DataFrame,
    lines: pl.DataFrame,
    rejects: pl.DataFrame,
    customers: pl.DataFrame,
    *,
    times: TimeFormat | None,
    line_count: int,
) -> Summary:
    """Count the lines, customers and invoices, and sum the amounts."""
    is_cancellation = pl.col("is_cancellation")
    amounts = lines.select("position", AMOUNT.alias("cents")).join(
        invoices.select("position", "is_cancellation"), on="position"
    )
    sales = amounts.filter(~is_cancellation)
    cancellations = amounts.filter(is_cancellation)
    found = dict(rejects.group_by("reason").len().iter_rows())
    linked = invoices.filter(pl.col("cancels").is_not_null())
    return Summary(
        times=times,
        lines=line_count,
        sale_lines=sales.height,
        cancellation_lines=cancellations.height,
        rejected={reason: found[reason] for reason in Reason if reason in found},
        customers=customers.height,
        sales=invoices.filter(~is_cancellation).height,
        sales_cents=_sum_amounts(sales),
        cancellations=invoices.filter(is_cancellation).height,
        cancellations_cents=_sum_amounts(cancellations),
        linked=linked.height,
        cancelled=linked.filter("is_whole").height,
    )


def _sum_amounts(amounts: pl.DataFrame) -> int:
    return int(amounts["cents"].cast(pl.Int128).sum())


def _build_invoices(invoices: pl.DataFrame, lines: pl.DataFrame) -> Iterator[Invoice]:
    """The rows of `invoices`, with the rows of `lines`, which are in the same order."""
    counts = invoices["item_count"].to_list()
    line_numbers = chain.from_iterable(range(1, count + 1) for count in counts)
    columns = lines.select("stock_code", "description", "quantity", "unit_price_cents").get_columns()
    items = map(Item, line_numbers, *(column.to_list() for column in columns))
    for count, (code, customer, placed_at, is_cancellation, is_whole, cancels) in zip(
        counts,
        invoices.select(
            "invoice",
            "customer",
            pl.col("placed_at").dt.replace_time_zone(None),
            "is_cancellation",
            "is_whole",
            "cancels",
        ).iter_rows(),
        strict=True,
    ):
        yield Invoice(
            reference=_build_reference(code),
            customer_number=customer,
            placed_at=placed_at.replace(tzinfo=UTC),
            status=_derive_status(is_cancellation=is_cancellation, is_whole=is_whole),
            cancels=None if cancels is None else _build_reference(cancels),
            items=tuple(islice(items, count)),
        )


def _build_reference(invoice: str) -> str:
    return f"retail:{invoice}"


def _derive_status(*, is_cancellation: bool, is_whole: bool | None) -> Status:
    if not is_cancellation:
        return "delivered"
    return "cancelled" if is_whole else "refunded"
