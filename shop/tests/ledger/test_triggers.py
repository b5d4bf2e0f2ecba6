"""What the database itself makes and refuses, whoever writes: books that don't add up, or that change."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy import text

from howdah import CheckViolation, Database, DatabaseError, UniqueViolation
from shop_tests.support.funded_accounts import open_accounts

_COLUMNS = (
    "id, from_account_id, from_entry_number, to_account_id, to_entry_number, amount, currency, effective_at, created_at"
)


def transfers(*rows: str) -> str:
    """A statement that makes these: from, its entry_number, to, its entry_number, amount; and, where they are others, currency
    and time."""

    def row(place: int, given: str) -> str:
        from_, from_entry_number, to, to_entry_number, amount, *others = given.split(", ")
        currency, at = [*others, *["'GBP'", "now()"][len(others) :]]
        id_ = f"'00000000-0000-7000-8000-{place:012}'"
        return f"({', '.join((id_, from_, from_entry_number, to, to_entry_number, amount, currency, at, at))})"

    return f"INSERT INTO transfers ({_COLUMNS}) VALUES {', '.join(row(n, each) for n, each in enumerate(rows))}"


async def write(database: Database, statement: str, accounts: dict[str, UUID]) -> None:
    async with database.begin() as session:
        asked = text(statement)
        await session.execute(asked.bindparams(**{name: accounts[name] for name in asked._bindparams}))


@pytest.fixture
async def accounts(stored: Database) -> dict[str, UUID]:
    """One with a hundred, one empty; one that is closed, one that is frozen, one of no book."""
    a, b, frozen, closed = await open_accounts(stored, 100, 0, 0, 0)
    for id_, state in ((frozen, "frozen"), (closed, "closed")):
        await write(stored, f"UPDATE accounts SET state = '{state}' WHERE id = :id", {"id": id_})
    return {"a": a, "b": b, "frozen": frozen, "closed": closed, "unknown": UUID(int=15)}


async def test_a_transfer_makes_its_entries_and_balances(stored: Database, accounts: dict[str, UUID]) -> None:
    """However many of an account there are in a statement, and in whatever order they are given."""
    await write(stored, transfers(":b, 2, :a, 3, 10", ":a, 2, :b, 1, 30", ":a, 4, :b, 3, 80"), accounts)
    async with stored.session() as session:
        entries = await session.execute(
            text(
                "SELECT entry_number, amount, balance_after FROM entries WHERE account_id IN (:a, :b) ORDER BY account_id, 1"
            ),
            {name: accounts[name] for name in ("a", "b")},
        )
        of_a = [(1, 100, 100), (2, -30, 70), (3, 10, 80), (4, -80, 0)]
        of_b = [(1, 30, 30), (2, -10, 20), (3, 80, 100)]
        both = sorted(((accounts["a"], of_a), (accounts["b"], of_b)))
        assert [tuple(entry) for entry in entries] == both[0][1] + both[1][1]
        rows = await session.execute(text("SELECT id, balance, entry_count FROM accounts WHERE entry_count > 0"))
        found = {row.id: (row.balance, row.entry_count) for row in rows}
        assert (found[accounts["a"]], found[accounts["b"]]) == ((0, 4), (100, 3))


@pytest.mark.parametrize(
    ("rows", "constraint"),
    [
        pytest.param([":a, 3, :b, 1, 30"], "transfer_follows", id="a gap"),
        pytest.param([":a, 1, :b, 1, 30"], "transfer_follows", id="a number that is taken"),
        pytest.param([":a, 2, :b, 1, 30", ":a, 4, :b, 2, 30"], "transfer_follows", id="a gap between two"),
        pytest.param([":a, 2, :b, 1, 30", ":a, 2, :b, 2, 30"], "transfer_follows", id="a number twice"),
        pytest.param([":a, 2, :b, 1, 30", ":b, 3, :a, 3, 30"], "transfer_follows", id="a gap of the other account"),
        pytest.param([":a, 2, :b, 1, 30, 'EUR'"], "transfer_follows", id="of another currency"),
        pytest.param([":a, 2, :b, 1, 30", ":a, 3, :b, 2, 30, 'EUR'"], "transfer_follows", id="of two currencies"),
        pytest.param([":a, 2, :unknown, 1, 30"], "transfer_follows", id="to an account that doesn't exist"),
        pytest.param([":a, 2, :frozen, 1, 30"], "transfer_follows", id="to an account that is frozen"),
        pytest.param([":a, 2, :closed, 1, 30"], "transfer_follows", id="to an account that is closed"),
        pytest.param(
            [":a, 2, :b, 1, 30, 'GBP', now() - interval '1 day'"], "transfer_follows", id="older than the one before"
        ),
        pytest.param(
            [":a, 2, :b, 1, 30", ":a, 3, :b, 2, 30, 'GBP', now() - interval '1 us'"],
            "transfer_follows",
            id="older than the one before of the statement",
        ),
        pytest.param([":a, 2, :b, 1, 101"], "ck_accounts_balance_covered", id="more than there is"),
        pytest.param([":a, 2, :b, 1, 0"], "ck_transfers_amount_positive", id="nothing"),
        pytest.param([":a, 2, :b, 1, -1"], "ck_transfers_amount_positive", id="turned round"),
        pytest.param([":a, 2, :a, 3, 30"], "ck_transfers_accounts_differ", id="to itself"),
    ],
)
async def test_a_transfer_that_does_not_follow_is_refused(
    stored: Database, accounts: dict[str, UUID], rows: list[str], constraint: str
) -> None:
    with pytest.raises(CheckViolation) as refused:
        await write(stored, transfers(*rows), accounts)
    assert refused.value.constraint == constraint


async def test_a_version_of_two_transfers_is_refused(stored: Database, accounts: dict[str, UUID]) -> None:
    """Even if their number makes up for a gap."""
    with pytest.raises((CheckViolation, UniqueViolation)):
        await write(
            stored, transfers(":a, 2, :b, 1, 1", ":a, 3, :b, 3, 1", ":a, 4, :b, 3, 1", ":a, 5, :b, 4, 1"), accounts
        )


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE accounts SET balance = balance + 1",
        "UPDATE accounts SET entry_count = entry_count + 1",
        """
        INSERT INTO entries (account_id, entry_number, transfer_id, amount, balance_after, created_at)
        SELECT account_id, 99, transfer_id, 1, 1, now() FROM entries LIMIT 1
        """,
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
async def test_what_is_in_the_books_stays_as_it_is(stored: Database, accounts: dict[str, UUID], change: str) -> None:
    with pytest.raises(DatabaseError, match="never"):
        await write(stored, change, accounts)


@pytest.mark.parametrize(("balance", "held", "entry_count"), [(100, 0, 0), (100, 0, 1), (0, 0, 1), (0, 1, 0)])
async def test_an_account_is_opened_with_nothing_in_it(
    stored: Database, balance: int, held: int, entry_count: int
) -> None:
    opened = """
        INSERT INTO accounts (
            id, name, currency, balance, held, allows_negative, overdraft_limit, state, metadata, entry_count, revision,
            created_at, updated_at
        ) VALUES (gen_random_uuid(), 'A', 'GBP', {}, {}, true, 0, 'open', '{{}}', {}, 0, now(), now())
        """
    await write(stored, opened.format(0, 0, 0), {})
    with pytest.raises(CheckViolation) as refused:
        await write(stored, opened.format(balance, held, entry_count), {})
    assert refused.value.constraint == "opened_empty"


async def test_entries_stay_in_order_whatever_time_an_account_is_said_to_be_of(
    stored: Database, accounts: dict[str, UUID]
) -> None:
    await write(stored, "UPDATE accounts SET updated_at = now() - interval '1 year' WHERE id = :a", accounts)
    with pytest.raises(CheckViolation) as refused:
        await write(stored, transfers(":a, 2, :b, 1, 30, 'GBP', now() - interval '1 day'"), accounts)
    assert refused.value.constraint == "transfer_follows"


async def test_the_entries_are_those_of_the_books_whatever_else_is_called_so(
    stored: Database, accounts: dict[str, UUID]
) -> None:
    async with stored.begin() as session:
        await session.execute(text("CREATE TEMPORARY TABLE entries ON COMMIT DROP AS SELECT * FROM entries LIMIT 0"))
        made = text(transfers(":a, 2, :b, 1, 30"))
        await session.execute(made.bindparams(a=accounts["a"], b=accounts["b"]))
    async with stored.session() as session:
        found = text("SELECT count(*) FROM entries WHERE account_id IN (:a, :b)")
        assert await session.scalar(found, {"a": accounts["a"], "b": accounts["b"]}) == 3


async def test_every_change_that_makes_no_entry_is_counted(stored: Database, accounts: dict[str, UUID]) -> None:
    """So that nobody goes on deciding on what an account was."""

    async def revision() -> int:
        async with stored.session() as session:
            found = await session.scalar(text("SELECT revision FROM accounts WHERE id = :a"), {"a": accounts["a"]})
            return int(found or 0)

    before = await revision()
    for column, value in (
        ("state", "'frozen'"),
        ("state", "'open'"),
        ("overdraft_limit", "5"),
        ("balance_limit", "500"),
        ("allows_negative", "true"),
        ("held", "1"),
        ("updated_at", "now()"),
    ):
        await write(stored, f"UPDATE accounts SET {column} = {value} WHERE id = :a", accounts)
        before += 1
        assert await revision() == before
    await write(stored, transfers(":a, 2, :b, 1, 30"), accounts)
    assert await revision() == before
