"""Keyset pagination: single pages, sort keys, and cursors."""

from __future__ import annotations

import base64
import json
import os
import string
import subprocess
import sys
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Select, and_, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, joinedload, undefer

from howdah import AsyncRepository, InvalidCursor, Page, bulk, paginate
from howdah._reads.cursors import Cursors, ListDigest
from howdah.pagination import get_sort_keys
from howdah.testing import assert_statements
from howdah_tests.support.page_walks import ids, walk
from howdah_tests.support.sample_models import Order, Seat, Specimen, User

# --- single pages


@pytest.fixture
async def users(session: AsyncSession) -> AsyncRepository[User]:
    """Twenty users with ten names. Five of the names are written `name …`, the other five `Name …`."""
    repository = AsyncRepository(session, User)
    await repository.create_many(
        {"email": f"{i:02}@example.org", "name": f"{'nN'[i % 2]}ame {i % 10}", "age": i} for i in range(20)
    )
    return repository


async def ages(users: AsyncRepository[User], statement: Select[Any], limit: int = 3) -> list[int | None]:
    """The ages on all pages. Checks that the pages are the whole list, forward and backward."""
    pages = await walk(lambda cursor: users.page(statement, limit=limit, after=cursor), "next")
    found = [user.age for page in pages for user in page.items]
    assert found == [user.age for user in await users.list(statement, limit=None)]
    back = await walk(
        lambda cursor: users.page(statement, limit=limit, before=cursor or pages[-1].previous), "previous"
    )
    assert [user.age for page in reversed(back) for user in page.items] == found[: -len(pages[-1].items)]
    return found


async def test_without_order_by_the_order_is_that_of_the_key(users: AsyncRepository[User]) -> None:
    assert await ages(users, select(User)) == list(range(20))


async def test_a_page_is_one_statement_and_its_count_is_another_one(users: AsyncRepository[User]) -> None:
    with assert_statements(users.session, 1):
        page = await users.page(limit=7)
    assert (len(page.items), page.total, page.total_capped) == (7, None, False)
    with assert_statements(users.session, 2):
        assert (await users.page(limit=7, after=page.next, count=True)).total == 20


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (User.age.asc(), [1, 2, 3, None, None]),
        (User.age.desc(), [None, None, 3, 2, 1]),
        (User.age.asc().nulls_first(), [None, None, 1, 2, 3]),
        (User.age.desc().nulls_last(), [3, 2, 1, None, None]),
    ],
)
async def test_rows_with_null_are_on_the_pages_where_postgresql_orders_them(
    session: AsyncSession, order: Any, expected: list[int | None]
) -> None:
    users = AsyncRepository(session, User)
    await users.create_many(
        {"email": f"{i}@example.org", "name": "Ada", "age": age} for i, age in enumerate([2, None, 3, None, 1])
    )
    assert await ages(users, select(User).order_by(order), limit=2) == expected


@pytest.mark.parametrize(
    ("count", "total", "capped"),
    [(True, 20, False), (False, None, False), (0, 0, True), (19, 19, True), (20, 20, False), (2**40, 20, False)],
)
async def test_a_count_is_exact_up_to_its_limit(
    users: AsyncRepository[User], count: Any, total: int | None, capped: bool
) -> None:
    page = await users.page(limit=1, count=count)
    assert (page.total, page.total_capped) == (total, capped)


async def test_a_count_does_not_contain_duplicates_of_joins(users: AsyncRepository[User]) -> None:
    user = (await users.list())[0]
    await AsyncRepository(users.session, Order).create_many([{"user_id": user.id}, {"user_id": user.id}])
    page = await users.page(select(User).join(User.orders).distinct(), count=True)
    assert (len(page.items), page.total) == (1, 1)
    assert (await users.page(select(User).where(User.age < 5), count=3)).total == 3


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": -1}, {"limit": 1001}, {"count": -1}])
async def test_invalid_limits_are_rejected_before_anything_is_sent(
    users: AsyncRepository[User], wrong: dict[str, Any]
) -> None:
    with assert_statements(users.session, 0), pytest.raises(ValueError, match=r"from 1 to 1000|at least 0"):
        await users.page(**wrong)


async def test_the_largest_page_has_a_thousand_rows(users: AsyncRepository[User]) -> None:
    assert len((await users.page(limit=1000)).items) == 20


