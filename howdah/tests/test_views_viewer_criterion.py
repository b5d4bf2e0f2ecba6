"""`criterion_for` is the filter of a view with the values of one viewer, for writes and for statements of one's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy import Text, cast, exists, func, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository, Database, InvalidValue, JsonView, NotFound, bulk
from howdah_tests.support.sample_models import Order, Status, User
from howdah_tests.support.sample_rows import make_users


class OrderOut(BaseModel):
    id: UUID


def has_name(order: Any, viewer: Any) -> Any:
    named = select(User.id).where(
        User.id == order.user_id, func.lower(User.name) == func.lower(cast(viewer.name, Text))
    )
    return exists(named)


FILTERS: dict[str, Any] = {
    "own column": lambda order, viewer: order.user_id == viewer.user_id,
    "list": lambda order, viewer: order.user_id.in_(viewer.user_ids),
    "boolean": lambda order, viewer: or_(viewer.is_admin, order.user_id == viewer.user_id),
    "python value": lambda order, viewer: or_(viewer.role == "admin", not_(order.status.in_([Status.PENDING]))),
    "related row": lambda order, viewer: order.user.has(User.name == viewer.name),
    "subquery": has_name,
    "without the viewer": lambda order: order.total_cents > 1,
}


@pytest.fixture
async def viewers(session: AsyncSession) -> list[Any]:
    users = await make_users(session, 3)
    rows = [{"user_id": user, "total_cents": n} for n in range(3) for user in users]
    await bulk.insert_many(session, Order, rows)
    await session.commit()
    viewers = [
        SimpleNamespace(user_id=user, user_ids=users[:n], is_admin=n == 2, role="admin" if n else "", name=f"User {n}")
        for n, user in enumerate(users)
    ]
    return [*viewers, SimpleNamespace(user_id=None, user_ids=[], is_admin=None, role=None, name=None)]


@pytest.mark.parametrize("name", FILTERS)
async def test_it_finds_the_rows_that_the_view_shows(
    session: AsyncSession, database: Database, viewers: list[Any], name: str
) -> None:
    where = {Order: FILTERS[name]} if name != "without the viewer" else {Order: FILTERS[name], User: own_user}
    view: JsonView[Order] = JsonView(Order, OrderOut, where=where)
    found_by_viewer = []
    async with view.open(database) as reader:
        for viewer in viewers:
            shown = {OrderOut.model_validate_json(line).id async for line in reader.stream(viewer=viewer)}
            found = {*await session.scalars(select(Order.id).where(view.criterion_for(viewer)))}
            assert found == shown
            found_by_viewer.append(found)
    first, *_, last = found_by_viewer
    both = select(Order.id).where(or_(view.criterion_for(viewers[0]), view.criterion_for(viewers[-1])))
    assert {*await session.scalars(both)} == first | last, "one statement may have the criteria of two viewers"
    assert any(found_by_viewer)


def own_user(user: Any, viewer: Any) -> Any:
    return user.id == viewer.user_id


async def test_a_row_that_the_viewer_must_not_see_is_not_locked(session: AsyncSession, viewers: list[Any]) -> None:
    view: JsonView[Order] = JsonView(Order, OrderOut, where={Order: FILTERS["related row"]})
    orders = AsyncRepository(session, Order)
    mine, other = viewers[:2]
    order = (await orders.list(select(Order).where(Order.user_id == mine.user_id), limit=1))[0]
    assert await orders.lock_one(order.id, where=view.criterion_for(mine)) is order
    with pytest.raises(NotFound):
        await orders.lock_one(order.id, where=view.criterion_for(other))


def test_a_wrong_viewer_is_rejected() -> None:
    view: JsonView[Order] = JsonView(Order, OrderOut, where={Order: FILTERS["own column"]})
    for viewer in (None, SimpleNamespace()):
        with pytest.raises(TypeError, match="viewer"):
            view.criterion_for(viewer)
    with pytest.raises(InvalidValue):
        view.criterion_for({"user_id": "no key"})
    with pytest.raises(TypeError, match="this view has no viewer"):
        JsonView(Order, OrderOut).criterion_for(None)
