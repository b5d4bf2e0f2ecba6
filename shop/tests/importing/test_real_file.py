"""The real file, compared with known figures. Skipped without the file, which the project doesn't need."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from shop.importing.classifying import Reason
from shop.importing.options import TimeFormat
from shop.importing.retail import Invoice, RetailFile, read_retail

IMPORT_AND_MEASURE = """
import sys
from pathlib import Path
from shop.importing.retail import read_retail

retail = read_retail(Path(sys.argv[1]))
items = sum(len(invoice.items) for batch in retail.batches() for invoice in batch)
retail.write_rejects(Path(sys.argv[2]))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(items, int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.fixture(scope="module")
def path(real_file: Path) -> Path:
    return real_file


@pytest.fixture(scope="module")
def retail(path: Path) -> RetailFile:
    return read_retail(path)


@pytest.fixture(scope="module")
def invoices(retail: RetailFile) -> list[Invoice]:
    return [invoice for batch in retail.batches() for invoice in batch]


def test_all_525461_lines_are_counted(retail: RetailFile) -> None:
    summary = retail.summary
    assert summary.lines == 525_461
    assert summary.sale_lines + summary.cancellation_lines + summary.rejected_lines == 525_461


def test_417534_lines_have_a_customer(retail: RetailFile) -> None:
    rejected = retail.summary.rejected
    assert 525_461 - rejected[Reason.NO_CUSTOMER] - rejected[Reason.BAD_DEBT] == 417_534


def test_407664_lines_are_sales(retail: RetailFile) -> None:
    assert retail.summary.sale_lines == 407_664


def test_19213_sales_are_worth_883200326_pence(retail: RetailFile, invoices: list[Invoice]) -> None:
    assert (retail.summary.sales, retail.summary.sales_cents) == (19_213, 883_200_326)
    totals = [invoice.total_cents for invoice in invoices if invoice.status == "delivered"]
    assert (len(totals), sum(totals)) == (19_213, 883_200_326)


def test_the_file_has_4383_customers(retail: RetailFile) -> None:
    assert retail.summary.customers == len(retail.customers) == 4_383


def test_every_rejected_line_has_the_expected_reason(retail: RetailFile) -> None:
    assert retail.summary.rejected == {Reason.BAD_DEBT: 3, Reason.NO_CUSTOMER: 107_924, Reason.NO_PRICE: 31}


def test_the_13283_copies_of_lines_are_kept(path: Path, invoices: list[Invoice]) -> None:
    lines = pl.read_parquet(path)
    accepted = lines.filter(pl.col("Customer ID").is_not_null() & (pl.col("Price") > 0))
    assert lines.is_duplicated().sum() == 13_283
    assert sum(len(invoice.items) for invoice in invoices) == accepted.height


def test_a_cancellation_is_linked_only_to_an_earlier_sale_of_the_same_customer(invoices: list[Invoice]) -> None:
    seen: dict[str, Invoice] = {}
    for invoice in invoices:
        if invoice.cancels is not None:
            sale = seen[invoice.cancels]
            assert sale.customer_number == invoice.customer_number
            assert sale.status == "delivered"
            assert sale.placed_at <= invoice.placed_at
        seen[invoice.reference] = invoice


def test_cancellations_never_exceed_their_sale(invoices: list[Invoice]) -> None:
    def pieces(invoice: Invoice) -> Counter[tuple[str, int]]:
        count = Counter[tuple[str, int]]()
        for item in invoice.items:
            count[item.stock_code, item.unit_price_cents] += item.quantity
        return count

    left = {invoice.reference: pieces(invoice) for invoice in invoices if invoice.status == "delivered"}
    for invoice in invoices:
        if invoice.cancels is not None:
            assert (invoice.status == "cancelled") == (pieces(invoice) == left[invoice.cancels])
            left[invoice.cancels].subtract(pieces(invoice))
            assert min(left[invoice.cancels].values()) >= 0


def test_the_expected_number_of_cancellations_is_linked(retail: RetailFile) -> None:
    """These figures have no other source. The test fails if the rules change."""
    summary = retail.summary
    assert (summary.cancellations, summary.linked, summary.cancelled) == (4_372, 2_289, 128)


def test_csv_and_parquet_have_the_same_result(path: Path, retail: RetailFile, tmp_path: Path) -> None:
    copy = tmp_path / "retail.csv"
    pl.read_parquet(path).write_csv(copy)
    from_csv = read_retail(copy)
    assert from_csv.summary == retail.summary
    assert from_csv.customers == retail.customers
    for batch, batch_from_csv in zip(retail.batches(), from_csv.batches(), strict=True):
        assert batch_from_csv == batch


def test_the_other_published_file_is_read_with_its_own_names_and_times(real_sample: Path, tmp_path: Path) -> None:
    retail = read_retail(real_sample)
    summary = retail.summary
    assert (summary.times, summary.lines) == (TimeFormat.MONTH_FIRST, 228)
    assert (summary.sale_lines, summary.sales, summary.sales_cents) == (188, 11, 338_110)
    assert summary.cancellation_lines == 10
    assert summary.rejected == {Reason.NO_CUSTOMER: 30}
    placed = {invoice.reference: invoice.placed_at for batch in retail.batches() for invoice in batch}
    assert placed["retail:536365"] == datetime(2010, 12, 1, 8, 26, tzinfo=UTC)
    retail.write_rejects(tmp_path / "rejects.csv")
    assert pl.read_csv(tmp_path / "rejects.csv", infer_schema=False).height == 30


def test_the_other_published_file_is_the_same_with_iso_times_and_as_parquet(real_sample: Path, tmp_path: Path) -> None:
    retail = read_retail(real_sample)
    lines = pl.read_csv(real_sample, infer_schema_length=None)
    times = pl.col("InvoiceDate").str.to_datetime("%m/%d/%y %H:%M")
    lines.with_columns(times).write_parquet(tmp_path / "times.parquet")
    lines.with_columns(times.dt.to_string("%Y-%m-%d %H:%M")).write_csv(tmp_path / "iso.csv")
    for name in ("times.parquet", "iso.csv"):
        other = read_retail(tmp_path / name)
        assert other.summary == replace(retail.summary, times=TimeFormat.ISO)
        assert list(other.batches()) == list(retail.batches())


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_an_import_needs_less_than_300_mb(path: Path, tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.csv"
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_AND_MEASURE, path, rejects], check=True, capture_output=True, text=True
    )
    items, megabytes = map(int, run.stdout.split())
    assert items == 417_503
    assert megabytes < 300
    assert pl.read_csv(rejects, infer_schema=False).height == 107_958
