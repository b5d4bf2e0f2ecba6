"""What the database itself refuses, whoever writes: books that don't add up, or that change."""

from __future__ import annotations

from uuid import UUID

import pytest
from books import open_accounts
from sqlalchemy import text

from howdah import CheckViolation, Database, DatabaseError

_TRANSFER = """
    INSERT INTO transfers (id, from_account_id, from_version, to_account_id, to_version, amount, currency, effective_at,
        created_at)
    VALUES ('00000000-0000-7000-8000-000000000001', :a, {from_version}, :b, {to_version}, 30, 'GBP', now(), now())
    """
_ENTRIES = """
    INSERT INTO entries (account_id, version, transfer_id, amount, balance_after, created_at)
    VALUES {}
    """
_ID = "'00000000-0000-7000-8000-000000000001'"
_FROM = (":a", 2, _ID, -30, 70)
_TO = (":b", 1, _ID, 30, 30)
_BALANCES = """
    UPDATE accounts SET balance = CASE WHEN id = :a THEN 70 ELSE 30 END, version = CASE WHEN id = :a THEN 2 ELSE 1 END
    WHERE id IN (:a, :b)
    """


def written(
    *entries: tuple[object, ...], transfer: str | None = _TRANSFER, balances: str | None = _BALANCES, at: str = "now()"
) -> str:
    """One statement that does all of it."""
    rows = ", ".join(f"({', '.join(map(str, entry))}, {at})" for entry in entries)
    parts = [
        None if transfer is None else transfer.format(from_version=2, to_version=1),
        _ENTRIES.format(rows) if entries else None,
        balances,
    ]
    given = [part for part in parts if part is not None]
    return f"WITH {', '.join(f'part{n} AS ({part})' for n, part in enumerate(given))} SELECT 1"


async def write(database: Database, statement: str, accounts: list[UUID]) -> None:
    async with database.begin() as session:
        asked = text(statement)
        await session.execute(asked.bindparams(**dict(zip(sorted(asked._bindparams), accounts, strict=False))))


async def test_books_that_add_up_are_accepted(stored: Database) -> None:
    """The control for those below."""
    accounts = await open_accounts(stored, 100, 0)
    await write(stored, written(_FROM, _TO), accounts)


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        pytest.param(written(), "transfer_balances", id="a transfer without entries"),
        pytest.param(written(_FROM), "transfer_balances", id="without one of them"),
        pytest.param(written(_FROM, (":b", 1, _ID, 29, 29)), "entry_of_a_transfer", id="of another amount"),
        pytest.param(
            written((":a", 2, _ID, 30, 130), (":b", 1, _ID, -30, -30)), "entry_of_a_transfer", id="turned round"
        ),
        pytest.param(written(_FROM, _TO, transfer=None), "entry_of_a_transfer", id="entries without a transfer"),
        pytest.param(
            written(_FROM, _TO, (":b", 2, _ID, 30, 60), (":a", 3, _ID, -30, 40)),
            "entry_of_a_transfer",
            id="twice as many",
        ),
        pytest.param(written((":a", 2, _ID, -30, 71), _TO), "entry_follows", id="a balance that doesn't follow"),
        pytest.param(written(_FROM, _TO, balances=None), "entry_follows", id="balances that stay as they are"),
        pytest.param(
            written(_FROM, _TO, balances=_BALANCES.replace("70", "75")), "entry_follows", id="a balance that is another"
        ),
        pytest.param(
            written(_FROM, _TO, balances=_BALANCES.replace("THEN 2", "THEN 3")), "entry_follows", id="a version too far"
        ),
        pytest.param(
            written(_FROM, _TO, at="now() - interval '1 day'"), "entry_follows", id="older than the one before"
        ),
        pytest.param(
            written(("gen_random_uuid()", 1, _ID, -30, -30), _TO), "entry_of_a_transfer", id="an account of no transfer"
        ),
        pytest.param(
            written(
                ("'00000000-0000-7000-8000-00000000000f'", 2, _ID, -30, -30),
                _TO,
                transfer=_TRANSFER.replace(":a", "'00000000-0000-7000-8000-00000000000f'"),
                balances="UPDATE accounts SET balance = 30, version = 1 WHERE id = :b",
            ),
            "entry_follows",
            id="an account that doesn't exist",
        ),
    ],
)
async def test_books_that_do_not_add_up_are_refused(stored: Database, statement: str, constraint: str) -> None:
    a, b = await open_accounts(stored, 100, 0)
    with pytest.raises(CheckViolation) as refused:
        await write(stored, statement, [b] if ":a" not in statement else [a, b])
    assert refused.value.constraint == constraint


async def test_a_gap_between_the_entries_is_refused(stored: Database) -> None:
    accounts = await open_accounts(stored, 100, 0)
    statement = written((":a", 3, _ID, -30, 70), _TO, balances=_BALANCES.replace("THEN 2", "THEN 3"))
    with pytest.raises(CheckViolation) as refused:
        await write(stored, statement.replace(":a, 2, :b", ":a, 3, :b"), accounts)
    assert refused.value.constraint == "entry_follows"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE transfers SET amount = 1",
        "DELETE FROM transfers",
        "TRUNCATE transfers CASCADE",
        "UPDATE entries SET amount = 1",
        "DELETE FROM entries",
        "TRUNCATE entries",
        "DELETE FROM accounts",
        "TRUNCATE accounts CASCADE",
        "UPDATE accounts SET currency = 'EUR'",
        "UPDATE accounts SET id = gen_random_uuid()",
    ],
)
async def test_what_is_in_the_books_stays_as_it_is(stored: Database, change: str) -> None:
    await open_accounts(stored, 100, 0)
    with pytest.raises(DatabaseError, match="never"):
        await write(stored, change, [])


async def test_every_change_that_makes_no_entry_is_counted(stored: Database) -> None:
    """So that nobody goes on deciding on what an account was."""
    account, *_ = await open_accounts(stored, 100)

    async def revision() -> int:
        async with stored.session() as session:
            return int(await session.scalar(text("SELECT revision FROM accounts WHERE id = :id"), {"id": account}) or 0)

    before = await revision()
    for column, value in (
        ("state", "'frozen'"),
        ("overdraft_limit", "5"),
        ("balance_limit", "500"),
        ("allows_negative", "true"),
        ("held", "1"),
    ):
        await write(stored, f"UPDATE accounts SET {column} = {value} WHERE id = :id", [account])
        before += 1
        assert await revision() == before
    await write(stored, "UPDATE accounts SET name = 'another' WHERE id = :id", [account])
    assert await revision() == before
