"""`text_enum`: the values of a `StrEnum` in a column."""

from __future__ import annotations

from enum import StrEnum

import pytest
from sqlalchemy import MetaData, String, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah import NAMING_CONVENTION, Base, CheckViolation, UUIDv7PrimaryKey, bulk, text_enum


class Colour(StrEnum):
    RED = "red"
    DARK_BLUE = "dark blue"


class PaintBase(Base):
    __abstract__ = True
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Paint(UUIDv7PrimaryKey, PaintBase):
    __tablename__ = "paints"

    colour: Mapped[Colour] = mapped_column(text_enum(Colour, name="colour_is_known", length=10))
    other: Mapped[Colour | None] = mapped_column(text_enum(Colour, name="other_is_known", length=10))


@pytest.fixture
async def paints(session: AsyncSession) -> None:
    await (await session.connection()).run_sync(PaintBase.metadata.create_all)


@pytest.mark.usefixtures("paints")
async def test_the_column_stores_the_values_and_reads_members(session: AsyncSession) -> None:
    session.add(Paint(colour=Colour.DARK_BLUE))
    await bulk.insert_many(session, Paint, [{"colour": "red", "other": Colour.DARK_BLUE}])
    session.expire_all()
    stored = await session.execute(text("SELECT colour::text, pg_typeof(colour)::text FROM paints ORDER BY colour"))
    assert [tuple(row) for row in stored] == [("dark blue", "character varying"), ("red", "character varying")]
    found = (await session.execute(select(Paint.colour, Paint.other).order_by(Paint.colour))).all()
    assert [tuple(row) for row in found] == [(Colour.DARK_BLUE, None), (Colour.RED, Colour.DARK_BLUE)]
    assert await session.scalar(select(Paint.id).where(Paint.colour == "dark blue")) is not None


@pytest.mark.usefixtures("paints")
async def test_another_value_violates_a_constraint_that_is_named_by_the_convention(session: AsyncSession) -> None:
    with pytest.raises(CheckViolation) as caught:
        await session.execute(text("INSERT INTO paints (id, colour) VALUES (gen_random_uuid(), 'green')"))
    assert caught.value.constraint == "ck_paints_colour_is_known"


def test_the_length_is_that_of_the_column_and_must_fit_every_value() -> None:
    column_type = Paint.__table__.c.colour.type
    assert isinstance(column_type, String)
    assert column_type.length == 10
    with pytest.raises(ValueError, match="length"):
        text_enum(Colour, name="colour_is_known", length=8)