async def test_a_page_accepts_only_one_cursor(users: AsyncRepository[User]) -> None:
    cursor = (await users.page(limit=1)).next
    with pytest.raises(ValueError, match="pass one of them"):
        await users.page(after=cursor, before=cursor)


async def test_an_empty_list_query_is_one_empty_page(session: AsyncSession) -> None:
    assert await AsyncRepository(session, User).page(count=True) == Page([], None, None, 0)


async def test_the_last_page_has_no_next_cursor(users: AsyncRepository[User]) -> None:
    page = await users.page(limit=20)
    assert (len(page.items), page.next, page.previous) == (20, None, None)


async def test_a_page_whose_rows_were_deleted_is_empty(users: AsyncRepository[User]) -> None:
    page = await users.page(limit=19)
    await users.delete_many([(await users.list(limit=None))[-1].id])
    empty = await users.page(after=page.next)
    assert (empty.items, empty.next) == ([], None)
    assert (await users.page(before=empty.previous)).items == page.items


async def test_a_bulk_write_between_pages_is_seen(session: AsyncSession, users: AsyncRepository[User]) -> None:
    page = await users.page(limit=10)
    await bulk.insert_many(session, User, [{"email": "last@example.org", "name": "Last", "age": 99}])
    assert [user.age for user in (await users.page(limit=50, after=page.next)).items] == [*range(10, 20), 99]


# --- sort keys


async def test_expressions_and_computed_columns_can_be_sort_keys(users: AsyncRepository[User]) -> None:
    lower = await ages(users, select(User).order_by(func.lower(User.name), User.age.desc()))
    assert lower == [age for i in range(10) for age in (i + 10, i)]
    await ages(users, select(User).order_by(User.name_length.desc(), (User.age % 2).label("odd")))
    await ages(users, select(User).order_by(User.name_length))
    await ages(users, select(User).order_by(func.coalesce(User.age, 0) % 3, User.name.collate("C").desc()))
    await ages(users, select(User).order_by((User.age > 5).desc()))
    await ages(users, select(User).order_by(func.nullif(User.age % 4, 0).desc().nulls_last()))


async def test_the_key_has_the_direction_of_the_sort_key_before_it(users: AsyncRepository[User]) -> None:
    ascending = await ages(users, select(User).order_by(func.lower(User.name)))
    assert await ages(users, select(User).order_by(func.lower(User.name).desc())) == ascending[::-1]


async def test_an_order_that_contains_the_key_is_not_changed(users: AsyncRepository[User]) -> None:
    assert await ages(users, select(User).order_by(User.id.desc())) == list(range(19, -1, -1))
    with assert_statements(users.session, 1) as sent:
        await users.page(select(User).order_by(User.id.desc()))
    assert "ORDER BY users.id DESC \n" in sent[0]


async def test_a_joined_list_query_can_be_ordered_by_a_related_column(users: AsyncRepository[User]) -> None:
    orders = AsyncRepository(users.session, Order)
    await orders.create_many({"user_id": user.id, "total_cents": i % 4} for i, user in enumerate(await users.list()))
    statement = select(Order).join(Order.user).order_by(func.lower(User.name).desc(), Order.total_cents)
    pages = await walk(lambda c: orders.page(statement, limit=3, after=c, load=[joinedload(Order.user)]), "next")
    found = [order for page in pages for order in page.items]
    assert found == await orders.list(statement)
    assert found[0].user.name.lower() == "name 9"


async def test_a_column_that_is_null_because_of_an_outer_join_hides_no_row(users: AsyncRepository[User]) -> None:
    orders = AsyncRepository(users.session, Order)
    every_third = [user.id for user in await users.list()][::3]
    await orders.create_many({"user_id": id, "total_cents": i} for i, id in enumerate(every_third))
    statement = select(User).outerjoin(Order, and_(Order.user_id == User.id, Order.total_cents > 1))
    for clause in (Order.total_cents, Order.total_cents.desc(), Order.total_cents.nulls_first(), Order.id.desc()):
        assert sorted(age or 0 for age in await ages(users, statement.order_by(clause))) == list(range(20))


