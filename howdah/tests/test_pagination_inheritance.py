"""List queries of composites, of inherited classes and of concrete classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import MetaData, case, desc, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import (
    Bundle,
    Mapped,
    composite,
    mapped_column,
    with_polymorphic,
)

from howdah import AsyncRepository, Base
from howdah_tests.support.page_walks import assert_pages_are
from howdah_tests.support.sample_models import Car, Engineer, Staff, Vehicle


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


@dataclass
class Point:
    x: int | None
    y: int | None


class Shape(Separate):
    """Its discriminator is an expression."""

    __tablename__ = "shapes"

    id: Mapped[int] = mapped_column(primary_key=True)
    x: Mapped[int | None]
    y: Mapped[int | None]
    corners: Mapped[int] = mapped_column()
    point: Mapped[Point] = composite("x", "y")
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": case((corners == 3, "triangle"), else_="shape"),
        "polymorphic_identity": "shape",
    }


class Triangle(Shape):
    __mapper_args__ = {"polymorphic_identity": "triangle"}  # noqa: RUF012


class Barge(ConcreteBase, Separate):
    __tablename__ = "barges"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    length: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "barge", "concrete": True}  # noqa: RUF012


class Ferry(Barge):
    """Has no column for the length."""

    __tablename__ = "ferries"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    cars: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "ferry", "concrete": True}  # noqa: RUF012


class IdOut(BaseModel):
    id: int


@pytest.fixture
async def tables(session: AsyncSession) -> AsyncSession:
    await (await session.connection()).run_sync(Separate.metadata.create_all)
    return session


# --- inherited classes, composites and bundles


async def test_a_class_with_a_computed_discriminator_can_be_paginated(tables: AsyncSession) -> None:
    await tables.execute(
        insert(Shape), [{"id": i, "x": i % 3, "y": i % 2 or None, "corners": 3 + i % 2} for i in range(9)]
    )
    shapes = AsyncRepository(tables, Shape)
    for list_query in (
        select(Shape),
        select(Triangle).order_by(Triangle.y.desc()),
        select(Shape).order_by(Shape.corners.desc(), Shape.x),
        select(Shape).order_by(case((Shape.corners == 3, "triangle"), else_="shape")),
    ):
        whole = await shapes.list(list_query, limit=None)
        assert len(whole) in {5, 9}
        await assert_pages_are(whole, partial(shapes.page, list_query, count=True), limit=2)
    assert await shapes.count(select(Triangle)) == 5


async def test_composites_and_bundles_are_ordered_by_their_columns(tables: AsyncSession) -> None:
    await tables.execute(
        insert(Shape), [{"id": i, "x": i % 3, "y": i % 2 or None, "corners": 3 + i % 2} for i in range(9)]
    )
    shapes = AsyncRepository(tables, Shape)
    by_columns = await shapes.list(select(Shape).order_by(Shape.x, Shape.y))
    clauses: list[Any] = [Shape.point, Bundle("point", Shape.x, Shape.y)]
    for clause in clauses:
        list_query = select(Shape).order_by(clause)
        assert await shapes.list(list_query) == by_columns
        await assert_pages_are(by_columns, partial(shapes.page, list_query), limit=2)
        assert [each async for each in shapes.stream(list_query)] == by_columns
    descending = select(Shape).order_by(Shape.corners.desc(), Shape.point)
    await assert_pages_are(await shapes.list(descending), partial(shapes.page, descending), limit=2)


async def test_the_direction_of_a_composite_applies_to_each_column_or_is_rejected(tables: AsyncSession) -> None:
    """SQLAlchemy 2.0 applies it only to the last column."""
    await tables.execute(
        insert(Shape), [{"id": i, "x": i % 3, "y": i % 2 or None, "corners": 3 + i % 2} for i in range(9)]
    )
    shapes = AsyncRepository(tables, Shape)
    clauses: list[Callable[[], Any]] = [
        lambda: desc(tuple_(Shape.x, Shape.y)),
        Shape.point.desc,
        lambda: desc(Bundle("point", Shape.x, Shape.y)),
    ]
    errors: list[str] = []
    for make in clauses:
        try:
            clause = make()
            whole = await shapes.list(select(Shape).order_by(clause))
        except NotImplementedError:  # raised by SQLAlchemy
            continue
        except ValueError as error:
            errors.append(str(error))
            continue
        assert whole == await shapes.list(select(Shape).order_by(Shape.x.desc(), Shape.y.desc()))
        await assert_pages_are(whole, partial(shapes.page, select(Shape).order_by(clause)), limit=2)
    assert all("one direction can't apply to several columns" in each for each in errors)


async def test_concrete_classes_are_one_list_query(tables: AsyncSession) -> None:
    """A column that one of the tables lacks is NULL for its rows, even if it is NOT NULL in the other table."""
    barges: Any = Barge.__table__
    ferries: Any = Ferry.__table__
    await tables.execute(insert(barges), [{"id": i, "name": f"b{i % 2}", "length": i % 3} for i in range(6)])
    await tables.execute(insert(ferries), [{"id": 10 + i, "name": f"b{i % 2}", "cars": i} for i in range(6)])
    boats = AsyncRepository(tables, Barge)
    for list_query, number in (
        (select(Barge), 12),
        (select(Barge).order_by(Barge.name.desc()), 12),
        (select(Barge).order_by(Barge.length), 12),
        (select(Barge).order_by(Barge.length.desc(), Barge.name), 12),
        (select(Ferry).order_by(Ferry.name, Ferry.cars.desc()), 6),
    ):
        whole = await boats.list(list_query, limit=None)
        assert len(whole) == number
        await assert_pages_are(whole, partial(boats.page, list_query, count=True), limit=5)


async def test_inherited_classes_can_be_paginated(tables: AsyncSession) -> None:
    for i in range(4):
        tables.add_all([Staff(name=f"n{i % 2}"), Engineer(name=f"n{i % 3}", language="ab"[i % 2])])
        tables.add_all([Vehicle(wheels=i), Car(wheels=i, doors=i % 2 or None)])
    await tables.flush()
    wide = with_polymorphic(Staff, [Engineer])
    staff: AsyncRepository[Any] = AsyncRepository(tables, Staff)
    for list_query in (
        select(Staff).order_by(Staff.name.desc()),
        select(Engineer).order_by(Engineer.language, Engineer.name.desc()),
        select(wide).order_by(wide.Engineer.language, wide.name),
        select(wide).order_by(wide.Engineer.language.desc().nulls_last()),
    ):
        await assert_pages_are(await staff.list(list_query), partial(staff.page, list_query), limit=3)
    vehicles: AsyncRepository[Any] = AsyncRepository(tables, Vehicle)
    for each in (select(Vehicle).order_by(Vehicle.wheels), select(Car).order_by(Car.doors, Car.wheels.desc())):
        await assert_pages_are(await vehicles.list(each), partial(vehicles.page, each), limit=3)
