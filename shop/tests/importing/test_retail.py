import csv
import io
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shop.importing.classifying import LARGEST_CENTS, Reason
from shop.importing.reading import COLUMNS
from shop.importing.retail import Customer, Invoice, Item, RetailFile, read_retail

WriteFile = Callable[..., Path]


def invoices_of(retail: RetailFile) -> list[Invoice]:
    return [invoice for batch in retail.batches() for invoice in batch]


def reasons_of(retail: RetailFile) -> dict[int, str]:
    return dict(retail.rejects.select("line", "reason").iter_rows())


def assert_summary_is_correct(retail: RetailFile, line_count: int) -> None:
    summary, invoices = retail.summary, invoices_of(retail)
    sales = [invoice for invoice in invoices if invoice.status == "delivered"]
    cancellations = [invoice for invoice in invoices if invoice.status != "delivered"]
    assert summary.lines == line_count
    assert summary.sale_lines + summary.cancellation_lines + summary.rejected_lines == line_count
    assert summary.sale_lines == sum(len(invoice.items) for invoice in sales)
    assert summary.cancellation_lines == sum(len(invoice.items) for invoice in cancellations)
    assert summary.rejected_lines == retail.rejects.height == retail.rejects["line"].n_unique()
    assert summary.rejected == {reason: n for reason in Reason if (n := list(retail.rejects["reason"]).count(reason))}
    assert (summary.sales, summary.cancellations) == (len(sales), len(cancellations))
    assert summary.sales_cents == sum(invoice.total_cents for invoice in sales)
    assert summary.cancellations_cents == sum(invoice.total_cents for invoice in cancellations)
    assert summary.linked == sum(invoice.cancels is not None for invoice in cancellations)
    assert summary.cancelled == sum(invoice.status == "cancelled" for invoice in cancellations)
    assert summary.customers == len(retail.customers)
    assert {invoice.customer_number for invoice in invoices} <= {customer.number for customer in retail.customers}
    assert len({invoice.reference for invoice in invoices}) == len(invoices)


def test_an_invoice_becomes_one_order_with_its_lines_in_the_order_of_the_file(write_csv: WriteFile) -> None:
    other = {"Invoice": "500002", "InvoiceDate": "2010-01-05 11:00:00"}
    retail = read_retail(
        write_csv({"StockCode": "B"}, other, {"Price": "0"}, {"StockCode": "A", "Description": "", "Quantity": "7"})
    )
    assert invoices_of(retail)[0] == Invoice(
        reference="retail:500001",
        customer_number=13085,
        placed_at=datetime(2010, 1, 5, 10, 30, tzinfo=UTC),
        status="delivered",
        cancels=None,
        items=(Item(1, "B", "SCOTTIE DOG", 2, 495), Item(2, "A", None, 7, 495)),
    )
    assert invoices_of(retail)[0].total_cents == 9 * 495
    assert_summary_is_correct(retail, 4)


def test_duplicate_lines_are_kept(write_csv: WriteFile) -> None:
    retail = read_retail(write_csv({}, {}, {}))
    assert [item.line_no for item in invoices_of(retail)[0].items] == [1, 2, 3]
    assert retail.summary.sales_cents == 3 * 990


def test_an_order_has_the_time_of_its_earliest_line(write_csv: WriteFile) -> None:
    times = ["2010-01-05 10:31:00", "2010-01-05 10:30:00", "2010-01-05 10:39:00"]
    retail = read_retail(write_csv(*({"InvoiceDate": time} for time in times)))
    assert invoices_of(retail)[0].placed_at == datetime(2010, 1, 5, 10, 30, tzinfo=UTC)


def test_an_invoice_belongs_to_the_customer_of_most_of_its_lines(write_csv: WriteFile) -> None:
    retail = read_retail(write_csv({"Customer ID": "7"}, {"Customer ID": "8"}, {"Customer ID": "8"}))
    assert [invoice.customer_number for invoice in invoices_of(retail)] == [8]
    assert retail.rejects.rows() == [(2, Reason.ANOTHER_CUSTOMER, "the invoice is customer 8's")]
    assert_summary_is_correct(retail, 3)


def test_an_invoice_with_equally_many_lines_of_two_customers_belongs_to_the_first(write_csv: WriteFile) -> None:
    retail = read_retail(write_csv({"Customer ID": "8"}, {"Customer ID": "7"}, {"Customer ID": ""}))
    assert [invoice.customer_number for invoice in invoices_of(retail)] == [8]
    assert reasons_of(retail) == {3: Reason.ANOTHER_CUSTOMER, 4: Reason.NO_CUSTOMER}


def test_all_lines_of_an_invoice_with_too_large_a_total_are_rejected(write_csv: WriteFile) -> None:
    half = {"Quantity": "1", "Price": f"{LARGEST_CENTS // 200}.99"}
    retail = read_retail(write_csv(half, half, half, {"Invoice": "500002"}))
    assert reasons_of(retail) == dict.fromkeys([2, 3, 4], Reason.OUT_OF_RANGE)
    assert [invoice.reference for invoice in invoices_of(retail)] == ["retail:500002"]
    assert_summary_is_correct(retail, 4)


