"""`BigIntPrimaryKey`: keys that PostgreSQL generates."""

from __future__ import annotations

import pytest
from sqlalchemy import BigInteger, ForeignKey, MetaData, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, relationship
from sqlalchemy.schema import CreateTable

from howdah import AsyncRepository, Base, BigIntPrimaryKey, InvalidStatement, Versioned
from howdah.testing import assert_statements


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Ticket(BigIntPrimaryKey, Versioned, Separate):
    __tablename__ = "tickets"

    name: Mapped[str] = mapped_column(unique=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("tickets.id"), type_=BigInteger)
    parent: Mapped[Ticket | None] = relationship(remote_side="Ticket.id")


@pytest.fixture
async def tickets(session: AsyncSession) -> AsyncRepository[Ticket]:
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    return AsyncRepository(session, Ticket)


def test_the_column_is_an_identity_column() -> None:
    ddl = str(CreateTable(Ticket.metadata.tables["tickets"]))
    assert "id BIGINT GENERATED ALWAYS AS IDENTITY" in " ".join(ddl.split())
    assert ddl.index("id BIGINT") < ddl.index("name VARCHAR")


@pytest.mark.parametrize("count", [1, 19, 25, 2100])
async def test_a_bulk_insert_returns_the_keys_in_the_order_of_the_input(
    tickets: AsyncRepository[Ticket], count: int
) -> None:
    names = [f"{number * 7919 % 10007}" for number in range(count)]
    created = await tickets.create_many([{"name": name} for name in names])
    stored = {ticket.id: ticket.name for ticket in await tickets.list(limit=None)}
    assert [stored[key] for key in created.keys] == names
    more = [{"name": f"more {number}"} for number in range(count)]
    with assert_statements(tickets.session, 1) as sent:
        assert (await tickets.create_many(more, keys=False)).count == count
    assert sent[0].startswith("COPY" if count > 1 else "INSERT")  # rows of a tree use COPY earlier


async def test_objects_have_their_keys_after_the_flush(tickets: AsyncRepository[Ticket]) -> None:
    parent = await tickets.create(name="parent")
    child = await tickets.create(name="child", parent=parent)
    assert child.parent_id == parent.id
    assert child.id > parent.id
    await tickets.session.execute(text("ALTER TABLE tickets ALTER id RESTART WITH 5000000000"))
    assert (await tickets.create(name="large")).id == 5_000_000_000
    assert (await tickets.get_one(5_000_000_000)).name == "large"


async def test_rows_are_upserted_by_another_constraint(tickets: AsyncRepository[Ticket]) -> None:
    first, is_new = await tickets.upsert({"name": "a"}, on=["name"])
    assert is_new
    again, is_new = await tickets.upsert({"name": "a", "parent_id": first.id}, on=["name"])
    assert (again is first, is_new, first.parent_id) == (True, False, first.id)
    assert (await tickets.get_or_create(name="a"))[0] is first
    rows = [{"name": "a", "parent_id": None}, {"name": "b", "parent_id": first.id}]
    result = await tickets.upsert_many(rows, on=["name"])
    assert (result.created, result.updated) == (1, 1)


@pytest.mark.parametrize("count", [1, 25])
async def test_a_key_of_the_callers_own_is_rejected(tickets: AsyncRepository[Ticket], count: int) -> None:
    rows = [{"id": number, "name": str(number)} for number in range(count)]
    for keys in (True, False):
        with pytest.raises(InvalidStatement, match="non-DEFAULT value into column"):
            async with tickets.session.begin_nested():
                await tickets.create_many(rows, keys=keys)
