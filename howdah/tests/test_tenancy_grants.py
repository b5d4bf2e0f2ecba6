"""Rights that are declared next to the model, and roles for a part of a transaction."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from sqlalchemy import MetaData, Table, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from howdah import Database, InvalidStatement, TransactionConflict
from howdah.alembic.catalog import CatalogEntry, compare_catalogs, read_catalog
from howdah.alembic.differences import SchemaObject, changes_after
from howdah.tenancy import TableGrant, grant_statements, grants_of, role_in

READER, WRITER = (f"howdah_test_{uuid4().hex}" for _ in range(2))
"""Roles that are only created in transactions that are rolled back. Other processes have other names."""


class Base(DeclarativeBase):
    metadata = MetaData()


class GrantedNote(Base):
    __tablename__ = "granted_notes"
    __table_args__ = (
        TableGrant(READER, "SELECT"),
        TableGrant(WRITER, "SELECT", "INSERT"),
        TableGrant(WRITER, "UPDATE", columns=["title", "state"]),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str]
    state: Mapped[str] = mapped_column(default="new")


@pytest.fixture
async def notes(session: AsyncSession) -> AsyncSession:
    """A session in which the roles and the table exist."""
    for role in (READER, WRITER):
        await session.execute(text(f"CREATE ROLE {role}"))
    await (await session.connection()).run_sync(Base.metadata.create_all)
    session.add(GrantedNote(id=1, title="a"))
    await session.flush()
    return session


async def role_of(session: AsyncSession) -> str:
    return str(await session.scalar(text("SELECT current_user")))


RIGHTS = f"rights of {WRITER} on granted_notes"


async def test_the_declared_rights_are_granted_and_are_in_the_catalog(notes: AsyncSession) -> None:
    catalog = await read_catalog(notes, ["granted_notes"])
    assert catalog[RIGHTS] == CatalogEntry("INSERT, SELECT, UPDATE (state, title)")
    assert catalog[f"rights of {READER} on granted_notes"] == CatalogEntry("SELECT")
    with pytest.raises(InvalidStatement, match="permission denied"):
        async with notes.begin_nested(), role_in(notes, READER):
            await notes.execute(text("UPDATE granted_notes SET title = 'b'"))
    async with role_in(notes, WRITER):
        await notes.execute(text("UPDATE granted_notes SET title = 'b'"))
        with pytest.raises(InvalidStatement, match="permission denied"):
            async with notes.begin_nested():
                await notes.execute(text("UPDATE granted_notes SET id = 2"))


async def test_other_rights_are_a_difference_of_the_catalog(notes: AsyncSession) -> None:
    expected = await read_catalog(notes)
    await notes.execute(text(f"GRANT DELETE, UPDATE (id) ON granted_notes TO {WRITER}"))
    await notes.execute(text(f"REVOKE ALL ON granted_notes FROM {READER}"))
    await notes.execute(text("GRANT SELECT (title) ON granted_notes TO PUBLIC"))
    assert set(compare_catalogs(await read_catalog(notes), expected)) == {
        f"rights of {READER} on granted_notes: missing",
        f"{RIGHTS}: changed",
        "rights of PUBLIC on granted_notes: unknown",
    }


async def test_a_migration_gets_the_missing_statements(notes: AsyncSession) -> None:
    def of(definition: str) -> SchemaObject:
        return SchemaObject(CatalogEntry(definition), "granted_notes", f"GRANT {definition} …", "REVOKE …", ())

    changes = changes_after({RIGHTS: of("SELECT")}, {RIGHTS: of("INSERT")})
    assert [change.sql for change in changes] == ["REVOKE …", "GRANT INSERT …"]
    assert list(changes_after({RIGHTS: of("SELECT")}, {})) == []  # the project declares no rights


async def test_rights_of_a_table_without_declared_rights_are_not_compared(notes: AsyncSession) -> None:
    await notes.execute(text("CREATE TABLE undeclared (id int)"))
    expected = await read_catalog(notes)
    await notes.execute(text(f"GRANT SELECT ON undeclared TO {READER}"))
    assert list(compare_catalogs(await read_catalog(notes), expected)) == []


async def test_rights_to_execute_a_function_are_a_part_of_its_definition(notes: AsyncSession) -> None:
    await notes.execute(text("CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'"))
    expected = await read_catalog(notes)
    assert "EXECUTE" not in expected["function one()"].definition
    await notes.execute(text("REVOKE ALL ON FUNCTION one FROM PUBLIC"))
    assert list(compare_catalogs(await read_catalog(notes), expected)) == ["function one(): changed"]
    assert (await read_catalog(notes))["function one()"].definition.endswith("\nEXECUTE: nobody")
    await notes.execute(text(f"GRANT EXECUTE ON FUNCTION one TO {READER}"))
    assert (await read_catalog(notes))["function one()"].definition.endswith(f"\nEXECUTE: {READER}")


def test_a_wrong_grant_is_rejected() -> None:
    with pytest.raises(ValueError, match="the rights must be SELECT"):
        TableGrant("web", "TRUNCATE")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the rights must be"):
        TableGrant("web")
    with pytest.raises(ValueError, match="DELETE can't be limited"):
        TableGrant("web", "DELETE", columns=["id"])
    with pytest.raises(TypeError, match="columns must be a list"):
        TableGrant("web", "UPDATE", columns="id")
    table = Table("lacks", MetaData(), TableGrant("web", "UPDATE", columns=["absent"]))
    with pytest.raises(ValueError, match="the table lacks has no column absent"):
        grant_statements(table)


def test_a_copy_of_a_table_has_the_same_grants() -> None:
    copied = GrantedNote.__table__.to_metadata(MetaData(), schema="Other")  # type: ignore[attr-defined]
    assert grants_of(copied) == grants_of(GrantedNote.__table__)  # type: ignore[arg-type]
    assert grant_statements(copied)[0] == f'GRANT SELECT ON "Other".granted_notes TO {READER}'
    assert grant_statements(copied)[2] == f'GRANT UPDATE (title, state) ON "Other".granted_notes TO {WRITER}'


# --- A role for a part of a transaction ------------------------------------------------------------------------------


async def test_the_block_has_the_role_and_the_earlier_one_returns(notes: AsyncSession) -> None:
    login = await role_of(notes)
    async with role_in(notes, WRITER):
        assert await role_of(notes) == WRITER
        async with role_in(notes, READER):
            assert await role_of(notes) == READER
        assert await role_of(notes) == WRITER
    assert await role_of(notes) == login


async def test_the_login_role_cannot_be_taken_by_its_alias(notes: AsyncSession) -> None:
    with pytest.raises(ValueError, match="can't be 'none'"):
        async with role_in(notes, "None"):
            pass


async def test_objects_are_flushed_with_the_role_under_which_they_were_changed(notes: AsyncSession) -> None:
    notes.add(GrantedNote(id=2, title="before"))
    async with role_in(notes, READER):
        pass  # READER may not insert
    async with role_in(notes, WRITER):
        notes.add(GrantedNote(id=3, title="inside"))
    with pytest.raises(InvalidStatement, match="permission denied"):
        async with notes.begin_nested(), role_in(notes, READER):
            notes.add(GrantedNote(id=4, title="denied"))
    assert [*await notes.scalars(select(GrantedNote.id).order_by(GrantedNote.id))] == [1, 2, 3]


async def test_the_earlier_role_returns_after_an_error_in_python(notes: AsyncSession) -> None:
    login = await role_of(notes)
    with pytest.raises(LookupError):
        async with role_in(notes, WRITER):
            raise LookupError
    assert await role_of(notes) == login


async def test_the_earlier_role_returns_with_the_savepoint_of_a_failed_statement(notes: AsyncSession) -> None:
    login = await role_of(notes)
    with pytest.raises(InvalidStatement):
        async with notes.begin_nested(), role_in(notes, WRITER):
            await notes.execute(text("SELECT * FROM missing"))
    assert await role_of(notes) == login


async def test_a_savepoint_in_the_block_keeps_the_role_of_the_block(notes: AsyncSession) -> None:
    login = await role_of(notes)
    async with role_in(notes, WRITER):
        with pytest.raises(InvalidStatement):
            async with notes.begin_nested():
                await notes.execute(text("SELECT * FROM missing"))
        assert await role_of(notes) == WRITER
    assert await role_of(notes) == login


async def test_a_cancelled_block_gives_the_role_back(notes: AsyncSession) -> None:
    login = await role_of(notes)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), role_in(notes, WRITER):
            await asyncio.Event().wait()
    assert await role_of(notes) == login


async def test_the_role_ends_with_the_transaction(database_url: str) -> None:
    """On a real connection, which the pool lends again."""
    async with Database(database_url, pool_size=1, max_overflow=0) as database, database.session() as session:
        login = await role_of(session)
        async with role_in(session, "pg_monitor"):
            assert await role_of(session) == "pg_monitor"
            await session.rollback()
            assert await role_of(session) == login
        assert await role_of(session) == login
        with pytest.raises(InvalidStatement):  # without a savepoint: the whole transaction is aborted
            async with role_in(session, "pg_monitor"):
                await session.execute(text("SELECT * FROM missing"))
        await session.rollback()
        assert await role_of(session) == login
        with pytest.raises(TransactionConflict):
            async with role_in(session, "pg_monitor"):
                await session.execute(text("DO $$BEGIN RAISE serialization_failure; END$$"))
        await session.rollback()
        assert await role_of(session) == login


async def test_a_settings_role_returns(database_url: str) -> None:
    async with Database(database_url, pool_size=1, max_overflow=0) as database:
        async with database.with_settings(role="pg_monitor").begin() as session:
            async with role_in(session, "pg_read_all_settings"):
                assert await role_of(session) == "pg_read_all_settings"
            assert await role_of(session) == "pg_monitor"
        async with database.session() as session:
            assert await role_of(session) != "pg_monitor"