def test_a_whole_cancellation_is_cancelled_and_a_part_is_refunded(write_csv: WriteFile) -> None:
    part = {"Invoice": "C500003", "Quantity": "-1", "StockCode": "X"}
    retail = read_retail(
        write_csv({}, {"Invoice": "500002", "StockCode": "X"}, {"Invoice": "C500002", "Quantity": "-2"}, part)
    )
    assert [(invoice.reference, invoice.status, invoice.cancels) for invoice in invoices_of(retail)] == [
        ("retail:500001", "delivered", None),
        ("retail:500002", "delivered", None),
        ("retail:C500002", "cancelled", "retail:500001"),
        ("retail:C500003", "refunded", "retail:500002"),
    ]
    assert_summary_is_correct(retail, 4)


def test_a_cancellation_whose_sale_is_not_in_the_file_is_refunded_without_a_link(write_csv: WriteFile) -> None:
    (invoice,) = invoices_of(read_retail(write_csv({"Invoice": "C1", "Quantity": "-2"})))
    assert (invoice.status, invoice.cancels) == ("refunded", None)
    assert invoice.items[0].quantity == 2


def test_a_sale_comes_before_its_cancellation_in_any_order_of_the_file(write_csv: WriteFile) -> None:
    retail = read_retail(
        write_csv(
            {"Invoice": "C1", "Quantity": "-2"},
            {"Invoice": "Z"},
            {"Invoice": "B", "StockCode": "other"},
            {"Invoice": "Y", "StockCode": "other", "InvoiceDate": "2010-01-05 10:29:59"},
        )
    )
    assert [invoice.reference.removeprefix("retail:") for invoice in invoices_of(retail)] == ["Y", "B", "Z", "C1"]
    assert invoices_of(retail)[-1].cancels == "retail:Z"


def test_every_customer_id_of_the_file_is_a_customer(write_csv: WriteFile) -> None:
    retail = read_retail(
        write_csv(
            {"Customer ID": "9", "Country": "France"},
            {"Customer ID": "7", "Price": "0"},
            {"Customer ID": "8", "Quantity": "many", "Country": ""},
            {"Customer ID": "9", "Country": "Spain"},
            {"Customer ID": "9", "Country": "", "Invoice": ""},
            {"Customer ID": ""},
            {"Customer ID": "nobody"},
        )
    )
    assert retail.customers == (Customer(7, "United Kingdom"), Customer(8, None), Customer(9, "Spain"))
    assert retail.customers[0].email == "customer-7@retail.example"
    assert retail.customers[0].name == "Customer 7"


@pytest.mark.parametrize("items", [1, 3, 7, 1000])
def test_batches_have_whole_invoices_and_are_repeatable(write_csv: WriteFile, items: int) -> None:
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    retail = read_retail(write_csv(*({"Invoice": f"{i}"} for i, size in enumerate(sizes) for _ in range(size))))
    batches = list(retail.batches(items=items))
    assert [len(invoice.items) for batch in batches for invoice in batch] == sizes
    assert [[item.line_no for item in invoice.items] for batch in batches for invoice in batch] == [
        list(range(1, size + 1)) for size in sizes
    ]
    assert max(sum(len(invoice.items) for invoice in batch) for batch in batches) < items + max(sizes)
    assert list(retail.batches(items=items)) == batches


def test_a_file_without_lines_is_an_empty_import(write_csv: WriteFile, tmp_path: Path) -> None:
    retail = read_retail(write_csv())
    assert list(retail.batches()) == []
    assert retail.customers == ()
    assert_summary_is_correct(retail, 0)
    retail.write_rejects(tmp_path / "rejects.csv")


def test_a_file_with_only_rejected_lines_is_an_empty_import(write_csv: WriteFile) -> None:
    retail = read_retail(write_csv({"Price": ""}, {"Price": "x"}))
    assert list(retail.batches()) == []
    assert_summary_is_correct(retail, 2)


def test_floats_that_are_not_usable_numbers_are_rejected(write_parquet: WriteFile) -> None:
    retail = read_retail(
        write_parquet({"Price": math.nan}, {"Price": math.inf}, {"Customer ID": math.nan}, {"Customer ID": 0.5}, {})
    )
    assert list(reasons_of(retail).values()) == [
        Reason.NO_PRICE,
        Reason.UNREADABLE_VALUE,
        Reason.NO_CUSTOMER,
        Reason.UNREADABLE_VALUE,
    ]
    assert_summary_is_correct(retail, 5)


def test_parquet_and_csv_files_with_the_same_lines_are_imported_alike(
    write_csv: WriteFile, write_parquet: WriteFile
) -> None:
    lines = [{"Invoice": "7", "Price": "0.615"}, {"Customer ID": ""}, {"Invoice": "C7", "Quantity": "-1"}]
    typed = [{"Invoice": "7", "Price": 0.615}, {"Customer ID": None}, {"Invoice": "C7", "Quantity": -1}]
    from_csv, from_parquet = read_retail(write_csv(*lines)), read_retail(write_parquet(*typed))
    assert invoices_of(from_csv) == invoices_of(from_parquet)
    assert from_csv.summary == from_parquet.summary


