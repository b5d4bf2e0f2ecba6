"""`Base` and its mixins."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import (
    Integer,
    cast,
    func,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    configure_mappers,
    selectinload,
)
from sqlalchemy.orm.exc import StaleDataError

from howdah import (
    AwareDateTime,
    Base,
    Database,
    InvalidValue,
    StaleRow,
    bulk,
    utcnow,
)
from howdah.testing import assert_statements
from howdah_tests.support.mixin_models import Document, Letter, Model, Pair, Person, Pet, Reading
from howdah_tests.support.sample_models import Order, User


@pytest.fixture
async def own_tables(session: AsyncSession) -> AsyncSession:
    await (await session.connection()).run_sync(Model.metadata.create_all)
    return session


async def add(session: AsyncSession, *objects: Any) -> None:
    session.add_all(objects)
    await session.flush()
    session.expunge_all()


DIALECT: Any = postgresql.dialect  # an untyped class
NAIVE = datetime(2026, 1, 1, 12)  # noqa: DTZ001


class TestAwareDateTime:
    @pytest.mark.parametrize("value", [NAIVE, date(2026, 1, 1)], ids=["naive", "date"])
    async def test_rejects_values_without_a_time_zone_in_every_statement(
        self, value: Any, session: AsyncSession
    ) -> None:
        user = User(email="a", name="a")
        await add(session, user)
        statements = [
            select(User).where(User.created_at > value),
            select(User).where(User.created_at.in_([value])),
            select(User).where(User.created_at.between(utcnow(), value)),
            select(User).where(func.coalesce(User.created_at, value) == value),
            select(User.created_at - value),
            update(User).values(created_at=value),
            select(cast(value, AwareDateTime)),
        ]
        for statement in statements:
            with pytest.raises(InvalidValue) as caught:
                await session.execute(statement)
            assert "without a time zone" in str(caught.value.__cause__)
        with pytest.raises(InvalidValue):
            await bulk.insert_many(session, Order, [{"user_id": user.id, "placed_at": value}])
        with pytest.raises(InvalidValue):
            await bulk.update_many(session, User, [{"id": user.id, "created_at": value}])
        session.add(Order(user_id=user.id, placed_at=value))
        with pytest.raises(InvalidValue):
            await session.flush()

    @pytest.mark.parametrize("hours", [0, 5.5, -11])
    async def test_is_read_back_as_the_same_moment_in_utc(self, hours: float, session: AsyncSession) -> None:
        user = User(email="a", name="a")
        moment = datetime(2026, 3, 29, 2, 30, 0, 123456, timezone(timedelta(hours=hours)))
        user.created_at = moment
        await add(session, user)
        read = (await session.scalars(select(User.created_at))).one()
        assert read == moment
        assert read.tzinfo is UTC

    async def test_supports_arithmetic(self, session: AsyncSession) -> None:
        user = User(email="a", name="a", created_at=datetime(2026, 1, 1, tzinfo=UTC))
        await add(session, user)
        day = timedelta(days=1)
        now = datetime(2026, 1, 3, tzinfo=UTC)
        row: Any = (
            await session.execute(
                select(User.created_at + day, now - User.created_at, User.created_at - day).where(
                    User.created_at + day < now, User.created_at < now - day, User.created_at.is_not(None)
                )
            )
        ).one()
        assert tuple(row) == (datetime(2026, 1, 2, tzinfo=UTC), 2 * day, datetime(2025, 12, 31, tzinfo=UTC))

    async def test_may_be_null(self, session: AsyncSession) -> None:
        user = User(email="a", name="a")
        await add(session, user, order := Order(user=user, placed_at=None))
        assert await session.scalar(select(Order.placed_at).where(Order.id == order.id)) is None

    def test_is_the_type_of_a_datetime_annotation(self) -> None:
        for column in (User.__table__.c.created_at, Order.__table__.c.placed_at, Reading.__table__.c.at):
            assert isinstance(column.type, AwareDateTime)
            assert column.type.compile(DIALECT()) == "TIMESTAMP WITH TIME ZONE"


class TestRelationships:
    @pytest.mark.parametrize(
        ("model", "name", "lazy"),
        [
            (User, "orders", "raise"),
            (Order, "user", "raise"),
            (Pet, "owner", "raise"),
            (Person, "pets", "raise"),
            (Person, "boss", "raise"),
            (Person, "friends", "raise"),
            (Reading, "pairs", "raise"),
            (Person, "pets_too", "selectin"),
            (Pet, "vet", "joined"),
            (Pet, "vet_on_demand", True),
        ],
    )
    def test_raise_on_a_lazy_load_by_default(self, model: Any, name: str, lazy: Any) -> None:
        configure_mappers()
        assert getattr(inspect(model).relationships, name).lazy == lazy

    async def test_raise_where_the_lazy_load_is_in_the_code(self, own_tables: AsyncSession) -> None:
        ada = Person(name="Ada")
        await add(own_tables, ada, pet := Pet(owner=ada, vet=Person(name="Vera")))
        for person in await own_tables.scalars(select(Person)):
            for name in ("boss", "reports", "friends", "pets"):
                with pytest.raises(InvalidRequestError, match="lazy='raise'"):
                    getattr(person, name)
            assert len(person.pets_too) == (person.name == "Ada")  # type: ignore[attr-defined]
        own_tables.expunge_all()
        found = (await own_tables.scalars(select(Pet))).one()
        assert found.id == pet.id
        assert found.vet is not None
        with pytest.raises(InvalidRequestError, match="lazy='raise'"):
            _ = found.owner
        own_tables.expire(found.vet)
        assert (await found.awaitable_attrs.vet_on_demand).name == "Vera"

    async def test_are_loaded_by_the_options_of_a_statement(self, own_tables: AsyncSession) -> None:
        boss = Person(name="Boss")
        ada, bob = Person(name="Ada", boss=boss), Person(name="Bob", boss=boss)
        ada.friends = [bob]
        await add(own_tables, boss, ada, bob)
        load = selectinload(Person.reports).selectinload(Person.friends), selectinload(Person.boss)
        found = (await own_tables.scalars(select(Person).where(Person.id == boss.id).options(*load))).one()
        assert {person.name: [friend.name for friend in person.friends] for person in found.reports} == {
            "Ada": ["Bob"],
            "Bob": [],
        }
        assert found.boss is None

    async def test_can_be_appended_to_without_being_loaded(self, session: AsyncSession) -> None:
        user = User(email="a", name="a")
        await add(session, user)
        found = (await session.scalars(select(User))).one()
        session.add(Order(user=found))
        await session.flush()
        assert await session.scalar(select(func.count()).select_from(Order)) == 1


class TestTimestamps:
    async def test_are_the_times_of_the_insert_and_of_the_last_update(self, session: AsyncSession) -> None:
        before = utcnow()
        user = User(email="a", name="a")
        session.add(user)
        await session.flush()
        created, updated = user.created_at, user.updated_at
        assert before <= created <= utcnow()
        assert created - updated < timedelta(milliseconds=100)
        user.name = "b"
        await session.flush()
        assert user.created_at == created
        assert user.updated_at > updated
        updated = user.updated_at
        await session.execute(update(User).values(name="c"))
        assert (await session.scalars(select(User.updated_at))).one() > updated

    async def test_do_not_change_without_an_update(self, session: AsyncSession) -> None:
        user = User(email="a", name="a")
        session.add(user)
        await session.flush()
        updated = user.updated_at
        user.name = "a"
        with assert_statements(session, 0):
            await session.flush()
        assert user.updated_at == updated


class TestServerDefaults:
    async def test_are_loaded_by_the_flush_without_another_statement(self, own_tables: AsyncSession) -> None:
        document, letter = Document(), Letter(to="Ada")
        own_tables.add_all([document, letter])
        await own_tables.flush()
        with assert_statements(own_tables, 0):
            assert (document.made_by, letter.made_by) == ("postgres", "postgres")
            assert (document.length, document.version) == (0, 1)

    async def test_are_loaded_by_an_update_too(self, own_tables: AsyncSession) -> None:
        for statement in (
            """CREATE FUNCTION measure() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN NEW.length := length(NEW.made_by); RETURN NEW; END $$""",
            "CREATE TRIGGER measure BEFORE UPDATE ON documents FOR EACH ROW EXECUTE FUNCTION measure()",
        ):
            await own_tables.execute(text(statement))
        document, letter = Document(), Letter(to="Ada")
        own_tables.add_all([document, letter])
        await own_tables.flush()
        document.made_by = letter.made_by = "Grace"
        await own_tables.flush()
        with assert_statements(own_tables, 0):
            assert (document.length, letter.length) == (5, 5)


class TestVersioned:
    async def test_counts_the_updates_of_an_object(self, session: AsyncSession) -> None:
        order = Order(user=User(email="a", name="a"))
        session.add(order)
        await session.flush()
        assert order.version == 1
        order.total_cents = 5
        await session.flush()
        assert order.version == 2
        assert await session.scalar(select(Order.version)) == 2

    async def test_counts_if_the_class_has_mapper_options(self, own_tables: AsyncSession) -> None:
        letter = Letter(to="Ada")
        own_tables.add(letter)
        await own_tables.flush()
        letter.to = "Grace"
        await own_tables.flush()
        assert letter.version == 2
        own_tables.expunge_all()
        await own_tables.execute(text("UPDATE documents SET version = 3"))
        letter.to = "Edsger"
        own_tables.add(letter)
        with pytest.raises(StaleRow):
            await own_tables.flush()

    @pytest.mark.parametrize("attempt", ["update", "delete"])
    async def test_rejects_a_write_to_a_row_that_has_changed(self, attempt: str, committed_database: Database) -> None:
        async with committed_database.begin() as session:
            session.add(Order(user=User(email="a", name="a"), total_cents=10))
        async with committed_database.session() as mine, committed_database.session() as theirs:
            my_order = (await mine.scalars(select(Order))).one()
            their_order = (await theirs.scalars(select(Order))).one()
            their_order.total_cents += 1
            await theirs.commit()
            if attempt == "update":
                my_order.total_cents += 1
            else:
                await mine.delete(my_order)
            with pytest.raises(StaleRow) as caught:
                await mine.commit()
            assert isinstance(caught.value, StaleDataError)
            assert isinstance(caught.value.__cause__, StaleDataError)
            # again, with the current values
            my_order = (await mine.scalars(select(Order), execution_options={"populate_existing": True})).one()
            my_order.total_cents += 1
            await mine.commit()
        async with committed_database.session() as session:
            assert await session.scalar(select(Order.total_cents)) == 12

    async def test_control_without_a_version_an_update_is_lost(self, committed_database: Database) -> None:
        async with committed_database.begin() as session:
            session.add(User(email="a", name="a", age=10))
        async with committed_database.session() as mine, committed_database.session() as theirs:
            my_user = (await mine.scalars(select(User))).one()
            their_user = (await theirs.scalars(select(User))).one()
            their_user.age = 10 + 1
            await theirs.commit()
            my_user.age = 10 + 1
            await mine.commit()
        async with committed_database.session() as session:
            assert await session.scalar(select(User.age)) == 11


class TestBase:
    async def test_maps_dataclasses(self, own_tables: AsyncSession) -> None:
        reading = Reading(value=1.5)
        assert reading == Reading(value=1.5, at=reading.at)
        reading.pairs.append(Pair())
        await add(own_tables, reading)
        found = (await own_tables.scalars(select(Reading).options(selectinload(Reading.pairs)))).one()
        assert (found.value, found.at, len(found.pairs)) == (1.5, reading.at, 1)

    def test_accepts_a_second_metadata_with_the_same_rules(self) -> None:
        assert "people" not in Base.metadata.tables
        assert "people" in Model.metadata.tables
        assert isinstance(Person.__table__.c.created_at.type, AwareDateTime)

    def test_does_not_change_other_column_types(self) -> None:
        assert isinstance(User.__table__.c.age.type, Integer)
