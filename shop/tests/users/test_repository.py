"""Finding users."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import utcnow
from howdah.testing import assert_statements
from shop.orders.models import Order
from shop.users.repository import UserRepository


async def test_a_user_is_found_by_address_in_whatever_case(session: AsyncSession) -> None:
    users = UserRepository(session)
    ada = await users.create(email="ada@example.com", name="Ada")
    assert await users.get_by_email("Ada@Example.COM") is ada
    assert await users.get_by_email("grace@example.com") is None


async def test_a_user_comes_with_their_orders_in_two_statements(session: AsyncSession) -> None:
    users = UserRepository(session)
    ada = await users.create(email="ada@example.com", name="Ada")
    later, earlier = Order(user_id=ada.id, total_cents=1), Order(user_id=ada.id, total_cents=2)
    later.placed_at, earlier.placed_at = utcnow(), utcnow().replace(year=2020)
    session.add_all([later, earlier])
    await session.flush()
    with assert_statements(session, 2):
        found = await users.get_with_orders(ada.id)
    assert found is ada
    assert found.orders == [earlier, later]
    assert await users.get_with_orders(uuid4()) is None
