"""Mapped classes with every kind of relationship in SQLAlchemy's documentation."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    Table,
    UniqueConstraint,
    and_,
    cast,
    exists,
    func,
    join,
    select,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    WriteOnlyMapped,
    aliased,
    attribute_keyed_dict,
    column_property,
    declared_attr,
    foreign,
    mapped_column,
    relationship,
    remote,
    synonym,
)


class Separate(DeclarativeBase):
    """A base with its own metadata and registry, so that names of other tests' tables and classes don't conflict."""


class Node(Separate):
    """The base of most classes here. `me` is a relationship to the row itself, which needs an alias."""

    __abstract__ = True
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    @declared_attr
    def me(cls) -> Mapped[Any]:  # noqa: N805
        return relationship(
            cls.__name__,
            primaryjoin=lambda: foreign(cls.id) == remote(cls.id),  # type: ignore[arg-type,type-var,return-value]
            viewonly=True,
            uselist=False,
        )


def link(name: str, left: str, right: str, *, unique: bool = False, schema: str | None = None) -> Table:
    columns = [Column("left_id", ForeignKey(left)), Column("right_id", ForeignKey(right)), Column("place", Integer)]
    keys = [UniqueConstraint("left_id", "right_id")] if unique else []
    return Table(name, Separate.metadata, *columns, *keys, schema=schema)


bag = link("bag", "parents.id", "children.id")
pairs = link("pairs", "parents.id", "children.id", unique=True)
elsewhere = link("elsewhere", "parents.id", "children.id", schema="other_schema")
friends = link("friends", "children.id", "children.id", unique=True)


class Parent(Node):
    __tablename__ = "parents"
    favourite_id: Mapped[int | None] = mapped_column(ForeignKey("children.id"))
    billing_id: Mapped[int | None] = mapped_column(ForeignKey("children.id"))
    letters: Mapped[str]

    children: Mapped[list[Child]] = relationship(foreign_keys="Child.parent_id", back_populates="parent")
    ordered: Mapped[list[Child]] = relationship(
        foreign_keys="Child.parent_id", order_by="(Child.name.desc(), Child.id)", viewonly=True
    )
    favourite: Mapped[Child | None] = relationship(foreign_keys=favourite_id)
    billing: Mapped[Child | None] = relationship(foreign_keys=billing_id)
    only_child: Mapped[Child | None] = relationship(
        foreign_keys="Child.parent_id", viewonly=True, uselist=False, order_by="Child.id.desc()"
    )
    named_a: Mapped[list[Child]] = relationship(
        primaryjoin="and_(Parent.id == Child.parent_id, Child.name == 'a')", viewonly=True
    )
    by_cast: Mapped[list[Child]] = relationship(
        primaryjoin=lambda: Parent.id == cast(foreign(Child.number_text), Integer), viewonly=True
    )
    by_function: Mapped[list[Child]] = relationship(
        primaryjoin=lambda: func.upper(foreign(Child.name)) == func.upper(Parent.letters), viewonly=True
    )
    by_operator: Mapped[list[Child]] = relationship(
        primaryjoin=lambda: Parent.letters.op("^@", is_comparison=True)(foreign(Child.name)), viewonly=True
    )
    by_comparison: Mapped[list[Child]] = relationship(
        primaryjoin=lambda: func.starts_with(Parent.letters, foreign(Child.name)).as_comparison(1, 2), viewonly=True
    )
    by_range: Mapped[list[Child]] = relationship(
        primaryjoin=lambda: and_(Parent.id < foreign(Child.id), foreign(Child.id) < Parent.id + 4), viewonly=True
    )
    in_bag: Mapped[list[Child]] = relationship(secondary=bag)
    in_bag_ordered: Mapped[list[Child]] = relationship(
        secondary=bag, order_by=lambda: (bag.c.place, Child.id), viewonly=True
    )
    in_pairs: Mapped[list[Child]] = relationship(secondary=pairs)
    in_pairs_ordered: Mapped[list[Child]] = relationship(
        secondary=pairs, order_by=lambda: (pairs.c.place, Child.id), viewonly=True
    )
    in_pairs_called: Mapped[list[Child]] = relationship(secondary=lambda: pairs, viewonly=True)
    in_pairs_named: Mapped[list[Child]] = relationship(secondary="pairs", viewonly=True)
    in_pairs_named_a: Mapped[list[Child]] = relationship(
        secondary=pairs, secondaryjoin="and_(Child.id == pairs.c.right_id, Child.name == 'a')", viewonly=True
    )
    first_place: Mapped[Child | None] = relationship(
        secondary=pairs,
        primaryjoin=lambda: and_(Parent.id == pairs.c.left_id, pairs.c.place > 1),
        order_by=lambda: (pairs.c.place, Child.id),
        viewonly=True,
        uselist=False,
    )
    in_other_schema: Mapped[list[Child]] = relationship(secondary=elsewhere)
    associations: Mapped[list[Association]] = relationship(back_populates="parent")
    through_association: Mapped[list[Child]] = relationship(secondary="associations", viewonly=True)
    grandchildren: Mapped[list[Toy]] = relationship(
        secondary=lambda: Child.__table__,
        primaryjoin=lambda: Parent.id == Child.parent_id,
        secondaryjoin=lambda: Child.id == Toy.child_id,
        viewonly=True,
    )
    toys_of_pairs: Mapped[list[Toy]] = relationship(
        secondary=lambda: join(pairs, Child.__table__, pairs.c.right_id == Child.id),
        primaryjoin=lambda: Parent.id == pairs.c.left_id,
        secondaryjoin=lambda: Child.id == Toy.child_id,
        order_by=lambda: (Toy.id.desc(),),
        viewonly=True,
    )
    toys_by_place: Mapped[list[Toy]] = relationship(
        secondary=lambda: join(pairs, Child.__table__, pairs.c.right_id == Child.id),
        primaryjoin=lambda: Parent.id == pairs.c.left_id,
        secondaryjoin=lambda: Child.id == Toy.child_id,
        order_by=lambda: (pairs.c.place, Child.id, Toy.id),
        viewonly=True,
    )
    siblings_of_favourite: Mapped[list[Child]] = relationship(
        secondary=lambda: _favourites,
        primaryjoin=lambda: Parent.favourite_id == _favourites.c.id,
        secondaryjoin=lambda: _favourites.c.parent_id == foreign(Child.parent_id),
        viewonly=True,
    )
    toys_outer: Mapped[list[Toy]] = relationship(
        secondary=lambda: join(pairs, Child.__table__, pairs.c.right_id == Child.id, isouter=True),
        primaryjoin=lambda: Parent.id == pairs.c.left_id,
        secondaryjoin=lambda: Child.id == Toy.child_id,
        viewonly=True,
    )
    third_table: Mapped[list[Child]] = relationship(
        primaryjoin=lambda: and_(Parent.id == foreign(Child.parent_id), Toy.child_id == Child.id), viewonly=True
    )
    by_subquery: Mapped[list[Child]] = relationship(
        primaryjoin=lambda: and_(
            Parent.id == foreign(Child.parent_id), Child.id == select(func.max(Toy.child_id)).scalar_subquery()
        ),
        viewonly=True,
    )
    as_set: Mapped[set[Child]] = relationship(foreign_keys="Child.parent_id", viewonly=True)
    as_dict: Mapped[dict[str, Child]] = relationship(
        foreign_keys="Child.parent_id", viewonly=True, collection_class=attribute_keyed_dict("name")
    )
    as_dynamic: DynamicMapped[Child] = relationship(foreign_keys="Child.parent_id", viewonly=True)
    as_write_only: WriteOnlyMapped[Child] = relationship(foreign_keys="Child.parent_id", viewonly=True)
    offspring: Mapped[list[Child]] = synonym("children")


class Child(Node):
    __tablename__ = "children"
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("parents.id", use_alter=True))
    home_id: Mapped[int] = mapped_column(ForeignKey("parents.id", use_alter=True))
    deputy_id: Mapped[int | None] = mapped_column(ForeignKey("children.id"))
    name: Mapped[str] = mapped_column(String(5))
    number_text: Mapped[str]

    parent: Mapped[Parent | None] = relationship(foreign_keys=parent_id, back_populates="children")
    home: Mapped[Parent] = relationship(foreign_keys=home_id)
    toys: Mapped[list[Toy]] = relationship(back_populates="child")
    deputy: Mapped[Child | None] = relationship(remote_side="Child.id", back_populates="deputised")
    deputised: Mapped[list[Child]] = relationship(back_populates="deputy")
    friends: Mapped[list[Child]] = relationship(
        secondary=friends,
        primaryjoin=lambda: Child.id == friends.c.left_id,
        secondaryjoin=lambda: Child.id == friends.c.right_id,
    )
    longer_names: Mapped[list[Child]] = relationship(
        primaryjoin=lambda: remote(foreign(Child.name)).like(Child.name.concat("_")), viewonly=True
    )


_favourites: Any = select(Child.__table__).subquery("favourites")


class Toy(Node):
    __tablename__ = "toys"
    child_id: Mapped[int] = mapped_column(ForeignKey("children.id"))
    child: Mapped[Child] = relationship(back_populates="toys")


class Association(Separate):
    __tablename__ = "associations"
    parent_id: Mapped[int] = mapped_column(ForeignKey("parents.id"), primary_key=True)
    child_id: Mapped[int] = mapped_column(ForeignKey("children.id"), primary_key=True)
    parent: Mapped[Parent] = relationship(back_populates="associations")
    child: Mapped[Child] = relationship()
    id: Mapped[int] = synonym("child_id")


class Folder(Separate):
    """A composite adjacency list, whose foreign keys share a column."""

    __tablename__ = "folders"
    __table_args__ = (
        ForeignKeyConstraint(["account_id", "parent_id"], ["folders.account_id", "folders.folder_id"]),
        ForeignKeyConstraint(["account_id", "twin_id"], ["folders.account_id", "folders.folder_id"]),
    )
    account_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    folder_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent_id: Mapped[int | None] = mapped_column()
    twin_id: Mapped[int | None] = mapped_column()
    id: Mapped[int] = synonym("folder_id")

    parent: Mapped[Folder | None] = relationship(
        foreign_keys=[account_id, parent_id], remote_side=[account_id, folder_id], back_populates="children"
    )
    children: Mapped[list[Folder]] = relationship(foreign_keys=[account_id, parent_id], back_populates="parent")
    twin: Mapped[Folder | None] = relationship(
        foreign_keys=[account_id, twin_id],
        remote_side=[account_id, folder_id],
        primaryjoin=lambda: and_(
            remote(Folder.account_id) == Folder.account_id, remote(Folder.folder_id) == foreign(Folder.twin_id)
        ),
        viewonly=True,
    )


Child.name_length = column_property(func.length(Child.name, type_=Integer))
Parent.toys_with_greater_number = column_property(
    select(func.count(Child.id))
    .where(Child.parent_id == Parent.id, exists(select(Toy.id).where(Toy.child_id == Child.id, Toy.id > Parent.id)))
    .scalar_subquery()
)
Parent.toys_with_greater_number_than_this = column_property(
    select(func.count(Child.id))
    .where(
        Child.parent_id == Parent.id,
        exists(select(Toy.id).where(Toy.child_id == Child.id, Toy.id > Parent.id).correlate(Child, Parent)),
    )
    .scalar_subquery()
)
Parent.parents = column_property(select(func.max(Parent.id)).scalar_subquery())
parent_of_toy = aliased(Parent)
Parent.greatest = column_property(select(func.max(parent_of_toy.id)).scalar_subquery())
Parent.greatest_of_same = column_property(
    select(func.max(parent_of_toy.id)).where(parent_of_toy.letters == Parent.letters).scalar_subquery()
)

# Relationships to aliased classes.
without_b = aliased(Child, select(Child).where(Child.name != "b").subquery())
numbered = select(
    Child, func.row_number().over(partition_by=Child.parent_id, order_by=Child.id.desc()).label("place")
).subquery()
last_children = aliased(Child, numbered)
with_toy = aliased(Child, select(Child).join(Toy, Toy.child_id == Child.id).subquery())
few_columns = aliased(Child, select(Child.id, Child.parent_id).subquery())
plain_alias = aliased(Child)

Parent.without_b = relationship(without_b, primaryjoin=lambda: Parent.id == foreign(without_b.parent_id), viewonly=True)
Parent.last_two = relationship(
    last_children,
    primaryjoin=lambda: and_(Parent.id == foreign(last_children.parent_id), numbered.c.place < 3),
    viewonly=True,
)
Parent.last_two_ordered = relationship(
    last_children,
    primaryjoin=lambda: and_(Parent.id == foreign(last_children.parent_id), numbered.c.place < 3),
    order_by=lambda: (last_children.name, last_children.id),
    viewonly=True,
)
Parent.last_one = relationship(
    last_children,
    primaryjoin=lambda: and_(Parent.id == foreign(last_children.parent_id), numbered.c.place == 1),
    viewonly=True,
    uselist=False,
)
Parent.with_toy = relationship(with_toy, primaryjoin=lambda: Parent.id == foreign(with_toy.parent_id), viewonly=True)
Parent.few_columns = relationship(
    few_columns, primaryjoin=lambda: Parent.id == foreign(few_columns.parent_id), viewonly=True
)
Parent.by_missing_column = relationship(
    few_columns, primaryjoin=lambda: and_(Parent.id == foreign(few_columns.parent_id), Child.name == "a"), viewonly=True
)
Parent.plain_alias = relationship(
    plain_alias, primaryjoin=lambda: Parent.id == foreign(plain_alias.parent_id), viewonly=True
)
Parent.without_b_of_pairs = relationship(
    without_b,
    secondary=pairs,
    primaryjoin=lambda: Parent.id == pairs.c.left_id,
    secondaryjoin=lambda: without_b.id == pairs.c.right_id,
    order_by=lambda: (without_b.id.desc(),),
    viewonly=True,
)
Child.deputy_without_b = relationship(
    without_b, primaryjoin=lambda: foreign(Child.deputy_id) == without_b.id, viewonly=True, uselist=False
)
