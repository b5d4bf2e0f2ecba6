"""A view applies all parts of a statement or rejects it. It reads aliases like Pydantic."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import contains_eager, selectinload, with_loader_criteria

from howdah import Database, JsonView, bulk
from howdah_tests.support.sample_models import Order, User
from howdah_tests.support.sample_rows import make_users, user_rows
from howdah_tests.support.view_schemas import UserOut, assert_same


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class NameOut(Out):
    name: str


REJECTED = {
    "criteria of a nested class": (
        select(User).options(with_loader_criteria(Order, lambda order: order.total_cents > 5)),
        r"takes no options\(\)",
    ),
    "criteria of the class itself": (
        select(User).options(with_loader_criteria(User, User.age > 1, include_aliases=True)),
        r"takes no options\(\)",
    ),
    "a part of a collection": (
        select(User).join(User.orders).options(contains_eager(User.orders)),
        r"takes no options\(\)",
    ),
    "a filtered collection": (
        select(User).options(selectinload(User.orders.and_(Order.total_cents > 5))),
        r"takes no options\(\)",
    ),
    "another schema": (
        select(User).execution_options(schema_translate_map={None: "other"}),
        r"takes no execution_options\(\)",
    ),
    "yield_per": (select(User).execution_options(yield_per=5), r"takes no execution_options\(\)"),
    "locks": (select(User).with_for_update(), r"can't have with_for_update\(\)"),
}


@pytest.mark.parametrize(("statement", "reason"), REJECTED.values(), ids=REJECTED.keys())
async def test_a_statement_with_a_part_that_the_view_cannot_apply_is_rejected(
    session: AsyncSession, database: Database, statement: Any, reason: str
) -> None:
    async with JsonView(User, UserOut).open(database) as view:
        with pytest.raises(ValueError, match=reason):
            await view.page(statement)
        with pytest.raises(ValueError, match=reason):
            await anext(view.stream(statement))


@pytest.mark.parametrize(
    "order",
    [
        (),
        (User.name.desc(),),
        (User.age.desc().nulls_last(), User.name),
        (User.id,),
        (func.lower(User.name).desc(), User.age),
    ],
)
async def test_a_stream_of_distinct_rows_has_each_row_once(
    session: AsyncSession, database: Database, order: tuple[Any, ...]
) -> None:
    users = (await bulk.insert_many(session, User, user_rows(25))).keys
    rows = [{"user_id": user, "total_cents": n} for n, user in enumerate([*users[:20], *users[:20]])]
    await bulk.insert_many(session, Order, rows)
    await session.commit()
    statement = select(User).join(User.orders).distinct().order_by(*order)
    async with JsonView(User, UserOut).open(database) as view:
        lines = [json.loads(line)["id"] async for line in view.stream(statement, batch=7)]
        pages, cursor = [], None
        while True:
            page = await view.page(statement, limit=6, after=cursor)
            pages += [json.loads(body)["id"] for body in page.items]
            cursor = page.next
            if cursor is None:
                break
    assert len(lines) == 20
    assert lines == pages


async def test_the_name_is_read_if_the_alias_is_not_an_attribute(session: AsyncSession, database: Database) -> None:
    (key,) = await make_users(session, 1)
    await session.commit()
    async with JsonView(User, SmallCamelOut).open(database) as view:
        body = await view.get(key)
        assert_same(body, SmallCamelOut, await session.get_one(User, key))
        assert [*json.loads(body)] == ["id", "nameLength", "nickname"]


class SmallCamelOut(Out):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    id: UUID
    name_length: int
    shown: str = Field(alias="nickname")


class Price(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    unit_price: int | None = Field(7, alias="unitPrice")
    names: list[str] = Field(alias="allNames")


class Prices(Out):
    details: Price | None


@pytest.mark.parametrize(
    "details",
    [
        {"unitPrice": 1, "allNames": ["a"]},
        {"unit_price": 2, "names": ["b"]},
        {"unitPrice": 3, "unit_price": 4, "allNames": [], "names": ["c"]},
        {"unitPrice": None, "unit_price": 5, "names": []},
        {"allNames": ["d"]},
        None,
    ],
)
async def test_a_model_in_json_is_read_by_aliases_or_names(
    session: AsyncSession, database: Database, details: Any
) -> None:
    (user,) = await make_users(session, 1)
    (key,) = (await bulk.insert_many(session, Order, [{"user_id": user, "details": details}])).keys
    await session.commit()
    async with JsonView(Order, Prices).open(database) as view:
        assert_same(await view.get(key), Prices, await session.get_one(Order, key))
