"""A prepared page is equal to the page that SQLAlchemy reads, for all values of the list query's parameters."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest
from sqlalchemy import BindParameter, Select, String, TypeDecorator, bindparam, case, func, literal, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.sql import visitors

from howdah import Database, InvalidCursor, JsonView, JsonViewReader, bulk
from howdah import _page_plans as page_plans
from howdah._page_plans import PagePlans
from howdah._reads.cursors import Cursors, Position
from howdah._reads.sort_values import SortValue
from howdah.pagination import paginate_as
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Order, User
from howdah_tests.support.sample_rows import make_users, user_rows
from howdah_tests.support.view_schemas import UserOut


class Uncached(TypeDecorator[str]):
    """A type whose statements SQLAlchemy doesn't cache."""

    impl = String
    cache_ok = False


VIEW = JsonView(User, UserOut)
MADE: dict[str, tuple[Callable[[Any], Select[Any]], list[Any]]] = {
    "no condition": (lambda _: select(User), [None]),
    "a value": (lambda value: select(User).where(User.age >= value), [3, 7, 3, 0]),
    "a list": (lambda value: select(User).where(User.age.in_(value)), [[1, 2, 3], [4, 5], []]),
    "an array": (lambda value: select(User).where(User.age == func.any(value)), [[1, 2, 3], [4, 5], []]),
    "two equal parameters": (lambda value: select(User).where(User.age >= value, User.age != value), [2, 5]),
    "a value in the order": (
        lambda value: select(User).order_by(case((User.age > value, 0), else_=1), User.name.desc()),
        [2, 6],
    ),
    "NULLs in the order": (lambda value: select(User).where(User.age != value).order_by(User.nickname), [1, 2]),
    "a computed sort key": (lambda value: select(User).order_by((User.age + value) % 5), [1, 2, 3]),
    "a correlated subquery": (
        lambda value: select(User).where(~User.orders.any(Order.total_cents > value)),
        [5, 10],
    ),
    "a join": (lambda value: select(User).join(User.orders).where(Order.total_cents > value), [0, 2]),
    "DISTINCT": (lambda value: select(User).distinct().where(User.age > value).order_by(User.name), [1, 4]),
    "GROUP BY": (
        lambda value: select(User).group_by(User.id).having(func.max(User.age) > value).order_by(func.min(User.age)),
        [1, 4],
    ),
    "params()": (lambda value: select(User).where(User.age > bindparam("age")).params(age=value), [3, 6]),
    "a type that isn't cached": (
        lambda value: select(User).where(User.name > literal(value, Uncached())),
        ["User 2", "User 5"],
    ),
    "a column with a parameter": (
        lambda value: select(User).where(func.coalesce(User.age, value) == value),
        [1, 4],
    ),
}


# SQLAlchemy 2.0 has the values of `params()` in the parameters, so that there is a plan.
_WITHOUT_PLAN: Final = ("params()", "a type that isn't cached")


async def make_rows(session: AsyncSession) -> None:
    ids = await make_users(session, 12)
    await bulk.insert_many(session, Order, [{"user_id": ids[i % 4], "total_cents": i} for i in range(8)])
    await bulk.insert_many(session, User, user_rows(15)[12:])
    await session.execute(text("UPDATE users SET age = NULL WHERE age = 11"))
    await session.commit()


@pytest.fixture
async def committed(committed_database: Database) -> Database:
    """A database with rows. A plan isn't used in a transaction, such as that of the fixture `database`."""
    async with committed_database.begin() as session:
        await make_rows(session)
    return committed_database


async def test_every_page_is_equal_to_that_of_sqlalchemy(committed: Database) -> None:
    async with VIEW.open(committed) as view, committed.engine.connect() as connection:
        for name, (make, values) in MADE.items():
            for value in values:
                await assert_equal_pages(view, connection, make, value)
            planned = [plan for plan in view._page_plans._plans.values() if plan._pages]
            assert planned or name in _WITHOUT_PLAN, name
            view._page_plans._plans.clear()


