"""Users with their orders."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import utcnow
from howdah.testing import assert_statements
from shop.orders.models import Order
from shop.user_orders.repository import UserWithOrdersRepository


async def test_a_user_is_loaded_with_their_orders_in_two_statements(session: AsyncSession) -> None:
    users = UserWithOrdersRepository(session)
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
