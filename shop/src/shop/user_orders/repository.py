"""Find users with their orders."""

from __future__ import annotations

from uuid import UUID

from shop.orders import models as _orders  # noqa: F401  # sets `User.orders`
from shop.users.models import User
from shop.users.repository import UserRepository


class UserWithOrdersRepository(UserRepository):
    async def get_with_orders(self, user_id: UUID) -> User | None:
        """The user with their orders, by the time when they were placed. None if there is no such user."""
        return await self.get(user_id, load=[User.orders])