async def assert_equal_pages(
    view: JsonViewReader[User], connection: AsyncConnection, make: Callable[[Any], Select[Any]], value: Any
) -> None:
    """Read the list from page to page in both ways, and each page's previous one."""
    planned = partial(view.page, make(value), limit=4)
    usual = partial(paginate_as, VIEW.body, connection, make(value), limit=4)
    after: str | None = None
    for _ in range(6):
        page = await planned(after=after, count=True)
        assert page == await usual(after=after, before=None, count=True)
        if page.previous is not None:
            back = await planned(before=page.previous)
            assert back == await usual(after=None, before=page.previous, count=False)
        after = page.next
        if after is None:
            return
    raise AssertionError("the list doesn't end")


async def test_an_empty_page_is_equal_to_that_of_sqlalchemy(committed: Database) -> None:
    database = committed
    async with VIEW.open(database) as view, database.engine.connect() as connection:
        last = (await view.page(limit=14)).next
        assert last is not None
        async with database.begin() as session:
            await session.execute(text("DELETE FROM users WHERE age = 14"))
        await connection.rollback()
        page = await view.page(after=last)
        assert page.items == []
        usual = partial(paginate_as, VIEW.body, connection, select(User), limit=50, count=False)
        assert page == await usual(after=last, before=None)
        assert page.previous is not None
        assert (await view.page(before=page.previous)) == await usual(after=None, before=page.previous)
        await assert_damaged_values_are_rejected(view)
        await assert_values_are_not_mixed_up(view)
        await assert_sqlalchemy_builds_no_statement(view)
        with assert_statements(database, 1):  # listeners see every page
            assert (await view.page(after=last)).items == []


async def assert_damaged_values_are_rejected(view: JsonViewReader[User]) -> None:
    """A cursor with a valid checksum, whose text isn't a value of its type."""
    bound = view._page_plans.bind(None)
    assert bound.plan is not None
    cursors = Cursors(bound.plan._keys, lambda: bound.plan._digest.compute({}))  # type: ignore[union-attr]
    for wrong in ("x", "\0"):
        with pytest.raises(InvalidCursor):
            await view.page(after=cursors.encode(Position([SortValue(wrong, 2950)])))


async def assert_values_are_not_mixed_up(view: JsonViewReader[User]) -> None:
    """List queries with the same structure have the same plan, and each has its own values."""
    view._page_plans._plans.clear()
    cursors = set()
    for age in (1, 5, 9):
        page = await view.page(select(User).where(User.age >= age).order_by(User.age), limit=1)
        assert f'"age":{age}'.encode() in page.items[0].replace(b" ", b"")
        cursors.add(page.next)
    assert len(cursors) == 3
    assert len(view._page_plans._plans) == 1


async def assert_sqlalchemy_builds_no_statement(view: JsonViewReader[User]) -> None:
    first = await view.page(limit=2)
    second = await view.page(limit=2, after=first.next)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_plans, "paginate_as", None)
        patch.setattr(page_plans, "build_page_query", None)
        assert await view.page(limit=2, after=first.next) == second
        with pytest.raises(TypeError):  # control: a page of another form
            await view.page(limit=2, before=second.previous)


async def test_a_statement_is_not_kept_after_its_call(database: Database) -> None:
    async with VIEW.open(database) as view:
        for age in range(5):
            await view.page(select(User).where(User.age > age))
        gc.collect()
        assert len(view._page_plans._bound) == 0


async def test_the_number_of_plans_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_plans, "_MAX_LISTS", 2)
    async with VIEW.open(database) as view:
        for attribute in (User.age, User.name, User.email, User.nickname):
            await view.page(select(User).order_by(attribute))
        assert len(view._page_plans._plans) == 2


def test_a_parameter_that_the_compiler_has_renamed_prevents_a_plan() -> None:
    condition = User.age > literal(3)
    (parameter,) = [each for each in visitors.iterate(condition) if isinstance(each, BindParameter)]
    copy = visitors.cloned_traverse(condition, {}, {})
    (renamed,) = [each for each in visitors.iterate(copy) if isinstance(each, BindParameter)]
    assert renamed.key != parameter.key
    assert page_plans._are_complete([parameter], [parameter])
    assert not page_plans._are_complete([renamed], [parameter])
    assert page_plans._are_complete([renamed], [])


def test_a_list_query_that_sqlalchemy_does_not_cache_has_no_plan() -> None:
    plans = PagePlans(VIEW.body, lambda statement: select(User) if statement is None else statement)
    assert plans.bind(select(User).where(User.age > 3)).plan is not None
    assert plans.bind(None).plan is not None
    assert plans.bind(select(User).where(User.name == literal("Ada", Uncached()))).plan is None
