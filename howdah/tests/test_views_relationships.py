"""A view reads every kind of relationship in SQLAlchemy's documentation like SQLAlchemy, or raises an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy
from pydantic import BaseModel, ConfigDict
from sqlalchemy import inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import RelationshipProperty, class_mapper, configure_mappers, selectinload

from howdah import Database, JsonView, ViewCompileError
from howdah_tests.support.relationship_inheritance import Animal, Boat, Car, Dog, Invoice, Puppy, Reminder, Tug, Vehicle
from howdah_tests.support.relationship_models import Association, Child, Folder, Parent, Toy
from howdah_tests.support.relationship_rows import make_rows, make_tables
from howdah_tests.support.view_schemas import create_schema

configure_mappers()


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class Item(Out):
    id: int


# The relationships that a view can't render exactly, and the reasons.
REJECTED = {
    (Parent, "toys_outer"): "outer join",
    (Parent, "third_table"): "a table that it doesn't join",
    (Parent, "by_missing_column"): "a table that it doesn't join",
    (Parent, "by_subquery"): "has a subquery",
    (Parent, "cars"): "an expression (polymorphic_on)",
    (Parent, "a_car"): "an expression (polymorphic_on)",
    (Parent, "as_set"): "isn't a list",
    (Parent, "as_dict"): "isn't a list",
    (Parent, "as_dynamic"): "isn't a list",
    (Parent, "as_write_only"): "isn't a list",
}
CLASSES = (
    Parent,
    Child,
    Toy,
    Association,
    Folder,
    Animal,
    Dog,
    Puppy,
    Car,
    Boat,
    Tug,
    Reminder,
)
# SQLAlchemy 2.0 itself joins the rows of a polymorphic union to all rows of the table.
NOT_LOADED = {"me", "few_columns"} | ({"invoices", "reminders"} if sqlalchemy.__version__ < "2.1" else set())
ALL_RELATIONSHIPS: list[tuple[Any, str]] = [
    (each, name) for each in CLASSES for name in [*class_mapper(each).relationships.keys()]
]
KINDS = [(each, name) for each, name in ALL_RELATIONSHIPS if (each, name) not in REJECTED and name not in NOT_LOADED]


def property_of(model: Any, name: str) -> RelationshipProperty[Any]:
    return class_mapper(model).relationships[name]


def has_itself(model: Any) -> bool:
    mapper = inspect(model)
    return "me" in mapper.relationships and mapper.relationships["me"].mapper is mapper


def schema_of(model: Any, name: str) -> type[BaseModel]:
    kind: Any = list[Item] if property_of(model, name).uselist else Item | None
    return create_schema({"id": int, name: kind})


def loaded(schema: type[BaseModel], row: Any, name: str, *, ordered: bool) -> Any:
    """The schema's values of the object. In SQLAlchemy 2.1 `selectinload` repeats a row that an association repeats;
    all other loaders return it once."""
    value = schema.model_validate(row).model_dump()
    if isinstance(value[name], list):
        once = {item["id"]: item for item in value[name]}
        value[name] = [*once.values()] if ordered else [once[id] for id in sorted(once)]
    return value


@pytest.mark.filterwarnings("ignore:Multiple rows returned with uselist=False")
@pytest.mark.parametrize("seed", range(4))
async def test_a_relationship_has_the_rows_that_selectinload_loads(
    session: AsyncSession, database: Database, seed: int
) -> None:
    await make_tables(session)
    await make_rows(session, seed)
    different = {}
    for model, name in KINDS:
        try:
            async with session.begin_nested():
                await assert_same_as_loaded(session, database, model, name)
        except (Exception, AssertionError) as error:
            different[f"{model.__name__}.{name}"] = error
    assert not different


async def assert_same_as_loaded(session: AsyncSession, database: Database, model: Any, name: str) -> None:
    session.expunge_all()
    schema, ordered = schema_of(model, name), bool(property_of(model, name).order_by)
    rows = (await session.scalars(select(model).options(selectinload(getattr(model, name))))).all()
    expected = {inspect(row).identity: loaded(schema, row, name, ordered=ordered) for row in rows}
    keys = [key if len(key) > 1 else key[0] for key in expected]
    async with JsonView(model, schema).open(database) as opened:
        found = [json.loads(body) for body in await opened.get_many(keys)]
    assert found == [*expected.values()]
    if has_itself(model):
        outer = create_schema({"me": schema | None})
        async with JsonView(model, outer).open(database) as opened:
            assert [json.loads(body)["me"] for body in await opened.get_many(keys)] == found


@pytest.mark.parametrize(
    "model",
    [Animal, Dog, Puppy, Vehicle, Car, Boat, Tug, Invoice, Reminder],
)
async def test_a_view_of_a_subclass_has_only_its_rows(session: AsyncSession, database: Database, model: Any) -> None:
    await make_tables(session)
    await make_rows(session, 1)
    expected = sorted(row.id for row in await session.scalars(select(model)))
    assert expected
    async with JsonView(model, Item).open(database) as view:
        assert [json.loads(body)["id"] for body in await view.get_many(range(10))] == expected
        if inspect(model).concrete:
            with pytest.raises(ValueError, match="read from a union of tables: read them by key"):
                await view.page()
            return
        assert [json.loads(line)["id"] async for line in view.stream()] == expected
        assert [json.loads(body)["id"] for body in (await view.page()).items] == expected


class WithSubqueries(Out):
    id: int
    toys_with_greater_number: int
    toys_with_greater_number_than_this: int
    parents: int | None
    greatest: int | None
    greatest_of_same: int | None


class ChildWithSubqueries(Out):
    id: int
    home: WithSubqueries
    parent: WithSubqueries | None


@pytest.mark.parametrize("seed", range(3))
async def test_nested_subqueries_are_correlated_to_the_related_row(
    session: AsyncSession, database: Database, seed: int
) -> None:
    await make_tables(session)
    await make_rows(session, seed)
    load = (selectinload(Child.home), selectinload(Child.parent))
    rows = (await session.scalars(select(Child).options(*load).order_by(Child.id))).all()
    async with JsonView(Child, ChildWithSubqueries).open(database) as view:
        bodies = await view.get_many([row.id for row in rows])
    expected = [ChildWithSubqueries.model_validate(row) for row in rows]
    assert [ChildWithSubqueries.model_validate_json(body) for body in bodies] == expected


@pytest.mark.filterwarnings("ignore:Did not locate an expression in selectable")
@pytest.mark.parametrize("field", ["name", "name_length"])
def test_a_column_that_an_aliased_class_lacks_is_rejected(field: str) -> None:
    """It would be read from the table itself, for every row. SQLAlchemy at most warns about it."""
    reason = "few_columns{} can't be rendered: its aliased class has no column"
    child: Any = create_schema({field: Any})
    with pytest.raises(ViewCompileError, match=reason.format(rf"\.{field}")):
        JsonView(Parent, create_schema({"few_columns": list[child]}))
    schema = create_schema({"few_columns": list[Item]})
    with pytest.raises(ViewCompileError, match=reason.format("")):
        JsonView(Parent, schema, where={Child: lambda child: getattr(child, field).is_not(None)})


class Inside(Out):
    id: int
    deputy_without_b: Item | None


class ParentWithoutB(Out):
    without_b: list[Inside]


def test_an_aliased_class_nested_in_itself_is_rejected() -> None:
    with pytest.raises(ViewCompileError, match="it is nested in rows of the same aliased class"):
        JsonView(Parent, ParentWithoutB)


@pytest.mark.parametrize(("model", "name"), REJECTED, ids=[f"{each.__name__}.{name}" for each, name in REJECTED])
def test_a_relationship_that_cannot_be_rendered_is_rejected(model: Any, name: str) -> None:
    schema = create_schema({name: list[Item]})
    with pytest.raises(ViewCompileError) as caught:
        JsonView(model, schema)
    assert caught.value.path == f"Schema.{name}"
    assert REJECTED[model, name] in caught.value.reason
