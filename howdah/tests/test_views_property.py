"""JsonView writes the same JSON as the Pydantic model, for random fields and random rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from howdah import AsyncRepository, Database, JsonView, bulk
from howdah_tests.support.sample_models import Order, Specimen, Status, User
from howdah_tests.support.savepoints import rollback_at_end
from howdah_tests.support.value_strategies import JSON_VALUES, TEXT
from howdah_tests.support.view_schemas import SpecimenOut, UserOut, assert_same, create_schema

ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "whole": st.integers(-(2**30), 2**30 - 1),
    "big": st.integers(-(2**63), 2**63 - 1),
    "words": TEXT,
    "code": st.text("aÄ🐘 ", max_size=3),
    # not the first and the last day, because an offset could lead out of the range
    "moment": st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=ZONES),  # noqa: DTZ001
    "day": st.dates(),
    "hour": st.times(),
    "exact": st.decimals(allow_nan=False, allow_infinity=False)
    | st.decimals(places=9, allow_nan=False, allow_infinity=False),
    "rounded": st.integers(-(10**9), 10**9).map(lambda n: n / 1000),
    "real": st.floats(allow_nan=False),
    "state": st.sampled_from(Status),
    "place": st.sampled_from(Status),
    "token": st.uuids(),
    "flag": st.booleans(),
    "raw": TEXT.map(str.encode),
    "span": st.timedeltas(timedelta(days=-(10**6)), timedelta(days=10**6)),
    "anything": JSON_VALUES,
    "nothing": JSON_VALUES,
    "plain_json": JSON_VALUES,
    "tags": st.lists(TEXT, max_size=3),
    "notes": TEXT,
}
ROWS = st.lists(st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()}), max_size=4)
# Without `half`: Python rounds a division down, SQL towards zero.
FIELDS = sorted({*SpecimenOut.model_fields} - {"half"})
MODELS = st.lists(st.sampled_from(FIELDS), unique=True, min_size=1).map(
    lambda names: create_schema({name: SpecimenOut.model_fields[name].annotation for name in names})
)
without_deadline = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.timeout(600)
@without_deadline
@given(rows=ROWS, model=MODELS)
async def test_any_fields_of_any_rows_are_equal_to_those_of_the_object(
    session: AsyncSession, database: Database, rows: list[dict[str, Any]], model: Any
) -> None:
    async with rollback_at_end(session):
        if rows:
            await session.execute(insert(Specimen), [{"id": id, **row} for id, row in enumerate(rows)])
        async with JsonView(Specimen, model).open(database) as view:
            bodies = await view.get_many(range(len(rows)))
        found = (await session.scalars(select(Specimen).options(undefer("*")).order_by(Specimen.id))).all()
        for body, row in zip(bodies, found, strict=True):
            assert_same(body, model, row)


ORDERS = st.lists(
    st.fixed_dictionaries(
        {
            "total_cents": st.integers(-(2**31), 2**31 - 1),
            "status": st.sampled_from(Status),
            "placed_at": st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
            "weight": st.none() | st.decimals(Decimal(-1000), Decimal(1000), places=3),
            "details": st.none() | st.dictionaries(TEXT, JSON_VALUES, max_size=2),
        }
    ),
    max_size=4,
)


@pytest.mark.timeout(600)
@without_deadline
@given(users=st.lists(ORDERS, max_size=3))
async def test_any_nested_rows_are_equal_to_those_of_the_object(
    session: AsyncSession, database: Database, users: list[list[dict[str, Any]]]
) -> None:
    async with rollback_at_end(session):
        keys = (await bulk.insert_many(session, User, [{"email": f"{n}", "name": "N"} for n in range(len(users))])).keys
        rows = [{"user_id": key, **row} for key, orders in zip(keys, users, strict=True) for row in orders]
        await bulk.insert_many(session, Order, rows)
        async with JsonView(User, UserOut).open(database) as view:
            bodies = await view.get_many(keys)
        found = await AsyncRepository(session, User).get_by_ids(keys, load=[User.orders])
        for body, user in zip(bodies, found, strict=True):
            assert_same(body, UserOut, user)