async def test_groups_can_be_ordered_by_an_aggregate(users: AsyncRepository[User]) -> None:
    orders = AsyncRepository(users.session, Order)
    await orders.create_many({"user_id": user.id} for user in await users.list() for _ in range((user.age or 0) % 3))
    statement = select(User).join(User.orders).group_by(User.id).having(func.count() > 0)
    found = await ages(users, statement.order_by(func.count(Order.id).desc()))
    assert found == [*range(17, 0, -3), *range(19, 0, -3)]


async def test_aliases_and_composite_keys_can_be_paginated(users: AsyncRepository[User]) -> None:
    other = aliased(User)
    assert await ages(users, select(other).where(other.age > 10).order_by(other.age.desc())) == list(range(19, 10, -1))
    seats = AsyncRepository(users.session, Seat)
    await seats.create_many({"row": row, "number": n} for n in range(4) for row in "BA")
    pages = await walk(lambda cursor: seats.page(limit=3, after=cursor), "next")
    assert [(seat.row, seat.number) for page in pages for seat in page.items] == [
        (r, n) for r in "AB" for n in range(4)
    ]


@pytest.mark.parametrize(
    "statement",
    [
        select(User).order_by(text("name")),
        select(User).order_by("name"),
        select(User).order_by(func.row_number().over(order_by=User.name)),
        select(User).order_by(User.age + func.sum(User.age).over()),
        select(User, User.name),
        select(User.id),
        select(User).limit(5),
        select(User).offset(5),
    ],
    ids=["text", "name", "window", "window inside", "two columns", "a column", "limit", "offset"],
)
async def test_a_statement_that_cannot_be_paginated_is_rejected_at_the_first_page(
    session: AsyncSession, statement: Select[Any]
) -> None:
    with assert_statements(session, 0), pytest.raises(ValueError, match=r"page can't be|a list query"):
        await paginate(session, statement)


async def test_distinct_on_is_rejected(session: AsyncSession) -> None:
    statement = select(User).order_by(User.name)
    if hasattr(statement, "ext"):
        from sqlalchemy.dialects.postgresql import distinct_on

        statement = statement.ext(distinct_on(User.name))
    else:
        statement = statement.distinct(User.name)
    with pytest.raises(ValueError, match="a list query can't have DISTINCT ON"):
        await paginate(session, statement)


async def test_loader_options_are_not_part_of_the_list_query(users: AsyncRepository[User]) -> None:
    cursor = (await users.page(limit=2, load=[User.orders])).next
    assert (await users.page(limit=2, after=cursor)).items[0].age == 2
    specimens = AsyncRepository(users.session, Specimen)
    await specimens.create_many([{"id": 1}, {"id": 2}])
    cursor = (await specimens.page(limit=1)).next
    assert ids(await specimens.page(after=cursor, load=[undefer(Specimen.notes)])) == [2]


# --- cursors


LIST_QUERY = select(User).where(User.age < 15).order_by(User.name)


async def make_cursor(users: AsyncRepository[User], statement: Select[Any] = LIST_QUERY) -> str:
    cursor = (await users.page(statement, limit=3)).next
    assert cursor is not None
    return cursor


async def assert_rejected(users: AsyncRepository[User], cursor: str, statement: Select[Any] = LIST_QUERY) -> None:
    for side in ("after", "before"):
        with assert_statements(users.session, 0), pytest.raises(InvalidCursor):
            await users.page(statement, **{side: cursor})  # type: ignore[arg-type]


async def test_a_cursor_is_safe_in_a_url(users: AsyncRepository[User]) -> None:
    assert set(await make_cursor(users)) <= set(string.ascii_letters + string.digits + "-_")


async def test_a_changed_cursor_is_rejected(users: AsyncRepository[User]) -> None:
    cursor = await make_cursor(users)
    for i in range(len(cursor)):
        other = "B" if cursor[i] == "A" else "A"
        changed = cursor[:i] + other + cursor[i + 1 :]
        if base64.urlsafe_b64decode(changed + "==") != base64.urlsafe_b64decode(cursor + "=="):
            await assert_rejected(users, changed)
    for i in range(0, len(cursor), 7):
        await assert_rejected(users, cursor[:i])
        await assert_rejected(users, cursor[:i] + "!" + cursor[i:])
        await assert_rejected(users, cursor[:i] + " " + cursor[i:])


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "=",
        "====",
        "AAAA",
        "null",
        "\x00",
        "ünïcödé",
        "🐘",
        "\ud800",
        "../..",
        "' OR 1=1 --",
        "A" * 3_000_001,
        "%%%",
    ],
    ids=repr,
)
async def test_garbage_is_rejected(users: AsyncRepository[User], garbage: str) -> None:
    await assert_rejected(users, garbage)