def test_rejected_lines_are_written_with_their_number_reason_and_original_columns(
    write_csv: WriteFile, tmp_path: Path
) -> None:
    path = write_csv({}, {"Price": " 0.0"}, {"Quantity": "m,any"})
    with path.open("a") as file:
        file.write("500001,22111\n")
    target = tmp_path / "rejects.csv"
    target.write_text("of an earlier import")
    read_retail(path).write_rejects(target)
    columns = ["500001", "22111", "SCOTTIE DOG", "2", "2010-01-05 10:30:00", " 0.0", "13085.0", "United Kingdom"]
    with target.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["line", "reason", "detail", *COLUMNS],
            ["3", "no-price", "", *columns],
            [
                "4",
                "unreadable-value",
                "Quantity: 'm,any' is no whole number",
                *columns[:3],
                "m,any",
                columns[4],
                "4.95",
                *columns[6:],
            ],
            ["5", "malformed-record", "2 fields instead of 8: 500001,22111", *[""] * 8],
        ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rejects.csv", "retail.csv"]


def test_if_rejected_lines_cannot_be_written_the_earlier_file_is_kept(write_csv: WriteFile, tmp_path: Path) -> None:
    path = write_csv({"Price": ""})
    retail = read_retail(path)
    target = tmp_path / "rejects.csv"
    target.write_text("of an earlier import")
    path.write_text("another file")
    with pytest.raises(Exception, match="has no column"):
        retail.write_rejects(target)
    assert target.read_text() == "of an earlier import"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rejects.csv", "retail.csv"]


values = st.fixed_dictionaries(
    {
        "Invoice": st.sampled_from(["1", "2", "C1", "C2", "A1", "", " 1"]) | st.text(max_size=3),
        "StockCode": st.sampled_from(["dog", "cat", ""]),
        "Description": st.sampled_from(["", "A"]) | st.text(max_size=5),
        "Quantity": st.integers(-3, 3).map(str) | st.sampled_from(["", "x", "1.0", "9" * 10, "-" + "9" * 30]),
        "InvoiceDate": st.sampled_from(["2010-01-05 10:30:00", "2010-03-28 01:30:00", "2010-13-01 00:00:00", ""]),
        "Price": st.sampled_from(["1", "2.5", "0", "-1", "nan", "inf", "1e400", "9e16", "", "0.001"]),
        "Customer ID": st.sampled_from(["1", "2.0", "", "x"]),
        "Country": st.text(max_size=3),
    }
)


@settings(max_examples=settings().max_examples // 3, deadline=None)
@given(st.lists(values, max_size=20))
def test_every_line_is_a_sale_a_cancellation_or_rejected(lines: list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerow({"InvoiceDate": "2010-01-05 10:30:00"})  # determines the format of the times
    writer.writerows(lines)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "retail.csv"
        path.write_bytes(text.getvalue().encode("utf-8", "replace"))
        assert_summary_is_correct(read_retail(path), len(lines) + 1)


@settings(max_examples=settings().max_examples // 3, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "Invoice": st.sampled_from(["1", "C1"]),
                "Quantity": st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2) | st.none(),
                "Price": st.floats() | st.just(1.0) | st.none(),
                "Customer ID": st.floats() | st.just(1.0) | st.none(),
            }
        ),
        max_size=20,
    )
)
def test_every_row_of_numbers_is_a_sale_a_cancellation_or_rejected(rows: list[dict[str, object]]) -> None:
    frame = pl.DataFrame(
        rows, schema={"Invoice": pl.String, "Quantity": pl.Int64, "Price": pl.Float64, "Customer ID": pl.Float64}
    ).with_columns(
        StockCode=pl.lit("dog"), Description=pl.lit(None), InvoiceDate=pl.lit("2010-01-05 10:30:00"), Country=pl.lit("")
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "retail.parquet"
        frame.write_parquet(path)
        assert_summary_is_correct(read_retail(path), len(rows))


@settings(max_examples=settings().max_examples // 3, deadline=None)
@given(st.lists(st.sampled_from([b'"', b",", b"\n", b"\r", b"\x00", b"\xff", b"1", b" ", b"C1,a,b,-1,"]), max_size=60))
@example([b'"', b"1", b"\n"] * 3)
def test_every_sequence_of_bytes_is_imported(parts: list[bytes]) -> None:
    """Only blank lines are skipped. Every other line belongs to a record, and every record is accounted for."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "retail.csv"
        a_time = b",,,,2010-01-05 10:30:00,,,\n"  # determines the format of the times
        path.write_bytes(",".join(COLUMNS).encode() + b"\n" + a_time + b"".join(parts))
        retail = read_retail(path)
        assert_summary_is_correct(retail, retail.summary.lines)
        retail.write_rejects(Path(folder) / "rejects.csv")
        assert (retail.summary.lines == 1) == (b"".join(parts).strip(b"\r\n") == b"")
