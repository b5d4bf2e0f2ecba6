"""The types of the public API. Nothing here is executed; `test_typing.py` runs mypy on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeVar, assert_type
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from howdah import (
    AsyncRepository,
    Base,
    Database,
    InsertResult,
    JsonBytes,
    JsonView,
    JsonViewReader,
    MatchResult,
    Page,
    UpsertResult,
    bulk,
    lock,
    paginate,
    run_transaction,
)
from howdah_tests.support.sample_models import Order, User, UserRepository

ModelT = TypeVar("ModelT", bound=Base)


class Tenanted(AsyncRepository[ModelT]):
    async def first(self) -> ModelT | None:
        return next(iter(await self.list(limit=1)), None)


class TenantedUsers(Tenanted[User]): ...


async def reads(session: AsyncSession, id: UUID) -> None:
    users = UserRepository(session)
    assert_type(users.session, AsyncSession)
    assert_type(users.model, type[User])
    assert_type(await users.get(id), User | None)
    assert_type(await users.get(str(id), load=[User.orders]), User | None)
    assert_type(await users.get_one(id, load=[selectinload(User.orders).selectinload(Order.user)]), User)
    assert_type(await users.get_by_ids([id], load=[User.orders, selectinload(User.orders)]), list[User])
    assert_type(await users.get_by_ids({id}), list[User])
    assert_type(await users.list(), list[User])
    assert_type(await users.list(select(User).where(User.age > 3).order_by(User.name), limit=None), list[User])
    assert_type(await users.list(select(User).join(User.orders).group_by(User.id), offset=3), list[User])
    assert_type(await users.page(), Page[User])
    page = await users.page(select(User), limit=3, after="x", count=True, load=[User.orders])
    assert_type(page.items, list[User])
    assert_type(page.next, str | None)
    assert_type(page.total, int | None)
    assert_type(await users.count(select(User)), int)
    assert_type(await users.count(select(func.lower(User.name)).distinct()), int)
    assert_type(await users.exists(select(User)), bool)
    assert_type(users.stream(), AsyncIterator[User])
    async for user in users.stream(select(User), batch=10, load=[User.orders]):
        assert_type(user, User)
    assert_type(await users.lock([id], nowait=True), dict[Any, User])
    assert_type(await users.get_by_email("a@example.org"), User | None)


async def writes(session: AsyncSession, user: User, id: UUID) -> None:
    users = UserRepository(session)
    assert_type(await users.create(email="a@example.org"), User)
    assert_type(await users.update(user, name="A"), User)
    assert_type(await users.delete(user), None)
    assert_type(await users.create_many([{"email": "a"}, user]), InsertResult)
    assert_type(await users.create_many((user for _ in range(3)), keys=False, chunk_size=3), InsertResult)
    assert_type(await users.create_many(users.stream()), InsertResult)
    assert_type(await users.update_many([{"id": id}]), MatchResult)
    assert_type(await users.upsert_many([{"id": id}], on=["email"], update=()), UpsertResult)
    assert_type(await users.delete_many({id, str(id)}), MatchResult)
    assert_type(await bulk.insert_many(session, User, [user]), InsertResult)
    assert_type(await bulk.update_by_key(session, User, [id], {"age": User.age + 1}), MatchResult)


async def other_ways_to_a_repository(session: AsyncSession) -> None:
    assert_type(AsyncRepository(session, Order), AsyncRepository[Order])
    assert_type(await AsyncRepository(session, Order).list(), list[Order])
    assert_type(await TenantedUsers(session).first(), User | None)
    assert_type(await Tenanted(session, Order).get_one(1), Order)


async def functions(database: Database, session: AsyncSession, id: UUID) -> None:
    assert_type(await lock(session, User, [id]), dict[Any, User])
    assert_type(await paginate(session, select(User)), Page[Any])

    async def names(session: AsyncSession) -> list[str]:
        return [user.name for user in await UserRepository(session).list()]

    assert_type(await run_transaction(database, names), list[str])
    async with database.begin() as begun:
        assert_type(begun, AsyncSession)


class OrderOut(BaseModel):
    id: UUID


@dataclass
class Viewer:
    user_id: UUID


async def views(database: Database, viewer: Viewer, id: UUID) -> None:
    plain = JsonView(Order, OrderOut, where={Order: lambda order: order.total_cents > 0})
    async with plain.open(database) as orders:
        assert_type(orders, JsonViewReader[Order])
        assert_type(await orders.get(id), JsonBytes)
        assert_type(await orders.page(), Page[bytes])
    anyone = JsonView(Order, OrderOut, where={Order: lambda order, viewer: order.user_id == viewer.user_id})
    async with anyone.open(database) as orders:
        assert_type(await orders.get(id, viewer=viewer), JsonBytes)
    own: JsonView[Order, Viewer] = JsonView(
        Order, OrderOut, where={Order: lambda order, viewer: order.user_id == viewer.user_id}
    )
    async with own.open(database) as own_orders:
        assert_type(own_orders, JsonViewReader[Order, Viewer])
        assert_type(await own_orders.get(id, viewer=viewer), JsonBytes)
        assert_type(await own_orders.get_many([id], viewer=viewer), list[JsonBytes])
        assert_type(await own_orders.page(select(Order), viewer=viewer, limit=5), Page[bytes])
        async for line in own_orders.stream(viewer=viewer):
            assert_type(line, bytes)
    assert_type(own.parameters(viewer), dict[str, Any])