@pytest.mark.parametrize(
    "other",
    [
        select(User).where(User.age < 16).order_by(User.name),
        select(User).where(User.age <= 15).order_by(User.name),
        select(User).order_by(User.name),
        select(User).where(User.age < 15).order_by(User.name.desc()),
        select(User).where(User.age < 15).order_by(User.name.nulls_first()),
        select(User).where(User.age < 15).order_by(User.email),
        select(User).where(User.age < 15).order_by(User.name, User.age),
        select(User).where(User.age < 15),
    ],
    ids=["value", "operator", "no filter", "direction", "nulls", "column", "more columns", "no order"],
)
async def test_a_cursor_of_another_list_query_is_rejected(users: AsyncRepository[User], other: Select[Any]) -> None:
    await assert_rejected(users, await make_cursor(users), other)


async def test_a_cursor_of_another_version_is_rejected(users: AsyncRepository[User]) -> None:
    raw = bytearray(base64.urlsafe_b64decode(await make_cursor(users) + "=="))
    raw[0] += 1
    await assert_rejected(users, base64.urlsafe_b64encode(raw).rstrip(b"=").decode())


async def test_an_equal_list_query_accepts_the_cursor_for_any_order_of_in_values(users: AsyncRepository[User]) -> None:
    cursor = await make_cursor(users, select(User).where(User.age.in_([1, 2, 3, 4])))
    assert len((await users.page(select(User).where(User.age.in_({4, 3, 2, 1})), after=cursor)).items) == 1


def test_a_cursor_is_the_same_in_every_process() -> None:
    program = (
        "from howdah._reads.cursors import Cursors, ListDigest, Position; from howdah.pagination import get_sort_keys\n"
        "from howdah._reads.sort_values import SortValue; from howdah_tests.support.sample_models import User\n"
        "from sqlalchemy import select\n"
        "s = select(User).where(User.name.in_({'a', 'b', 'c', 'd'}), User.age > 3).order_by(User.name)\n"
        "keys = get_sort_keys(s)\n"
        "cursors = Cursors(keys, lambda: ListDigest(s, keys).compute({}))\n"
        "print(cursors.encode(Position([SortValue('a', 25), SortValue(str(7), 20)])))"
    )
    cursors = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(cursors) == 1


async def make_cursor_with_checksum(content: Any, statement: Select[Any] = LIST_QUERY) -> str:
    """A cursor with this content and a valid checksum. A client that knows the list query could make it, too."""
    payload = json.dumps(content).encode()
    keys = get_sort_keys(statement)
    cursors = Cursors(keys, lambda: ListDigest(statement, keys).compute({}))
    raw = bytes([2]) + cursors._checksum(payload) + payload
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def test_a_cursor_with_a_valid_checksum_but_other_contents_is_rejected(users: AsyncRepository[User]) -> None:
    name, key = ["a", 25], [str(uuid4()), 2950]
    contents: list[Any] = [[name], [False], [False, name], [False, name, key, key], [name, key], {}, 1, None, "", [[]]]
    wrong = [["x"], ["x", "uuid"], ["x", True], ["x", 2950.0], [1, 2950], [["x"], 2950], ["x", 790], ["x", 10**30]]
    contents += [[False, name, each] for each in (*wrong, ["x", None], ["x", 2206], {"text": "x"}, None, [])]
    for content in contents:
        await assert_rejected(users, await make_cursor_with_checksum(content))


@pytest.mark.parametrize(
    "key", [["x", 2950], ["\0", 2950], ["", 2950], ["1", 23], ["{}", 1009], ["9" * 40, 20], ["x", 1184]], ids=repr
)
async def test_a_cursor_with_text_that_postgresql_cannot_read_is_rejected(
    users: AsyncRepository[User], key: Any
) -> None:
    cursor = await make_cursor_with_checksum([False, ["a", 25], key])
    for side in ("after", "before"):
        with pytest.raises(InvalidCursor):
            async with users.session.begin_nested():
                await users.page(LIST_QUERY, **{side: cursor})  # type: ignore[arg-type]
