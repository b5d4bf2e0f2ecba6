"""Faults 6, 8 and 9 of the reference, each with its control test. docs/faults.md lists the other tests."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import DateTime, ForeignKey, String, literal, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, configure_mappers, mapped_column, relationship

from howdah import Database, InvalidValue, utcnow
from howdah.fastapi import DbSession
from shop import tables
from shop.users.models import User
from shop_tests.support.factories import make_order, make_user
from shop_tests.support.http_service import client_of, serve_in_thread


@pytest.fixture
def in_new_york() -> Iterator[None]:
    """Set the local time zone of the process to one that is not UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "America/New_York"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


# 6. `datetime.utcnow` is naive, and the driver reads it as local time.


@pytest.mark.usefixtures("in_new_york")
async def test_a_time_is_stored_as_the_same_moment(committed_database: Database) -> None:
    before = datetime.now(UTC)
    async with committed_database.begin() as session:
        session.add(User(email="a@example.com", name="A"))
    async with committed_database.session() as session:
        stored = (await session.scalars(select(User.created_at))).one()
    assert before <= stored <= utcnow()


@pytest.mark.usefixtures("in_new_york")
async def test_a_naive_time_is_rejected(committed_database: Database) -> None:
    with pytest.raises(InvalidValue):
        async with committed_database.begin() as session:
            session.add(User(email="a@example.com", name="A", created_at=datetime.now(UTC).replace(tzinfo=None)))


@pytest.mark.usefixtures("in_new_york")
async def test_control_a_naive_utc_time_is_stored_hours_off(committed_database: Database) -> None:
    now = datetime.now(UTC)
    plain = create_async_engine(committed_database.engine.url)
    async with plain.connect() as connection:
        naive = literal(now.replace(tzinfo=None), DateTime(timezone=True))
        read: datetime = (await connection.scalars(select(naive))).one()
    await plain.dispose()
    assert abs((read - now).total_seconds()) >= 4 * 3600


# 8. `OrderItem` and `Account` are used, but never defined.


def test_every_class_that_is_used_is_defined() -> None:
    configure_mappers()
    assert {"order_items", "accounts", "entries"} <= set(tables.Base.metadata.tables)


def test_control_the_models_of_the_reference_cannot_be_configured() -> None:
    class ReferenceBase(DeclarativeBase):
        pass

    class Order(ReferenceBase):
        __tablename__ = "orders"
        id: Mapped[UUID] = mapped_column(primary_key=True)
        status: Mapped[str] = mapped_column(String(20), default="pending")
        items: Mapped[list["OrderItem"]] = relationship(lazy="raise")  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(InvalidRequestError, match="OrderItem"):
        ReferenceBase.registry.configure()
    ReferenceBase.registry.dispose()


# 9. `get_user` returns a mapped object without a response model.


async def test_a_response_has_only_the_fields_of_its_model(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    await make_order(client, user["id"])
    answer = (await client.get(f"/users/{user['id']}")).json()
    schema = (await client.get("/openapi.json")).json()["components"]["schemas"]["UserWithOrdersOut"]
    assert set(answer) == set(schema["properties"])


async def test_control_without_a_response_model_every_loaded_column_is_sent(committed_database: Database) -> None:
    class ReferenceBase(DeclarativeBase):
        pass

    class Customer(ReferenceBase):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        password_hash: Mapped[str]

    class Visit(ReferenceBase):
        __tablename__ = "visits"
        id: Mapped[int] = mapped_column(primary_key=True)
        customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id))

    async with committed_database.engine.begin() as connection:
        await connection.run_sync(ReferenceBase.metadata.create_all)
    async with committed_database.begin() as session:
        session.add(Customer(id=1, name="Ada", password_hash="secret"))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with Database(committed_database.engine.url) as database:
            yield {"database": database}

    app = FastAPI(lifespan=lifespan)

    @app.get("/customers/{customer_id}")
    async def get_customer(customer_id: int, db: DbSession):  # type: ignore[no-untyped-def]
        return await db.get(Customer, customer_id)

    with serve_in_thread(app) as address:
        async with client_of(address) as client:
            answer = (await client.get("/customers/1")).json()
    assert answer["password_hash"] == "secret"
