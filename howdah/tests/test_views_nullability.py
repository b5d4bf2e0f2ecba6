"""A view never writes `null` where its schema forbids it: a field that may be NULL or absent must be Optional."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, create_model
from sqlalchemy import (
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    UniqueConstraint,
    and_,
    case,
    cast,
    func,
    inspect,
    join,
    literal,
    null,
    outerjoin,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import INT4RANGE, JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    aliased,
    column_property,
    foreign,
    mapped_column,
    relationship,
    remote,
    selectinload,
    synonym,
)

from howdah import Database, JsonView, ViewCompileError
from howdah_tests.support.view_schemas import create_schema


class Separate(DeclarativeBase):
    pass


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class Item(Out):
    id: int


class Owner(Separate):
    """Has a composite candidate key, a subclass in the same table, and a subclass in another table."""

    __tablename__ = "owners"
    __table_args__ = (UniqueConstraint("id", "area"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    area: Mapped[int]
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "owner"}  # noqa: RUF012


class Boss(Owner):
    __mapper_args__ = {"polymorphic_identity": "boss"}  # noqa: RUF012


class Guest(Owner):
    __tablename__ = "guests"
    id: Mapped[int] = mapped_column(ForeignKey("owners.id"), primary_key=True)
    room: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "guest"}  # noqa: RUF012


class Thing(Separate):
    __tablename__ = "things"
    __table_args__ = (ForeignKeyConstraint(["other_id", "area"], ["owners.id", "owners.area"]),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner_id: Mapped[int] = mapped_column(ForeignKey("owners.id", deferrable=True, initially="DEFERRED"))
    other_id: Mapped[int] = mapped_column()
    area: Mapped[int] = mapped_column()
    guest_id: Mapped[int] = mapped_column(ForeignKey("guests.id"))
    loose_id: Mapped[int] = mapped_column()
    maybe_id: Mapped[int | None] = mapped_column(ForeignKey("owners.id"))
    name: Mapped[str] = mapped_column()
    size: Mapped[int | None] = mapped_column()
    details: Mapped[Any] = mapped_column(JSONB)

    owner: Mapped[Owner] = relationship(foreign_keys=owner_id)
    both: Mapped[Owner] = relationship(foreign_keys=[other_id, area])
    guest: Mapped[Guest] = relationship(foreign_keys=guest_id)

    maybe: Mapped[Owner | None] = relationship(foreign_keys=maybe_id, viewonly=True)
    in_area_1: Mapped[Owner | None] = relationship(
        primaryjoin=lambda: and_(Thing.owner_id == Owner.id, Owner.area == 1), foreign_keys=owner_id, viewonly=True
    )
    if_small: Mapped[Owner | None] = relationship(
        primaryjoin=lambda: and_(Thing.owner_id == Owner.id, Thing.area < 2), foreign_keys=owner_id, viewonly=True
    )
    of_area: Mapped[Owner | None] = relationship(
        primaryjoin=lambda: and_(Thing.owner_id == Owner.id, Thing.area == Owner.area),
        foreign_keys=owner_id,
        viewonly=True,
    )
    greater: Mapped[Owner | None] = relationship(
        primaryjoin=lambda: foreign(Thing.owner_id) < remote(Owner.id), viewonly=True, uselist=False
    )
    boss: Mapped[Boss | None] = relationship(foreign_keys=owner_id, viewonly=True)
    guest_by_owner: Mapped[Guest | None] = relationship(
        primaryjoin=lambda: foreign(Thing.owner_id) == remote(Guest.__table__.c.id), viewonly=True
    )
    loose: Mapped[Owner | None] = relationship(
        primaryjoin=lambda: foreign(Thing.loose_id) == remote(Owner.id), viewonly=True
    )
    reverse: Mapped[Label | None] = relationship(back_populates="thing", uselist=False)

    same_name: Mapped[str] = synonym("name")
    same_size: Mapped[int | None] = synonym("size")
    same_owner: Mapped[Owner] = synonym("owner")

    name_length = column_property(func.length(name, type_=Integer))
    twice = column_property(area * 2 + 1)
    is_small = column_property((area < 5) & name.like("a%"))
    is_known = column_property(area.in_([1, 2]))
    has_size = column_property(size.is_not(None))
    size_or_0 = column_property(func.coalesce(size, 0, type_=Integer))
    described = column_property(case((size > 5, "large"), else_="small"))
    greeting = column_property("Hello " + name)
    size_length = column_property(func.length(cast(size, String), type_=Integer))
    size_twice = column_property(size * 2)
    half_described = column_property(case((area > 5, "large")))
    nothing = column_property(case((area > 5, null()), else_=literal("x")))
    inside = column_property(details["a"].as_string())
    inside_cast = column_property(cast(details["a"], Integer))
    own_function = column_property(func.nullif(area, 1, type_=Integer))
    first_label = column_property(func.nullif(name, "x", type_=String))

    @hybrid_property
    def area_squared(self) -> int:
        return self.area * self.area

    @hybrid_property
    def size_squared(self) -> int | None:
        return None if self.size is None else self.size * self.size

    @size_squared.inplace.expression
    @classmethod
    def _size_squared(cls) -> Any:
        return cls.size * cls.size


class Label(Separate):
    __tablename__ = "labels_of_things"
    thing_id: Mapped[int] = mapped_column(ForeignKey("things.id"), primary_key=True)
    text: Mapped[str]
    thing: Mapped[Thing] = relationship(back_populates="reverse")
    id: Mapped[int] = synonym("thing_id")


far_owners = aliased(Owner, select(Owner).where(Owner.area > 1).subquery())

Thing.aliased_owner = relationship(
    far_owners,
    primaryjoin=lambda: foreign(Thing.owner_id) == remote(far_owners.id),
    viewonly=True,
    uselist=False,
)
Thing.label_count = column_property(select(func.count()).where(Label.thing_id == Thing.id).scalar_subquery())
Thing.label_total = column_property(
    select(func.coalesce(func.sum(func.length(Label.text, type_=Integer)), 0, type_=Integer))
    .where(Label.thing_id == Thing.id)
    .scalar_subquery()
)
Thing.has_label = column_property(select(Label.text).where(Label.thing_id == Thing.id).exists())
Thing.label_text = column_property(select(Label.text).where(Label.thing_id == Thing.id).scalar_subquery())
Thing.longest = column_property(select(func.max(Label.text)).where(Label.thing_id == Thing.id).scalar_subquery())
Thing.counted_by_text = column_property(
    select(func.count()).where(Label.thing_id == Thing.id).group_by(Label.text).scalar_subquery()
)
Thing.constant = column_property(
    select(func.coalesce(Label.text, "")).where(Label.thing_id == Thing.id).scalar_subquery()
)


class Joined(Separate):
    """A class of two tables, of which the second may have no row."""

    __table__ = outerjoin(Thing.__table__, Label.__table__, Thing.id == Label.thing_id)
    id = Thing.__table__.c.id
    thing_id = Label.__table__.c.thing_id
    __mapper_args__ = {"primary_key": [Thing.__table__.c.id], "exclude_properties": ["details"]}  # noqa: RUF012


class InnerJoined(Separate):
    __table__ = join(Thing.__table__, Label.__table__, Thing.id == Label.thing_id)
    id = Thing.__table__.c.id
    thing_id = Label.__table__.c.thing_id
    __mapper_args__ = {"primary_key": [Thing.__table__.c.id], "exclude_properties": ["details"]}  # noqa: RUF012


class Selected(Separate):
    __table__ = (
        select(Thing.id, Thing.name, Thing.size, Label.text, func.upper(Thing.name, type_=String).label("loud"))
        .outerjoin(Label)
        .subquery("selected")
    )
    __mapper_args__ = {"primary_key": [__table__.c.id]}  # noqa: RUF012


class Either(Separate):
    __table__ = union_all(
        select(Thing.id, Thing.name, Thing.name.label("other")), select(-Owner.id, Owner.kind, null())
    ).subquery("either")
    __mapper_args__ = {"primary_key": [__table__.c.id]}  # noqa: RUF012


class Bill(ConcreteBase, Separate):
    __tablename__ = "bills"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    total: Mapped[int]
    payer: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "bill", "concrete": True}  # noqa: RUF012


class Credit(Bill):
    __tablename__ = "credits"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    total: Mapped[int]
    payer: Mapped[str | None]  # type: ignore[assignment]
    __mapper_args__ = {"polymorphic_identity": "credit", "concrete": True}  # noqa: RUF012


ALWAYS_THERE = ["owner", "both", "guest", "same_owner"]
MAY_BE_ABSENT = [
    *("maybe", "in_area_1", "if_small", "of_area", "greater", "boss", "guest_by_owner", "loose", "reverse"),
    "aliased_owner",
]
NEVER_NULL: dict[Any, dict[str, Any]] = {
    Thing: {
        "name": str,
        "same_name": str,
        "name_length": int,
        "twice": int,
        "is_small": bool,
        "is_known": bool,
        "has_size": bool,
        "size_or_0": int,
        "described": str,
        "greeting": str,
        "area_squared": int,
        "label_count": int,
        "label_total": int,
        "has_label": bool,
    },
    Joined: {"id": int, "name": str},
    InnerJoined: {"id": int, "text": str},
    Selected: {"id": int, "name": str, "loud": str},
    Either: {"id": int, "name": str},
    Bill: {"id": int, "total": int},
    Guest: {"id": int, "kind": str, "room": int},
}
MAY_BE_NULL: dict[Any, dict[str, Any]] = {
    Thing: {
        "size": int,
        "same_size": int,
        "size_length": int,
        "size_twice": int,
        "size_squared": int,
        "half_described": str,
        "nothing": str,
        "inside": str,
        "inside_cast": int,
        "own_function": int,
        "first_label": str,
        "label_text": str,
        "longest": str,
        "counted_by_text": int,
        "constant": str,
    },
    Joined: {"size": int, "text": str, "thing_id": int},
    InnerJoined: {"size": int},
    Selected: {"size": int, "text": str},
    Either: {"other": str},
    Bill: {"payer": str},
}


def flatten(fields: dict[Any, dict[str, Any]]) -> list[tuple[Any, str, Any]]:
    return [(model, name, kind) for model, kinds in fields.items() for name, kind in kinds.items()]


@pytest.mark.parametrize(("model", "name", "kind"), flatten(MAY_BE_NULL))
def test_a_field_of_a_column_that_may_be_null_must_be_optional(model: Any, name: str, kind: Any) -> None:
    with pytest.raises(
        ViewCompileError, match=rf"Schema\.{name} can't be rendered: .* may be NULL: make the field Optional"
    ):
        JsonView(model, create_schema({name: kind}))
    JsonView(model, create_schema({name: kind | None}))


@pytest.mark.parametrize("name", MAY_BE_ABSENT)
def test_a_field_of_a_related_row_that_may_be_absent_must_be_optional(name: str) -> None:
    with pytest.raises(ViewCompileError, match=rf"Schema\.{name} can't be rendered: the related row may not exist"):
        JsonView(Thing, create_schema({name: Item}))
    JsonView(Thing, create_schema({name: Item | None}))


@pytest.fixture
async def rows(session: AsyncSession) -> None:
    """Insert rows. Each value that may be NULL or absent is so in at least one row."""
    await (await session.connection()).run_sync(Separate.metadata.create_all)
    session.add_all([Owner(id=1, area=1), Boss(id=2, area=2), Guest(id=3, area=3, room=1)])
    await session.flush()
    session.add_all(
        [
            Thing(id=n, owner_id=n, other_id=n, area=n, guest_id=3, loose_id=9, name=name, details={"a": n or None})
            for n, name in ((1, "abc"), (2, ""), (3, "b"))
        ]
    )
    await session.flush()
    session.add_all([Label(thing_id=1, text="one"), Bill(id=1, total=1, payer="a"), Credit(id=2, total=1)])
    await session.flush()


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("model", NEVER_NULL)
async def test_columns_that_are_never_null_have_the_values_of_the_object(
    session: AsyncSession, database: Database, model: Any
) -> None:
    required = create_schema(NEVER_NULL[model])
    optional = {name: kind | None for name, kind in MAY_BE_NULL.get(model, {}).items()}
    session.expunge_all()
    for schema in (required, create_schema(optional, required)):
        found = (await session.scalars(select(model))).all()
        expected = {inspect(row).identity[0]: schema.model_validate(row) for row in found}
        async with JsonView(model, schema).open(database) as view:
            bodies = await view.get_many(expected)
            lines = [line async for line in view.stream()] if model is not Bill else [body + b"\n" for body in bodies]
        assert [schema.model_validate_json(body) for body in bodies] == [*expected.values()]
        assert sorted(lines) == sorted(body + b"\n" for body in bodies)


@pytest.mark.usefixtures("rows")
async def test_related_rows_have_the_values_of_the_object(session: AsyncSession, database: Database) -> None:
    required = create_schema({"id": int, **dict.fromkeys(ALWAYS_THERE, Item)})
    optional = {name: Item | None for name in MAY_BE_ABSENT if name != "greater"}
    schema = create_schema(optional, required)
    session.expunge_all()
    names = [name for name in schema.model_fields if name in inspect(Thing).relationships]
    loads = [selectinload(getattr(Thing, name)) for name in names]
    found = (await session.scalars(select(Thing).options(*loads).order_by(Thing.id))).all()
    async with JsonView(Thing, schema).open(database) as view:
        bodies = await view.get_many([1, 2, 3])
    assert [schema.model_validate_json(body) for body in bodies] == [schema.model_validate(row) for row in found]
    assert [json.loads(body)["boss"] for body in bodies] == [None, {"id": 2}, None]


def test_the_bound_of_a_range_may_be_null() -> None:
    class Interval(Separate):
        __tablename__ = "intervals_of_views"

        id: Mapped[int] = mapped_column(primary_key=True)
        span: Mapped[Any] = mapped_column(INT4RANGE)
        low = column_property(func.lower(span, type_=Integer))

    with pytest.raises(ViewCompileError, match="may be NULL"):
        JsonView(Interval, create_model("Schema", __base__=Out, low=(int, ...)))
    JsonView(Interval, create_model("Schema", __base__=Out, low=(int | None, ...)))
