"""A changed collection changes the version of a `Versioned` object."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, ForeignKey, MetaData, Table, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, relationship

from howdah import AsyncRepository, Base, StaleRow, Versioned


class Separate(Base):
    """The base of tables that the test database doesn't have."""

    __abstract__ = True
    metadata = MetaData()


recipe_spices = Table(
    "recipe_spices",
    Separate.metadata,
    Column("recipe_id", ForeignKey("recipes.id"), primary_key=True),
    Column("spice_id", ForeignKey("spices.id"), primary_key=True),
)


class Spice(Separate):
    __tablename__ = "spices"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Recipe(Versioned, Separate):
    __tablename__ = "recipes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    spices: Mapped[list[Spice]] = relationship(secondary=recipe_spices)
    steps: Mapped[list[Step]] = relationship(cascade="all, delete-orphan")


class Step(Separate):
    __tablename__ = "recipe_steps"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    recipe_id: Mapped[int] = mapped_column(ForeignKey("recipes.id"))


@pytest.fixture
async def recipe(session: AsyncSession) -> Recipe:
    await (await session.connection()).run_sync(Separate.metadata.create_all)
    session.add_all([Spice(id=1), Spice(id=2)])
    recipe = Recipe(id=1, name="Soup", spices=[], steps=[])
    session.add(recipe)
    await session.flush()
    return recipe


async def test_a_changed_collection_increments_the_version(session: AsyncSession, recipe: Recipe) -> None:
    recipes = AsyncRepository(session, Recipe)
    spices = await AsyncRepository(session, Spice).list()
    await recipes.update(recipe, spices=spices)
    assert recipe.version == 2
    await recipes.update(recipe, steps=[Step(id=1)])
    assert recipe.version == 3
    await recipes.update(recipe, spices=list(spices), name="Soup")  # nothing changes
    assert recipe.version == 3
    await recipes.update(recipe, spices=[], name="Stew")
    assert recipe.version == 4
    assert await session.scalar(text("SELECT version FROM recipes")) == 4


async def test_the_second_of_two_writers_of_a_collection_is_rejected(session: AsyncSession, recipe: Recipe) -> None:
    spices = await AsyncRepository(session, Spice).list()
    await session.execute(
        update(Recipe.__table__).values(version=2)  # type: ignore[arg-type]  # another writer
    )
    with pytest.raises(StaleRow):
        await AsyncRepository(session, Recipe).update(recipe, spices=spices)


async def test_control_without_the_repository_the_version_stays(session: AsyncSession, recipe: Recipe) -> None:
    recipe.spices = list(await AsyncRepository(session, Spice).list())
    await session.flush()
    assert recipe.version == 1


async def test_lock_one_loads_relationships(session: AsyncSession, recipe: Recipe) -> None:
    session.expunge_all()
    recipes = AsyncRepository(session, Recipe)
    locked = await recipes.lock_one(1, load=[Recipe.spices])
    await recipes.update(locked, spices=await AsyncRepository(session, Spice).list())
    assert locked.version == 2
