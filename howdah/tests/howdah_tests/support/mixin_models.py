"""Mapped classes with the library's mixins."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    Column,
    FetchedValue,
    ForeignKey,
    MetaData,
    Table,
    text,
)
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import (
    Mapped,
    MappedAsDataclass,
    backref,
    mapped_column,
    relationship,
)

from howdah import (
    NAMING_CONVENTION,
    Base,
    Timestamps,
    UUIDv7PrimaryKey,
    Versioned,
    utcnow,
)


class Model(Base):
    """Has its own metadata: a test that needs these tables creates them."""

    __abstract__ = True
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


friendships = Table(
    "friendships",
    Model.metadata,
    Column("one", ForeignKey("people.id"), primary_key=True),
    Column("other", ForeignKey("people.id"), primary_key=True),
)


class Person(UUIDv7PrimaryKey, Timestamps, Model):
    __tablename__ = "people"

    name: Mapped[str]
    boss_id: Mapped[UUID | None] = mapped_column(ForeignKey("people.id"))

    boss: Mapped[Person | None] = relationship(remote_side="Person.id", back_populates="reports")
    reports: Mapped[list[Person]] = relationship(back_populates="boss")
    friends: Mapped[list[Person]] = relationship(
        secondary=friendships,
        primaryjoin=lambda: Person.id == friendships.c.one,
        secondaryjoin=lambda: Person.id == friendships.c.other,
    )


class Pet(UUIDv7PrimaryKey, AsyncAttrs, Model):
    """Has every way to declare how a relationship is loaded."""

    __tablename__ = "pets"

    owner_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    vet_id: Mapped[UUID | None] = mapped_column(ForeignKey("people.id"))

    owner: Mapped[Person] = relationship(foreign_keys=owner_id, backref="pets")
    owner_too: Mapped[Person] = relationship(
        foreign_keys=owner_id, viewonly=True, backref=backref("pets_too", lazy="selectin", viewonly=True)
    )
    vet: Mapped[Person | None] = relationship(foreign_keys=vet_id, lazy="joined")
    vet_on_demand: Mapped[Person | None] = relationship(foreign_keys=vet_id, lazy=True, viewonly=True)


class Document(Versioned, Model):
    """Has its own mapper options, and columns with server defaults."""

    __tablename__ = "documents"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    made_by: Mapped[str] = mapped_column(server_default=text("current_user"))
    length: Mapped[int] = mapped_column(server_default="0", server_onupdate=FetchedValue())

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}  # noqa: RUF012


class Letter(Document):
    __tablename__ = "letters"

    id: Mapped[int] = mapped_column(ForeignKey("documents.id"), primary_key=True)
    to: Mapped[str | None]

    __mapper_args__ = {"polymorphic_identity": "letter"}  # noqa: RUF012


class Reading(MappedAsDataclass, Model):
    __tablename__ = "readings"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    value: Mapped[float]
    at: Mapped[datetime] = mapped_column(default_factory=utcnow)
    pairs: Mapped[list[Pair]] = relationship(default_factory=list)


class Pair(MappedAsDataclass, Model):
    __tablename__ = "pairs"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    reading_id: Mapped[int] = mapped_column(ForeignKey("readings.id"), init=False)
