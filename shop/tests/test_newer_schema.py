"""This release on the schema of the next one, as during a rolling deployment."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from howdah.alembic import Migrations
from shop import migrations
from shop.ledger.schema import compare_schema
from shop.migrations import HISTORY
from shop_tests.support.empty_database import run
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.http_service import client_of, create_service, http_client, run_shop_serve
from shop_tests.support.problems import assert_problem

# The next release adds columns, a function, a trigger, and a new version of a function.
NEXT = """
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade() -> None:
    op.execute("ALTER TABLE users ADD COLUMN nickname text")
    op.execute("ALTER TABLE orders ADD COLUMN channel text NOT NULL DEFAULT 'web'")
    op.execute("ALTER TABLE transfers ADD COLUMN batch text")
    op.execute("CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$")
    op.execute("CREATE TRIGGER note BEFORE INSERT ON transfers FOR EACH ROW EXECUTE FUNCTION note()")
    op.execute(
        "CREATE OR REPLACE FUNCTION reject_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'rows are never changed'; END $$"
    )


def downgrade() -> None:
    raise NotImplementedError
"""


@pytest.fixture
def next_release(tmp_path: Path) -> Migrations:
    """The migrations of the next release."""
    assert HISTORY.folder is not None
    folder = shutil.copytree(HISTORY.folder, tmp_path / "migrations")
    (folder / "versions" / "9999_next.py").write_text(NEXT.format(head=HISTORY.head))
    return Migrations(folder)


async def test_the_running_release_stays_ready_and_works(committed_url: str, next_release: Migrations) -> None:
    new_user = {"email": "ada@example.org", "name": "Ada"}
    async with http_client(create_service(committed_url)) as client:
        created = await client.post("/users", json=new_user)  # also prepares statements
        path = f"/users/{created.json()['id']}"
        assert (await client.get(path)).status_code == 200
        assert await asyncio.to_thread(next_release.upgrade, committed_url) == ["upgraded to 9999"]
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        before = (await client.get(path)).json()
        assert before["name"] == "Ada"
        changed = await client.patch(path, json={"name": "Ada L."}, headers={"If-Match": f'"{before["version"]}"'})
        assert changed.status_code == 200
        rows = "".join(f'{{"email": "{number}@example.org", "name": "Many"}}\n' for number in range(50))
        bulk = await client.post("/users/bulk", content=rows, headers={"Content-Type": "application/x-ndjson"})
        assert bulk.status_code == 201
        assert len((await client.get("/users", params={"limit": 60})).json()["items"]) == 51
    async with Database(committed_url) as database:
        await open_accounts(database, 100, 200)  # posts transfers
        async with database.session() as session:
            assert (await compare_schema(session)).defects == ["function reject_change(): changed"]


async def test_the_old_release_starts_migrates_nothing_and_logs_a_warning(
    committed_url: str, next_release: Migrations, tmp_path: Path
) -> None:
    await asyncio.to_thread(next_release.upgrade, committed_url)
    log = tmp_path / "log"
    async with run_shop_serve(committed_url, log) as (process, address), client_of(address) as client:
        assert (await client.get("/users")).status_code == 200
        process.terminate()
        assert await process.wait() == 0
    assert f"the database is at revision 9999, which is newer than {HISTORY.head}" in log.read_text()
    assert await asyncio.to_thread(run, committed_url, "SELECT version_num FROM alembic_version") == [[("9999",)]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("ALTER TABLE entries DISABLE TRIGGER reject_change", "trigger reject_change on entries: disabled"),
        ("DROP TRIGGER post_transfers ON transfers", "trigger post_transfers on transfers: missing"),
        ("ALTER TABLE entries RENAME COLUMN amount TO value", "column amount of entries: missing"),
        ("ALTER TABLE entries ALTER COLUMN amount DROP NOT NULL", "column amount of entries: changed"),
        ("ALTER TABLE transfers FORCE ROW LEVEL SECURITY", "table transfers: changed"),
        ("SET LOCAL session_replication_role = replica", "setting session_replication_role: unknown"),
    ],
)
async def test_a_newer_schema_must_have_all_protections_and_columns_of_the_ledger(
    session: AsyncSession, change: str, problem: str
) -> None:
    await session.execute(text(change))
    assert problem in str(await compare_schema(session, is_newer=True))


async def test_a_database_behind_this_release_is_not_ready(committed_url: str) -> None:
    await asyncio.to_thread(run, committed_url, "UPDATE alembic_version SET version_num = '0001'")
    async with http_client(create_service(committed_url)) as client:
        detail = f"the schema is at 0001, not at {HISTORY.head}: run shop migrate"
        assert_problem(await client.get("/readyz"), 503, "not-ready", detail=detail)
    async with Database(committed_url) as database:
        assert not await migrations.is_newer(database)
