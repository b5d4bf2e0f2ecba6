"""Mapped classes with inheritance, and relationships to them."""

from __future__ import annotations

from sqlalchemy import ForeignKey, case
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import Mapped, foreign, mapped_column, relationship, remote

from howdah_tests.support.relationship_models import Node, Parent


class Animal(Node):
    """Joined-table inheritance. A query always reads all tables."""

    __tablename__ = "animals"
    kind: Mapped[str]
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("parents.id"))
    owner: Mapped[Parent | None] = relationship()
    prey: Mapped[list[Dog]] = relationship(foreign_keys="Dog.hunter_id")
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "animal",
        "with_polymorphic": "*",
    }


class Dog(Animal):
    __tablename__ = "dogs"
    id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
    hunter_id: Mapped[int | None] = mapped_column(ForeignKey("animals.id"))
    hunter: Mapped[Animal | None] = relationship(foreign_keys=hunter_id, viewonly=True)
    pack: Mapped[list[Dog]] = relationship(
        primaryjoin=lambda: foreign(remote(Dog.hunter_id)) == Dog.hunter_id, viewonly=True
    )
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_identity": "dog",
        "inherit_condition": id == Animal.id,
    }


class Puppy(Dog):
    __mapper_args__ = {"polymorphic_identity": "puppy"}  # noqa: RUF012


class Vehicle(Node):
    """Single-table inheritance with an expression as the discriminator."""

    __tablename__ = "machines"
    wheels: Mapped[int] = mapped_column()
    garage_id: Mapped[int | None] = mapped_column(ForeignKey("parents.id"))
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": case((wheels == 4, "car"), (wheels == 2, "bicycle"), else_="vehicle"),
        "polymorphic_identity": "vehicle",
    }


class Car(Vehicle):
    __mapper_args__ = {"polymorphic_identity": "car"}  # noqa: RUF012


class Bicycle(Vehicle):
    __mapper_args__ = {"polymorphic_identity": "bicycle"}  # noqa: RUF012


class Boat(Node):
    """Single-table inheritance with a column as the discriminator."""

    __tablename__ = "boats"
    kind: Mapped[str]
    harbour_id: Mapped[int] = mapped_column(ForeignKey("parents.id"))
    towed_by_id: Mapped[int | None] = mapped_column(ForeignKey("boats.id"))
    towed_by: Mapped[Tug | None] = relationship(remote_side="Boat.id")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "boat"}  # noqa: RUF012


class Tug(Boat):
    __mapper_args__ = {"polymorphic_identity": "tug"}  # noqa: RUF012


class Invoice(ConcreteBase, Node):
    __tablename__ = "invoices"
    payer_id: Mapped[int | None] = mapped_column(ForeignKey("parents.id"))
    __mapper_args__ = {"polymorphic_identity": "invoice", "concrete": True}  # noqa: RUF012


class Reminder(Invoice):
    __tablename__ = "reminders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    payer_id: Mapped[int | None] = mapped_column(ForeignKey("parents.id"))
    fee: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "reminder", "concrete": True}  # noqa: RUF012


Parent.animals = relationship(Animal, back_populates="owner", viewonly=True)
Parent.dogs = relationship(Dog, viewonly=True)
Parent.puppies = relationship(Puppy, viewonly=True)
Parent.vehicles = relationship(Vehicle, viewonly=True)
Parent.cars = relationship(Car, viewonly=True)
Parent.a_car = relationship(Car, viewonly=True, uselist=False, order_by=Car.id)
Parent.boats = relationship(Boat, viewonly=True)
Parent.tugs = relationship(Tug, viewonly=True)
Parent.a_tug = relationship(Tug, viewonly=True, uselist=False, order_by=Tug.id)
Boat.tows = relationship(Boat, viewonly=True, remote_side=Boat.towed_by_id)
Parent.invoices = relationship(Invoice, primaryjoin=lambda: Parent.id == foreign(Invoice.payer_id), viewonly=True)
Parent.reminders = relationship(Reminder, primaryjoin=lambda: Parent.id == foreign(Reminder.payer_id), viewonly=True)
Animal.hunts_as = relationship(Puppy, primaryjoin=lambda: Animal.id == foreign(remote(Puppy.hunter_id)), viewonly=True)
