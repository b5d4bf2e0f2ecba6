"""Find users."""

from __future__ import annotations

from sqlalchemy import select

from howdah import AsyncRepository
from shop.users.models import User


class UserRepository(AsyncRepository[User]):
    async def get_by_email(self, email: str) -> User | None:
        """The user with this email address, in upper or lower case."""
        return (await self.session.scalars(select(User).where(User.email == email.lower()))).one_or_none()
