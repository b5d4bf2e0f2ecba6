"""The output of `shop import retail`."""

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from sqlalchemy import text
from typer.testing import CliRunner, Result

from howdah import Database
from shop.cli import app
from shop.importing import command
from shop.postgres import describe_location
from shop.settings import Settings

WriteFile = Callable[..., Path]
Import = Callable[..., Result]
AnotherImport = Callable[[], AbstractAsyncContextManager[None]]

REJECTS = "retail.csv.rejects.csv"


@pytest.fixture
def shop_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Import:
    """Runs `shop import retail` in the directory of the file."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, database_url: str) -> Result:
        monkeypatch.setenv("SHOP_OWNER_DATABASE_URL", database_url)
        return CliRunner().invoke(app, ["import", "retail", *map(str, arguments)])

    return run


@pytest.fixture
def mixed_file(write_csv: WriteFile) -> Path:
    return write_csv(
        {"Quantity": "1000"},
        {"Invoice": "500002", "StockCode": "B", "Price": "1.005"},
        {"Invoice": "C500002", "StockCode": "B", "Price": "1.005", "Quantity": "-1"},
        {"Invoice": "C500003", "Quantity": "-1", "StockCode": "?"},
        {"Customer ID": ""},
        {"Customer ID": ""},
        {"Price": "0", "Customer ID": "7"},
        {"Quantity": "many"},
    )


def numbers_by_label(output: str) -> dict[str, int]:
    """The numbers of the summary, by label."""
    found = re.findall(r"^ *(\S.*?)  +([\d,]+)(?:  .*)?$", output, re.MULTILINE)
    return {label: int(number.replace(",", "")) for label, number in found}


def test_the_summary_accounts_for_every_line(shop_import: Import, committed_url: str, mixed_file: Path) -> None:
    result = shop_import(mixed_file, database_url=committed_url)
    assert result.exit_code == 0
    assert result.stdout == (
        "lines of the file                8\n"
        "  of sales                       2\n"
        "  of cancellations               2\n"
        "  rejected                       4\n"
        "    unreadable-value             1\n"
        "    no-customer                  2\n"
        "    no-price                     1\n"
        "users                            2\n"
        "  created                        2\n"
        "  existing                       0\n"
        "orders                           4\n"
        "  created                        4\n"
        "  existing                       0\n"
        "    with another total           0\n"
        "sales                            2  £4,952.02 (495,202 pence)\n"
        "cancellations                    2  £5.96 (596 pence)\n"
        "  of a whole sale: cancelled     0\n"
        "  of a part of a sale: refunded  1\n"
        "  of an unknown sale: refunded   1\n"
        "\n"
        "Times are read as YYYY-MM-DD HH:MM:SS (iso), in the time zone Europe/London.\n"
        "Each unit price is rounded to whole pence, half a penny up, and then multiplied by the quantity.\n"
        f"rejected lines, with reasons: {REJECTS}\n"
    )
    database, speed = result.stderr.splitlines()
    assert database == f"database: {describe_location(Settings(owner_database_url=committed_url))}"
    assert re.fullmatch(r"4 lines in [\d.]+ s, [\d,]+ lines/s", speed)


def test_rejected_lines_are_written_to_the_current_directory_with_number_and_reason(
    shop_import: Import, committed_url: str, mixed_file: Path, tmp_path: Path
) -> None:
    shop_import(mixed_file, database_url=committed_url)
    rejects = pl.read_csv(tmp_path / REJECTS, infer_schema=False)
    assert list(rejects.select("line", "reason").iter_rows()) == [
        ("6", "no-customer"),
        ("7", "no-customer"),
        ("8", "no-price"),
        ("9", "unreadable-value"),
    ]


def test_the_path_of_the_rejected_lines_can_be_set(
    shop_import: Import, committed_url: str, mixed_file: Path, tmp_path: Path
) -> None:
    target = tmp_path / "elsewhere.csv"
    result = shop_import(mixed_file, "--rejects", target, database_url=committed_url)
    assert f"rejected lines, with reasons: {target}\n" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"retail.csv", "elsewhere.csv"}


def test_a_terminal_shows_the_speed_and_the_remaining_time(
    shop_import: Import, committed_url: str, write_csv: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_err", Console(stderr=True, force_terminal=True, no_color=True, width=120))
    path = write_csv(*({"Invoice": f"{n}"} for n in range(2000) for _line in range(3)))
    shown = shop_import(path, database_url=committed_url).stderr
    assert re.search(r"reading retail\.csv ", shown)
    assert re.search(r"importing lines \S+ 6000/6000 [\d,]+/s \d:\d\d:\d\d \d:\d\d:\d\d", shown)


def test_the_file_of_rejected_lines_has_at_least_a_header(
    shop_import: Import, committed_url: str, write_csv: WriteFile, tmp_path: Path
) -> None:
    """Without a new file, that of an earlier import would be mistaken for the current one."""
    (tmp_path / REJECTS).write_text("of an earlier import")
    assert shop_import(write_csv({}), database_url=committed_url).exit_code == 0
    assert pl.read_csv(tmp_path / REJECTS, infer_schema=False).height == 0


def test_a_second_import_of_a_file_adds_nothing(shop_import: Import, committed_url: str, mixed_file: Path) -> None:
    shop_import(mixed_file, database_url=committed_url)
    again = shop_import(mixed_file, database_url=committed_url)
    assert again.exit_code == 0
    assert re.findall(r"created +(\d+)\n  existing +(\d+)", again.stdout) == [("0", "2"), ("0", "4")]


def test_orders_with_another_total_are_listed(shop_import: Import, committed_url: str, write_csv: WriteFile) -> None:
    def lines(quantity: int) -> list[dict[str, str]]:
        return [{"Invoice": f"{n}", "Quantity": f"{quantity}"} for n in range(100, 112)]

    shop_import(write_csv(*lines(1)), database_url=committed_url)
    result = shop_import(write_csv(*lines(2)), database_url=committed_url)
    assert result.exit_code == 0
    assert numbers_by_label(result.stdout)["with another total"] == 12
    named = ", ".join(f"retail:{n}" for n in range(100, 110))
    assert f"\norders with another total, which were not changed: {named} and 2 more\n" in result.stdout


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        (
            b"Invoice,Price\n1,2\n",
            "it has no column 'StockCode', 'Description', 'Quantity', 'InvoiceDate', 'Customer ID', 'Country'",
        ),
        (b"", "it has no column"),
        (b"PAR1 and nothing of Parquet behind it", ""),
    ],
)
def test_an_unreadable_file_is_reported_in_one_line_before_the_database_is_used(
    shop_import: Import, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "retail.csv"
    if content is not None:
        path.write_bytes(content)
    result = shop_import(path, database_url="postgresql://nobody@/nothing?host=/nowhere")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"{path}: {problem}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / REJECTS).exists()


@pytest.mark.parametrize(
    ("time", "options", "read_as"),
    [
        ("12/13/10 8:26", [], "M/D/YY H:MM (month-first)"),
        ("13/12/10 8:26", [], "D/M/YY H:MM (day-first)"),
        ("1/2/10 8:26", ["--times", "day-first"], "D/M/YY H:MM (day-first)"),
    ],
)
def test_the_summary_names_the_format_of_the_times(
    *, shop_import: Import, committed_url: str, write_csv: WriteFile, time: str, options: list[str], read_as: str
) -> None:
    result = shop_import(write_csv({"InvoiceDate": time}), *options, database_url=committed_url)
    assert result.exit_code == 0
    assert f"\nTimes are read as {read_as}, in the time zone Europe/London.\n" in result.stdout


def test_ambiguous_times_are_reported_in_one_line_before_the_database_is_used(
    shop_import: Import, write_csv: WriteFile, tmp_path: Path
) -> None:
    path = write_csv({"InvoiceDate": "1/2/10 8:26"})
    result = shop_import(path, database_url="postgresql://nobody@/nothing?host=/nowhere")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"{path}: its times may be month-first or day-first, such as '1/2/10 8:26' on line 2: "
        "no day is after the 12th. Choose one with --times month-first or --times day-first\n"
    )
    assert not (tmp_path / REJECTS).exists()
    wrong = shop_import(path, "--times", "guess", database_url="postgresql://nobody@/nothing?host=/nowhere")
    assert wrong.exit_code == 2


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("missing/rejects.csv", "No such file or directory"),
        ("retail.csv", "it is the file that is imported"),
        ("retail.csv/rejects.csv", "Not a directory"),
        (".", "it isn't a regular file"),
        (os.devnull, "it isn't a regular file"),
    ],
)
def test_an_unwritable_path_of_the_rejected_lines_is_reported_in_one_line(
    shop_import: Import, write_csv: WriteFile, tmp_path: Path, place: str, problem: str
) -> None:
    path = write_csv({})
    content = path.read_bytes()
    result = shop_import(path, "--rejects", place, database_url="postgresql://nobody@/nothing?host=/nowhere")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"{place}: {problem}\n")
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_an_unreachable_database_is_reported_in_one_line(
    shop_import: Import, write_csv: WriteFile, committed_url: str
) -> None:
    path = write_csv({})
    missing = shop_import(path, database_url=committed_url.replace("howdah_test", "no_howdah_test"))
    assert missing.exit_code == 1
    assert re.fullmatch(
        r"database: no_howdah_test.*\nthe database can't be reached: database \"no_howdah_test\w+\" does not exist\n",
        missing.stderr,
    )
    refused = shop_import(path, database_url="postgresql://shop:secret@127.0.0.1:1/shop")
    assert refused.exit_code == 1
    assert re.fullmatch(
        r"database: shop on 127\.0\.0\.1:1\nthe database can't be reached: .*Connect call failed.*\n", refused.stderr
    )


async def test_an_error_of_the_database_is_reported_in_one_line(
    shop_import: Import, write_csv: WriteFile, committed_url: str, committed_database: Database
) -> None:
    path = write_csv({})
    async with committed_database.begin() as session:
        await session.execute(text("ALTER TABLE order_items ADD CONSTRAINT no_dogs CHECK (sku <> '22111')"))
    result = await asyncio.to_thread(shop_import, path, database_url=committed_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(
        r"database: .*\nthe database rejected a statement, .* rolled back: "
        r".*violates check constraint \"no_dogs\"\n",
        result.stderr,
    )


async def test_a_lock_timeout_is_reported_in_one_line(
    shop_import: Import,
    write_csv: WriteFile,
    committed_url: str,
    another_import: AnotherImport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP_LOCK_TIMEOUT", "0.05")
    path = write_csv({})
    async with another_import():
        result = await asyncio.to_thread(shop_import, path, database_url=committed_url)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [
        "another transaction, such as an import, held a lock for too long: run the command again"
    ]
