"""Group accepted lines into invoices, and reject lines that don't belong to their invoice."""

import polars as pl

from shop.importing.classifying import LARGEST_CENTS, REASON_TYPE, Reason
from shop.importing.linking import link_cancellations

AMOUNT = pl.col("quantity").cast(pl.Int64) * pl.col("unit_price_cents")


def reject_in_context(accepted: pl.DataFrame) -> pl.DataFrame:
    """The accepted lines that are rejected because of other lines of their invoice: `line`, `reason`, `detail`.

    An invoice belongs to the customer that most of its lines have. If several customers have equally many lines, it
    belongs to the one that occurs first. Lines with another customer are rejected. If the total of an invoice exceeds
    PostgreSQL's bigint, all its lines are rejected.
    """
    shares = (
        accepted.lazy()
        .group_by("invoice", "customer")
        .agg(pl.len().alias("lines"), pl.col("line").min(), AMOUNT.cast(pl.Int128).sum().alias("total"))
        .collect(engine="streaming")
    )
    owners = shares.sort("lines", "line", descending=[True, False]).unique("invoice", keep="first", maintain_order=True)
    rejected_shares = pl.concat(
        [
            shares.join(owners, on=["invoice", "customer"], how="anti")
            .join(owners.select("invoice", pl.col("customer").alias("owner")), on="invoice")
            .select(
                "invoice",
                "customer",
                pl.lit(Reason.ANOTHER_CUSTOMER.value, REASON_TYPE).alias("reason"),
                pl.format("the invoice is customer {}'s", "owner").alias("detail"),
            ),
            owners.filter(pl.col("total") > LARGEST_CENTS).select(
                "invoice",
                "customer",
                pl.lit(Reason.OUT_OF_RANGE.value, REASON_TYPE).alias("reason"),
                pl.lit("the invoice's total").alias("detail"),
            ),
        ]
    )
    rejected = accepted.select("line", "invoice", "customer").join(rejected_shares, on=["invoice", "customer"])
    return rejected.select("line", "reason", "detail")


def group_into_invoices(accepted: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The invoices, and their lines. Lines are ordered by invoice, and within an invoice as in the file.

    The columns of invoices are:

    - `position`: the number in the order of `placed_at`, `is_cancellation` and `invoice`. So at the same time, sales
      come before cancellations.
    - `invoice`, `customer`, `is_cancellation`, `item_count`.
    - `placed_at`: the time of the earliest line.
    - `cancels`: the `invoice` of the cancelled sale.
    - `is_whole`: whether the whole sale is cancelled.

    The columns of lines are `position`, `stock_code`, `description`, `quantity` and `unit_price_cents`.
    """
    invoices = (
        accepted.lazy()
        .group_by("invoice")
        .agg(
            pl.col("customer", "is_cancellation").first(),
            pl.col("placed_at").min(),
            pl.len().alias("item_count"),
        )
        .sort("placed_at", "is_cancellation", "invoice")
        .with_row_index("position")
        .collect(engine="streaming")
    )
    lines = (
        accepted.select("line", "invoice", "stock_code", "description", "quantity", "unit_price_cents")
        .join(invoices.select("invoice", "position"), on="invoice")
        .sort("position", "line")
        .drop("line", "invoice")
    )
    links = link_cancellations(invoices, lines)
    sales = invoices.select(pl.col("position").alias("sale"), pl.col("invoice").alias("cancels"))
    links = links.join(sales, on="sale").drop("sale")
    return invoices.join(links, on="position", how="left", maintain_order="left"), lines
