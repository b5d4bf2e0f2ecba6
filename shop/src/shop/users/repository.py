"""Find users."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Select, select

from howdah import AsyncRepository
from shop.users.models import User


class UserRepository(AsyncRepository[User]):
    async def get_by_email(self, email: str) -> User | None:
        """The user with this email address, in upper or lower case."""
        return (await self.session.scalars(select(User).where(User.email == email.lower()))).one_or_none()


def select_users(
    *,
    email_prefix: str | None = None,
    country: str | None = None,
    created_from: datetime | None = None,
    created_before: datetime | None = None,
) -> Select[Any]:
    """A list query: users in the order of their ids, so oldest first. None means no filter."""
    selected = select(User).order_by(User.id)
    if email_prefix is not None:
        selected = selected.where(User.email.startswith(email_prefix.lower(), autoescape=True))
    if country is not None:
        selected = selected.where(User.country == country)
    if created_from is not None:
        selected = selected.where(User.created_at >= created_from)
    if created_before is not None:
        selected = selected.where(User.created_at < created_before)
    return selected
