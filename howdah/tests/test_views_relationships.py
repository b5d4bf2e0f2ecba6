"""A view reads each kind of relationship of SQLAlchemy's documentation as SQLAlchemy loads it, or refuses it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import related_classes as related
from pydantic import BaseModel, ConfigDict, create_model
from related_classes import Animal, Association, Child, Dog, Folder, Parent, Puppy, Toy
from sqlalchemy import inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import RelationshipProperty, configure_mappers, selectinload

from howdah import CannotRender, Database, JsonView

configure_mappers()


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class Item(Out):
    id: int


# What can't be followed exactly, and why.
REFUSED = {
    (Parent, "toys_outer"): "outer join",
    (Parent, "third_table"): "a table that it doesn't join",
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
    related.Car,
    related.Boat,
    related.Tug,
    related.Reminder,
)
EVERY: list[tuple[Any, str]] = [(each, name) for each in CLASSES for name in [*inspect(each).relationships.keys()]]
KINDS = [(each, name) for each, name in EVERY if (each, name) not in REFUSED and name != "me"]


def property_of(model: Any, name: str) -> RelationshipProperty[Any]:
    return inspect(model).relationships[name]


def has_itself(model: Any) -> bool:
    mapper = inspect(model)
    return "me" in mapper.relationships and mapper.relationships["me"].mapper is mapper


def schema_of(model: Any, name: str) -> type[BaseModel]:
    kind: Any = list[Item] if property_of(model, name).uselist else Item | None
    return create_model("Made", __base__=Out, id=(int, ...), **{name: (kind, ...)})


def loaded(schema: type[BaseModel], row: Any, name: str, *, ordered: bool) -> Any:
    """What the schema makes of the object. In SQLAlchemy 2.1 `selectinload` repeats a row that an association repeats;
    all other loaders have it once."""
    value = schema.model_validate(row).model_dump()
    if isinstance(value[name], list):
        once = {item["id"]: item for item in value[name]}
        value[name] = [*once.values()] if ordered else [once[id] for id in sorted(once)]
    return value


@pytest.mark.filterwarnings("ignore:Multiple rows returned with uselist=False")
@pytest.mark.parametrize("seed", range(8))
async def test_it_is_what_selectinload_loads(session: AsyncSession, database: Database, seed: int) -> None:
    await related.make_tables(session)
    await related.make_rows(session, seed)
    different = {}
    for model, name in KINDS:
        try:
            async with session.begin_nested():
                await assert_same_as_loaded(session, database, model, name)
        except (Exception, AssertionError) as error:
            print("@@", model.__name__, name, type(error), str(error)[:1500])
            different[f"{model.__name__}.{name}"] = error
    assert not different


async def assert_same_as_loaded(session: AsyncSession, database: Database, model: Any, name: str) -> None:
    session.expunge_all()
    schema, ordered = schema_of(model, name), bool(property_of(model, name).order_by)
    rows = (await session.scalars(select(model).options(selectinload(getattr(model, name))))).all()
    wanted = {inspect(row).identity: loaded(schema, row, name, ordered=ordered) for row in rows}
    keys = [key if len(key) > 1 else key[0] for key in wanted]
    async with JsonView(model, schema).open(database) as opened:
        found = [json.loads(body) for body in await opened.get_many(keys)]
    assert found == [*wanted.values()]
    if has_itself(model):
        around = create_model("Around", __base__=Out, me=(schema | None, ...))
        async with JsonView(model, around).open(database) as opened:
            assert [json.loads(body)["me"] for body in await opened.get_many(keys)] == found


@pytest.mark.parametrize(("model", "name"), REFUSED, ids=[f"{each.__name__}.{name}" for each, name in REFUSED])
def test_what_cant_be_followed_is_refused(model: Any, name: str) -> None:
    schema = create_model("Made", __base__=Out, **{name: (list[Item], ...)})
    with pytest.raises(CannotRender) as caught:
        JsonView(model, schema)
    assert caught.value.path == f"Made.{name}"
    assert REFUSED[model, name] in caught.value.reason
