"""The repository of the reference examples, for control tests."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession


class ReferenceRepository:
    """Has the methods of the reference examples, unchanged."""

    def __init__(self, session: AsyncSession, model: type[Any]) -> None:
        self.session = session
        self.model = model

    async def get_by_ids(self, ids: list[UUID]) -> list[Any]:
        result = await self.session.execute(select(self.model).where(self.model.id.in_(ids)))
        return list(result.scalars().all())

    async def update(self, instance: Any, **kwargs: Any) -> Any:
        for key, value in kwargs.items():
            setattr(instance, key, value)
        await self.session.flush()
        return instance
