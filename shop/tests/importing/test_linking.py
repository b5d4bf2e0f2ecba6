from collections import Counter

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from shop.importing.linking import link_cancellations

Ware = tuple[str, int]
Wares = list[tuple[str, int, int]]
"""Stock code, unit price and quantity of each line."""

DOG, CAT = ("dog", 495), ("cat", 250)


def invoices_of(*entries: tuple[int, str, Wares]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Invoices in their order. Each has a customer, `sale` or `cancellation`, and lines."""
    invoices = [(position, customer, kind == "cancellation") for position, (customer, kind, _) in enumerate(entries)]
    lines = [(position, *line) for position, (_, _, wares) in enumerate(entries) for line in wares]
    return (
        pl.DataFrame(
            invoices, {"position": pl.UInt32, "customer": pl.Int64, "is_cancellation": pl.Boolean}, orient="row"
        ),
        pl.DataFrame(
            lines,
            {"position": pl.UInt32, "stock_code": pl.String, "unit_price_cents": pl.Int64, "quantity": pl.Int32},
            orient="row",
        ),
    )


def links_of(*entries: tuple[int, str, Wares]) -> list[tuple[int, int, bool]]:
    """The positions of the cancellation and its sale, and whether the whole sale is reversed."""
    return list(link_cancellations(*invoices_of(*entries)).iter_rows())


def test_the_only_sale_with_all_products_is_linked() -> None:
    sale, other = [(*DOG, 2), (*CAT, 1)], [(*CAT, 9)]
    assert links_of((1, "sale", other), (1, "sale", sale), (1, "cancellation", [(*DOG, 1), (*CAT, 1)])) == [
        (2, 1, False)
    ]


def test_a_cancellation_of_a_whole_sale_is_marked_as_whole() -> None:
    sale = [(*DOG, 2), (*CAT, 1)]
    assert links_of((1, "sale", sale), (1, "cancellation", sale)) == [(1, 0, True)]
    assert links_of((1, "sale", sale), (1, "cancellation", sale[:1])) == [(1, 0, False)]


def test_lines_of_the_same_product_are_summed() -> None:
    assert links_of((1, "sale", [(*DOG, 2), (*DOG, 3)]), (1, "cancellation", [(*DOG, 4), (*DOG, 1)])) == [(1, 0, True)]
    assert links_of((1, "sale", [(*DOG, 5)]), (1, "cancellation", [(*DOG, 4), (*DOG, 2)])) == []


def test_a_sale_to_another_customer_is_not_linked() -> None:
    assert links_of((2, "sale", [(*DOG, 2)]), (1, "cancellation", [(*DOG, 2)])) == []


def test_a_later_sale_is_not_linked() -> None:
    assert links_of((1, "cancellation", [(*DOG, 2)]), (1, "sale", [(*DOG, 2)])) == []


def test_a_sale_at_another_price_is_not_linked() -> None:
    assert links_of((1, "sale", [("dog", 495, 2)]), (1, "cancellation", [("dog", 494, 2)])) == []


def test_none_of_two_matching_sales_is_linked() -> None:
    assert links_of((1, "sale", [(*DOG, 2)]), (1, "sale", [(*DOG, 2)]), (1, "cancellation", [(*DOG, 1)])) == []


def test_cancellations_together_never_exceed_a_sale() -> None:
    entries = [(1, "sale", [(*DOG, 3)]), *[(1, "cancellation", [(*DOG, 2)])] * 2, (1, "cancellation", [(*DOG, 1)])]
    assert links_of(*entries) == [(1, 0, False), (3, 0, False)]


def test_an_earlier_cancellation_can_leave_one_matching_sale() -> None:
    entries = [
        (1, "sale", [(*DOG, 2), (*CAT, 1)]),
        (1, "cancellation", [(*DOG, 2), (*CAT, 1)]),
        (1, "sale", [(*DOG, 2)]),
        (1, "cancellation", [(*DOG, 2)]),
    ]
    assert links_of(*entries) == [(1, 0, True), (3, 2, True)]


def test_a_cancellation_of_the_rest_of_a_sale_is_not_whole() -> None:
    entries = [(1, "sale", [(*DOG, 3)]), (1, "cancellation", [(*DOG, 1)]), (1, "cancellation", [(*DOG, 2)])]
    assert links_of(*entries) == [(1, 0, False), (2, 0, False)]


def test_without_cancellations_or_sales_nothing_is_linked() -> None:
    assert links_of() == []
    assert links_of((1, "sale", [(*DOG, 3)])) == []
    assert links_of((1, "cancellation", [(*DOG, 3)])) == []


wares = st.lists(
    st.tuples(st.sampled_from(["dog", "cat"]), st.sampled_from([100, 200]), st.integers(1, 3)), min_size=1, max_size=3
)
histories = st.lists(
    st.tuples(st.integers(1, 2), st.sampled_from(["sale", "cancellation"]), wares), min_size=1, max_size=12
)


@settings(max_examples=settings().max_examples // 3, deadline=None)
@given(histories)
def test_links_equal_those_of_a_simple_implementation(entries: list[tuple[int, str, Wares]]) -> None:
    """A simple implementation compares each cancellation with every earlier sale."""

    def pieces_of(lines: Wares) -> Counter[Ware]:
        pieces = Counter[Ware]()
        for stock_code, cents, quantity in lines:
            pieces[stock_code, cents] += quantity
        return pieces

    left = [pieces_of(lines) for _, _, lines in entries]
    expected = []
    for position, (customer, kind, lines) in enumerate(entries):
        if kind == "sale":
            continue
        wanted = pieces_of(lines)
        able = [
            sale
            for sale in range(position)
            if entries[sale][:2] == (customer, "sale") and all(left[sale][ware] >= n for ware, n in wanted.items())
        ]
        if len(able) == 1:
            expected.append((position, able[0], wanted == pieces_of(entries[able[0]][2])))
            left[able[0]].subtract(wanted)
    assert links_of(*entries) == expected
