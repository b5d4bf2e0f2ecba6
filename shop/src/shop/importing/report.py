"""The report of an import. Its numbers add up to the lines of the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shop.importing.loading import Loaded
from shop.importing.options import TimeFormat
from shop.importing.retail import Summary
from shop.importing.time_formats import SHOP_TIME_ZONE

_MAX_REFERENCES: Final = 10


def report(summary: Summary, loaded: Loaded, rejects: Path) -> str:
    """The report as text. Amounts are sums over all invoices of the file, whether their orders are new or not."""
    rows = [(label, f"{count:,}", amount) for label, count, amount in _list_rows(summary, loaded)]
    label_width = max(len(label) for label, _, _ in rows)
    count_width = max(len(count) for _, count, _ in rows)
    lines = [f"{label:{label_width}}  {count:>{count_width}}  {amount}".rstrip() for label, count, amount in rows]
    if loaded.differing:
        named = ", ".join(loaded.differing[:_MAX_REFERENCES])
        more = len(loaded.differing) - _MAX_REFERENCES
        others = f" and {more:,} more" if more > 0 else ""
        lines += ["", f"orders with another total, which were not changed: {named}{others}"]
    lines += [
        "",
        _describe_times(summary.times),
        "Each unit price is rounded to whole pence, half a penny up, and then multiplied by the quantity.",
        f"rejected lines, with reasons: {rejects}",
    ]
    return "\n".join(lines)


def _list_rows(summary: Summary, loaded: Loaded) -> Iterator[tuple[str, int, str]]:
    """The label, the number and the amount of each line. An indented line counts a part of a line above it."""
    yield "lines of the file", summary.lines, ""
    yield "  of sales", summary.sale_lines, ""
    yield "  of cancellations", summary.cancellation_lines, ""
    yield "  rejected", summary.rejected_lines, ""
    for reason, count in summary.rejected.items():
        yield f"    {reason}", count, ""
    yield "users", summary.customers, ""
    yield "  created", loaded.users_created, ""
    yield "  existing", loaded.users_existing, ""
    yield "orders", summary.sales + summary.cancellations, ""
    yield "  created", loaded.orders_created, ""
    yield "  existing", loaded.orders_existing, ""
    yield "    with another total", len(loaded.differing), ""
    yield "sales", summary.sales, _format_money(summary.sales_cents)
    yield "cancellations", summary.cancellations, _format_money(summary.cancellations_cents)
    yield "  of a whole sale: cancelled", summary.cancelled, ""
    yield "  of a part of a sale: refunded", summary.linked - summary.cancelled, ""
    yield "  of an unknown sale: refunded", summary.cancellations - summary.linked, ""


def _describe_times(times: TimeFormat | None) -> str:
    if times is None:
        return "No line has a time."
    return f"Times are read as {times.pattern} ({times}), in the time zone {SHOP_TIME_ZONE}."


def _format_money(cents: int) -> str:
    pounds, pence = divmod(cents, 100)
    return f"£{pounds:,}.{pence:02} ({cents:,} pence)"
