"""A view's `where` is evaluated once. So a value of one moment or one request in it is an error when it is created."""

from __future__ import annotations

import contextvars
import functools
import json
import random
import time
from contextvars import ContextVar
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import bindparam, exists, func, literal, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, JsonView, ViewCompileError, bulk, utcnow
from howdah_tests.support.sample_models import Engineer, Order, Staff, Status, User
from howdah_tests.support.sample_rows import make_users

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
required: ContextVar[str] = ContextVar("required")
IMPORT_TIME = utcnow()
numbers = count()


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class OrderOut(Out):
    id: UUID
    total_cents: int


class UserOut(Out):
    id: UUID
    orders: list[OrderOut]


def current_tenant() -> str:
    return tenant.get()


class Proxy:
    """A context-local object, like those of web frameworks."""

    def __init__(self, variable: ContextVar[str]) -> None:
        self._variable = variable

    @property
    def name(self) -> str:
        return self._variable.get()

    def is_mine(self, user: Any) -> Any:
        return user.name == self._variable.get()

    def __call__(self, user: Any) -> Any:
        return user.name == self.name


def make_filter(variable: ContextVar[str]) -> Any:
    return lambda user: user.name == variable.get()


proxy = Proxy(tenant)

VALUES_OF_ONE_MOMENT: dict[str, Any] = {
    "a context variable with a default": lambda user: user.name == tenant.get(),
    "a context variable that isn't set here": lambda user: user.name == required.get("x"),
    "a function that reads a context variable": lambda user: user.name == current_tenant(),
    "a comprehension that reads a context variable": lambda user: user.name == [tenant.get() for _ in range(1)][0],  # noqa: RUF015
    "a property that reads a context variable": lambda user: user.name == proxy.name,
    "a bound method": proxy.is_mine,
    "a callable object": proxy,
    "a context variable in a closure": make_filter(tenant),
    "a context variable as a default argument": lambda user, variable=tenant: user.name == variable.get(),
    "a context variable in a partial": functools.partial(lambda variable, user: user.name == variable.get(), tenant),
    "a context variable in a subquery": lambda user: exists(
        select(Order.id).where(Order.user_id == user.id, user.name == tenant.get())
    ),
    "utcnow()": lambda user: user.created_at > utcnow(),
    "a day ago": lambda user: user.created_at > datetime.now(UTC) - timedelta(days=1),
    "midnight": lambda user: user.created_at > utcnow().replace(hour=0, minute=0, second=0, microsecond=0),
    "today": lambda user: func.date(user.created_at) > date.today() - timedelta(days=1),  # noqa: DTZ011
    "time.time()": lambda user: func.extract("epoch", user.created_at) > int(time.time()),
    "a time that was taken at import": lambda user: user.created_at > IMPORT_TIME,
    "a random key": lambda user: user.id != uuid4(),
    "a random number": lambda user: user.age > random.random(),
    "a counter": lambda user: user.age > next(numbers),
    "a parameter without a value": lambda user: user.name == bindparam("name"),
    "a parameter with a function": lambda user: user.name == bindparam("name", callable_=current_tenant),
    "a Python value": lambda user: True,
}


@pytest.mark.parametrize("row_filter", VALUES_OF_ONE_MOMENT.values(), ids=VALUES_OF_ONE_MOMENT.keys())
@pytest.mark.parametrize("is_set", [False, True])
def test_a_value_of_one_moment_is_rejected(row_filter: Any, is_set: bool) -> None:
    def create_view() -> None:
        if is_set:
            tenant.set("a")
            required.set("a")
        with pytest.raises(
            ViewCompileError, match=r"where\[User\] can't be rendered: .* `where` is evaluated once"
        ) as caught:
            JsonView(User, UserOut, where={User: row_filter})
        assert "func.now()" in str(caught.value)

    contextvars.copy_context().run(create_view)


def test_a_context_variable_without_a_value_raises_lookup_error() -> None:
    with pytest.raises(LookupError):
        JsonView(User, UserOut, where={User: lambda user: user.name == required.get()})


LIMIT = 5
STATUSES = [Status.PAID, Status.PENDING]
CONSTANT: dict[str, Any] = {
    "a constant": lambda order: order.total_cents > LIMIT,
    "a list of constants": lambda order: order.status.in_(STATUSES),
    "a date": lambda order: order.created_at > datetime(2020, 1, 1, tzinfo=UTC),
    "an old time": lambda order: order.created_at > datetime(2020, 1, 1, 1, 1, 1, 1, tzinfo=UTC),
    "func.now()": lambda order: order.created_at <= func.now() + timedelta(days=1),
    "a setting": lambda order: (
        order.total_cents > func.coalesce(func.current_setting("howdah.least", True), "1").cast(Order.total_cents.type)
    ),
    "a subquery": lambda order: exists(select(1).where(User.id == order.user_id, User.age < 100)),
    "true": lambda order: true(),
    "a parameter with a value": lambda order: order.total_cents > bindparam("least", 1),
    "a literal": lambda order: literal(1) == 1,
}


@pytest.mark.parametrize("row_filter", CONSTANT.values(), ids=CONSTANT.keys())
async def test_a_filter_with_constant_values_is_allowed(
    session: AsyncSession, database: Database, row_filter: Any
) -> None:
    (user,) = await make_users(session, 1)
    await bulk.insert_many(session, Order, [{"user_id": user, "total_cents": 10}])
    await session.commit()
    async with JsonView(User, UserOut, where={Order: row_filter}).open(database) as view:
        assert len(json.loads(await view.get(user))["orders"]) == 1


async def test_a_subquery_of_a_filter_is_correlated_to_its_own_row(session: AsyncSession, database: Database) -> None:
    """In a view of users the subquery selects from users, too. It must not be correlated to the outer user."""
    users = await make_users(session, 3)
    await bulk.insert_many(session, Order, [{"user_id": user, "total_cents": 1} for user in users])
    await session.commit()
    youngest = select(func.min(User.age)).scalar_subquery()
    where = {Order: lambda order: exists(select(User.id).where(User.id == order.user_id, User.age == youngest))}
    async with JsonView(User, UserOut, where=where).open(database) as view:
        assert [len(json.loads(body)["orders"]) for body in await view.get_many(users)] == [1, 0, 0]


class OrderWithUser(Out):
    user: UserKey | None


class UserKey(Out):
    id: UUID


async def test_a_subquery_of_a_filter_of_a_to_one_relationship_is_correlated_to_its_own_row(
    session: AsyncSession, database: Database
) -> None:
    """In a view of orders the subquery selects from orders, too. It must not be correlated to the outer order."""
    (user,) = await make_users(session, 1)
    keys = (await bulk.insert_many(session, Order, [{"user_id": user, "total_cents": n} for n in (1, 9)])).keys
    await session.commit()
    where = {User: lambda user: exists(select(Order.id).where(Order.user_id == user.id, Order.total_cents > 5))}
    async with JsonView(Order, OrderWithUser, where=where).open(database) as view:
        assert [json.loads(body)["user"] for body in await view.get_many(keys)] == [{"id": str(user)}] * 2


class StaffOut(Out):
    name: str


def test_a_filter_of_a_subclass_whose_rows_are_read_as_the_base_class_is_rejected() -> None:
    where = {Engineer: lambda engineer: engineer.language != "COBOL"}
    with pytest.raises(ViewCompileError, match=r"where\[Engineer\] can't be rendered: its rows are read as Staff"):
        JsonView(Staff, StaffOut, where=where)
    JsonView(Engineer, StaffOut, where=where)
