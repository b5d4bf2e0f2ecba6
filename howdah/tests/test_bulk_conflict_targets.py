"""Upserts by a partial index, an index on expressions, and the name of a constraint."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sqlalchemy import Enum, ForeignKey, Index, MetaData, UniqueConstraint, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah import AsyncRepository, Base, UpsertResult, Versioned, bulk
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import Status, User
from howdah_tests.support.sample_rows import user_rows

FORBIDDEN = "x';--"


class Separate(Base):
    __abstract__ = True
    metadata = MetaData(naming_convention=Base.metadata.naming_convention)


class Member(Versioned, Separate):
    __tablename__ = "members"

    id: Mapped[int] = mapped_column(primary_key=True)
    team: Mapped[int]
    email: Mapped[str]
    alias: Mapped[str | None]
    state: Mapped[Status] = mapped_column(Enum(Status, name="member_state"), default=Status.PENDING)
    value: Mapped[int] = mapped_column(default=0)
    parent: Mapped[int | None] = mapped_column(ForeignKey("members.id"))


BY_EMAIL = Index("uq_members_email", Member.team, func.lower(Member.email), unique=True)
BY_ALIAS = Index(
    "uq_members_alias",
    Member.alias.desc(),
    unique=True,
    postgresql_where=(Member.state == Status.PENDING) & (Member.email != FORBIDDEN),
)
BY_SUM = Index("uq_members_sum", Member.team + Member.value, unique=True)
BY_PARENT = UniqueConstraint(Member.parent, Member.value, name="uq_members_parent", postgresql_nulls_not_distinct=True)
DEFERRABLE = UniqueConstraint(Member.team, Member.email, Member.value, name="uq_members_deferrable", deferrable=True)
BY_TEXT = Index("uq_members_text", text("lower(email)"), unique=True)
NOT_UNIQUE = Index("ix_members_state", Member.state)
for each in (DEFERRABLE, BY_TEXT):
    Member.metadata.tables["members"].append_constraint(each)

PENDING, PAID = Status.PENDING, Status.PAID


@pytest.fixture
async def members(session: AsyncSession) -> AsyncRepository[Member]:
    """Without the unique indexes. A test creates the one that it needs."""
    table: Any = Member.__table__
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    for index in table.indexes:
        await session.execute(text(f"DROP INDEX {index.name}"))
    for constraint in ("uq_members_parent", "uq_members_deferrable"):
        await session.execute(text(f"ALTER TABLE members DROP CONSTRAINT {constraint}"))
    return AsyncRepository(session, Member)


async def create(members: AsyncRepository[Member], index: Index) -> None:
    await members.session.run_sync(lambda sync: index.create(sync.connection()))


async def rows(members: AsyncRepository[Member], *columns: Any) -> list[tuple[Any, ...]]:
    found = await members.session.execute(select(*columns).order_by(Member.id))
    return [tuple(row) for row in found]


@pytest.mark.parametrize("on", ["uq_members_email", BY_EMAIL], ids=["name", "index"])
async def test_an_index_on_an_expression_finds_the_rows(members: AsyncRepository[Member], on: Any) -> None:
    await create(members, BY_EMAIL)
    first = [{"team": 1, "email": f"User{n}@x", "value": n} for n in range(25)]
    assert await members.upsert_many(first, on=on) == UpsertResult(25, 0, 0)
    again = [{"team": 1, "email": f"uSER{n}@x", "value": n * (n % 2)} for n in range(30)]
    assert await members.upsert_many(again, on=on) == UpsertResult(5, 12, 13)
    found = await rows(members, Member.email, Member.value, Member.version)
    assert {("User2@x", 0, 2), ("User3@x", 3, 1)} <= {*found}
    assert len(found) == 30


async def test_equal_rows_of_the_input_are_written_one_after_the_other(members: AsyncRepository[Member]) -> None:
    """As in the control, which writes them one by one."""
    await create(members, BY_EMAIL)
    chosen = random.Random(5)
    several = [
        {"team": chosen.randrange(2), "email": chosen.choice(["a", "A", "b", "B", "c"]), "value": chosen.randrange(3)}
        for _ in range(40)
    ]
    result = await members.upsert_many(several, on=BY_EMAIL)
    together = await rows(members, Member.team, Member.email, Member.value, Member.version)
    await members.delete_where(Member.id > 0)
    total = [0, 0, 0]
    for row in several:
        one = await members.upsert_many([row], on=BY_EMAIL)
        total = [total[0] + one.created, total[1] + one.updated, total[2] + one.unchanged]
    assert [result.created, result.updated, result.unchanged] == total
    assert sorted(together) == sorted(await rows(members, Member.team, Member.email, Member.value, Member.version))


async def test_a_partial_index_finds_only_rows_that_meet_its_predicate(members: AsyncRepository[Member]) -> None:
    """The predicate has an enum and a text, which must be sent as literals."""
    await create(members, BY_ALIAS)
    await members.create_many([{"team": 0, "email": "a", "alias": "x", "state": PAID}])
    row = {"team": 1, "email": "a", "alias": "x"}
    assert await members.upsert_many([row], on=BY_ALIAS) == UpsertResult(1, 0, 0)
    assert await members.upsert_many([{**row, "team": 2}], on="uq_members_alias") == UpsertResult(0, 1, 0)
    # Rows outside the predicate never conflict. NULLs are distinct.
    others = [{**row, "state": PAID}, {**row, "state": PAID}, {**row, "state": PENDING, "email": FORBIDDEN}]
    assert await members.upsert_many(others, on=BY_ALIAS) == UpsertResult(3, 0, 0)
    assert await members.upsert_many([{**row, "alias": None}] * 2, on=BY_ALIAS) == UpsertResult(2, 0, 0)
    assert await members.upsert_many([{**row, "team": 2}] * 3, on=BY_ALIAS, update=[]) == UpsertResult(0, 0, 3)
    assert [row[0] for row in await rows(members, Member.team)] == [0, 2, 1, 1, 1, 1, 1]


async def test_an_operator_expression_and_nulls_that_are_not_distinct(members: AsyncRepository[Member]) -> None:
    await create(members, BY_SUM)
    assert await members.upsert_many([{"team": 1, "value": 2, "email": "a"}], on=BY_SUM) == UpsertResult(1, 0, 0)
    changes = [{"team": 2, "value": 1, "email": "b"}, {"team": 3, "value": 0, "email": "c"}]
    assert await members.upsert_many(changes, on=BY_SUM) == UpsertResult(0, 2, 0)
    assert await rows(members, Member.team, Member.email) == [(1, "c")]
    # An attribute of an expression can be updated, since its value may differ although the expression is equal.
    assert await members.upsert_many(changes[:1], on=BY_SUM, update=["team", "value"]) == UpsertResult(0, 1, 0)
    assert await rows(members, Member.team, Member.value) == [(2, 1)]

    create_constraint = "ALTER TABLE members ADD CONSTRAINT uq_members_parent UNIQUE NULLS NOT DISTINCT (parent, value)"
    await members.session.execute(text(create_constraint))
    row = {"team": 5, "email": "d", "parent": None, "value": 9}
    for on in ("uq_members_parent", BY_PARENT):
        await members.delete_where(Member.value == 9)
        assert await members.upsert_many([row, {**row, "team": 6}], on=on) == UpsertResult(1, 1, 0)
        assert not (await members.upsert({**row, "team": 6}, on=on))[1]
        assert not (await members.upsert({**row, "team": 6}, on=on, update=[]))[1]


async def test_a_constraint_can_be_named(session: AsyncSession) -> None:
    rows, table = user_rows(3), User.metadata.tables["users"]
    (constraint,) = (each for each in table.constraints if isinstance(each, UniqueConstraint))
    targets: tuple[str | UniqueConstraint, ...] = ("uq_users_email", constraint)
    for on in targets:
        await bulk.upsert_many(session, User, rows, on=on)
    assert await bulk.upsert_many(session, User, [{**rows[0], "age": 9}], on="uq_users_email") == UpsertResult(0, 1, 0)
    key = await session.scalar(select(User.id).where(User.age == 9))
    result = await bulk.upsert_many(session, User, [{**rows[0], "id": key, "age": 10}], on="pk_users")
    assert result == UpsertResult(0, 1, 0)


async def test_one_row_can_be_upserted_by_every_kind_of_index(members: AsyncRepository[Member]) -> None:
    for index, changed in ((BY_EMAIL, {"email": "A"}), (BY_ALIAS, {"team": 2}), (BY_SUM, {"team": 3, "value": -2})):
        await create(members, index)
        row = {"team": 1, "email": "a", "alias": "x", "value": 0}
        member, is_new = await members.upsert(row, on=index)
        assert is_new
        with assert_statements(members.session, 1):
            same, is_new = await members.upsert({**row, **changed, "parent": member.id}, on=index)
        assert (same is member, is_new, member.parent) == (True, False, member.id)
        updates: tuple[list[str] | None, ...] = (None, [])
        for update in updates:
            with assert_statements(members.session, 2):
                same, is_new = await members.upsert({**row, **changed, "parent": member.id}, on=index, update=update)
            assert (same is member, is_new) == (True, False)
        await members.delete_where(Member.id > 0)
        await members.session.execute(text(f"DROP INDEX {index.name}"))


async def test_triggers_that_change_or_suppress_rows_are_counted(members: AsyncRepository[Member]) -> None:
    await create(members, BY_EMAIL)
    for statement in (
        "CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF new.email = ''skip'' THEN RETURN NULL; END IF; new.email = left(new.email, 1); RETURN new; END'",
        "CREATE TRIGGER change BEFORE INSERT ON members FOR EACH ROW EXECUTE FUNCTION change()",
    ):
        await members.session.execute(text(statement))
    several = [{"team": 1, "email": email, "value": n} for n, email in enumerate(["ab", "AC", "skip", "b"])]
    assert await members.upsert_many(several, on=BY_EMAIL) == UpsertResult(2, 1, 0, 1)
    assert await rows(members, Member.email, Member.value) == [("a", 1), ("b", 3)]


async def test_an_unknown_or_unsuitable_constraint_is_rejected(members: AsyncRepository[Member]) -> None:
    row = {"team": 1, "email": "a"}
    with assert_statements(members.session, 0):
        with pytest.raises(
            ValueError, match=r"no unique constraint or index named 'email'; it has pk_members, .* list"
        ):
            await members.upsert_many([row], on="email")
        with pytest.raises(ValueError, match="must be a unique constraint or a unique index of members"):
            await members.upsert_many([row], on=NOT_UNIQUE)
        with pytest.raises(ValueError, match="uq_members_text contains SQL text"):
            await members.upsert_many([row], on=BY_TEXT)
        with pytest.raises(ValueError, match="of users"):
            await bulk.upsert_many(members.session, User, [row], on=BY_EMAIL)
        with pytest.raises(ValueError, match="uq_members_deferrable is deferrable"):
            await members.upsert_many([row], on=DEFERRABLE)
        with pytest.raises(ValueError, match="must name email"):
            await members.upsert_many([{"team": 1}], on=BY_EMAIL)
    with pytest.raises(Exception, match="no unique or exclusion constraint") as caught:  # the index doesn't exist
        await members.upsert_many([row], on=BY_EMAIL)
    assert "`on` must name a unique constraint or index of members" in "".join(caught.value.__notes__)
