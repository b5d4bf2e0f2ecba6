"""The names of constraints and indexes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    UniqueConstraint,
    inspect,
)
from sqlalchemy.dialects.postgresql import INT4RANGE, ExcludeConstraint
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah import NAMING_CONVENTION, Base


class TestNamingConvention:
    async def test_names_every_kind_of_constraint(self, session: AsyncSession) -> None:
        class Other(Base):
            __abstract__ = True
            metadata = MetaData(naming_convention=NAMING_CONVENTION)

        class Place(Other):
            __tablename__ = "places"
            x: Mapped[int] = mapped_column(primary_key=True)
            y: Mapped[int] = mapped_column(primary_key=True)

        class Thing(Other):
            __tablename__ = "things"
            __table_args__ = (
                PrimaryKeyConstraint("id"),
                UniqueConstraint("x", "y"),
                ForeignKeyConstraint(["x", "y"], ["places.x", "places.y"]),
                CheckConstraint("x <> y", name="x_is_not_y"),
                ExcludeConstraint(("during", "&&"), ("range", "&&")),
                Index(None, "y", "x"),
            )
            id: Mapped[int]
            x: Mapped[int] = mapped_column(index=True)
            y: Mapped[int] = mapped_column(unique=True)
            code: Mapped[str] = mapped_column("kode", index=True, unique=True)
            place_x: Mapped[int] = mapped_column(ForeignKey("things.id"))
            during: Mapped[Any] = mapped_column(INT4RANGE)
            range: Mapped[Any] = mapped_column(INT4RANGE)

        def make_and_list(connection: Any) -> set[str]:
            Other.metadata.create_all(connection)
            seen = inspect(connection)
            return {
                seen.get_pk_constraint("places")["name"],
                seen.get_pk_constraint("things")["name"],
                *(each["name"] for each in seen.get_foreign_keys("things")),
                *(each["name"] for each in seen.get_unique_constraints("things")),
                *(each["name"] for each in seen.get_check_constraints("things")),
                *(each["name"] for each in seen.get_indexes("things")),
            }

        named = await (await session.connection()).run_sync(make_and_list)
        assert named == {
            "pk_places",
            "pk_things",
            "fk_things_x_y",
            "fk_things_place_x",
            "uq_things_x_y",
            "uq_things_y",
            "ck_things_x_is_not_y",
            "ex_things_during_range",
            "ix_things_y_x",
            "ix_things_x",
            "ix_things_kode",
        }
