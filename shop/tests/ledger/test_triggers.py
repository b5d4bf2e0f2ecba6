"""The ledger's triggers create entries and balances, and reject every other change of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Executable, Insert, func, insert, text

from howdah import CheckViolation, Database, DatabaseError, UniqueViolation
from shop.ledger.models import Transfer
from shop_tests.support.funded_accounts import open_accounts


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """A row of `transfers`, whose accounts are keys of the fixture `accounts`. By default it is a correct one."""

    from_account: str = "a"
    from_entry_number: int = 2
    to_account: str = "b"
    to_entry_number: int = 1
    amount: int = 30
    currency: str = "GBP"
    age: timedelta = timedelta(0)
    """How long before the transaction it was created."""


def insert_transfers(accounts: dict[str, UUID], *rows: TransferRow) -> Insert:
    """One statement that inserts all rows."""
    return insert(Transfer).values(
        [
            {
                "id": UUID(f"00000000-0000-7000-8000-{number:012}"),
                "from_account_id": accounts[row.from_account],
                "from_entry_number": row.from_entry_number,
                "to_account_id": accounts[row.to_account],
                "to_entry_number": row.to_entry_number,
                "amount": row.amount,
                "currency": row.currency,
                "effective_at": func.now() - row.age,
                "created_at": func.now() - row.age,
            }
            for number, row in enumerate(rows)
        ]
    )


async def write(database: Database, statement: Executable | str, **parameters: UUID) -> None:
    async with database.begin() as session:
        await session.execute(text(statement) if isinstance(statement, str) else statement, parameters)


@pytest.fixture
async def accounts(stored: Database) -> dict[str, UUID]:
    """`a` has 100, `b` is empty, one is frozen, one is closed, and `unknown` doesn't exist."""
    a, b, frozen, closed = await open_accounts(stored, 100, 0, 0, 0)
    for id_, state in ((frozen, "frozen"), (closed, "closed")):
        await write(stored, f"UPDATE accounts SET state = '{state}' WHERE id = :id", id=id_)
    return {"a": a, "b": b, "frozen": frozen, "closed": closed, "unknown": UUID(int=15)}


async def test_new_transfers_create_entries_and_balances(stored: Database, accounts: dict[str, UUID]) -> None:
    """One statement may have several transfers of an account, in any order."""
    await write(
        stored,
        insert_transfers(
            accounts,
            TransferRow(from_account="b", to_account="a", to_entry_number=3, amount=10),
            TransferRow(),
            TransferRow(from_entry_number=4, to_entry_number=3, amount=80),
        ),
    )
    async with stored.session() as session:
        entries = await session.execute(
            text(
                "SELECT entry_number, amount, balance_after FROM entries "
                "WHERE account_id IN (:a, :b) ORDER BY account_id, 1"
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
        pytest.param([TransferRow(from_entry_number=3)], "transfer_matches_accounts", id="a gap"),
        pytest.param([TransferRow(from_entry_number=1)], "transfer_matches_accounts", id="an entry number that exists"),
        pytest.param(
            [TransferRow(), TransferRow(from_entry_number=4, to_entry_number=2)],
            "transfer_matches_accounts",
            id="a gap between two transfers",
        ),
        pytest.param(
            [TransferRow(), TransferRow(to_entry_number=2)], "transfer_matches_accounts", id="an entry number twice"
        ),
        pytest.param(
            [TransferRow(), TransferRow(from_account="b", from_entry_number=3, to_account="a", to_entry_number=3)],
            "transfer_matches_accounts",
            id="a gap in the other account",
        ),
        pytest.param([TransferRow(currency="EUR")], "transfer_matches_accounts", id="another currency"),
        pytest.param(
            [TransferRow(), TransferRow(from_entry_number=3, to_entry_number=2, currency="EUR")],
            "transfer_matches_accounts",
            id="two currencies",
        ),
        pytest.param(
            [TransferRow(to_account="unknown")], "transfer_matches_accounts", id="to an account that doesn't exist"
        ),
        pytest.param(
            [TransferRow(to_account="frozen")], "transfer_matches_accounts", id="to an account that is frozen"
        ),
        pytest.param(
            [TransferRow(to_account="closed")], "transfer_matches_accounts", id="to an account that is closed"
        ),
        pytest.param(
            [TransferRow(age=timedelta(days=1))], "transfer_matches_accounts", id="older than the previous entry"
        ),
        pytest.param(
            [TransferRow(), TransferRow(from_entry_number=3, to_entry_number=2, age=timedelta(microseconds=1))],
            "transfer_matches_accounts",
            id="older than the previous entry of the statement",
        ),
        pytest.param(
            [TransferRow(amount=101)], "ck_accounts_available_within_overdraft_limit", id="more than the balance"
        ),
        pytest.param([TransferRow(amount=0)], "ck_transfers_amount_positive", id="an amount of 0"),
        pytest.param([TransferRow(amount=-1)], "ck_transfers_amount_positive", id="a negative amount"),
        pytest.param(
            [TransferRow(to_account="a", to_entry_number=3)], "ck_transfers_accounts_differ", id="to the same account"
        ),
    ],
)
async def test_a_transfer_that_does_not_match_its_accounts_is_rejected(
    stored: Database, accounts: dict[str, UUID], rows: list[TransferRow], constraint: str
) -> None:
    with pytest.raises(CheckViolation) as rejected:
        await write(stored, insert_transfers(accounts, *rows))
    assert rejected.value.constraint == constraint


async def test_an_entry_number_of_two_transfers_is_rejected(stored: Database, accounts: dict[str, UUID]) -> None:
    """Even if a gap makes their number right."""
    with pytest.raises((CheckViolation, UniqueViolation)):
        await write(
            stored,
            insert_transfers(
                accounts,
                TransferRow(amount=1),
                TransferRow(from_entry_number=3, to_entry_number=3, amount=1),
                TransferRow(from_entry_number=4, to_entry_number=3, amount=1),
                TransferRow(from_entry_number=5, to_entry_number=4, amount=1),
            ),
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
async def test_accounts_transfers_and_entries_are_never_changed_or_deleted_directly(
    stored: Database, accounts: dict[str, UUID], change: str
) -> None:
    with pytest.raises(DatabaseError, match="never"):
        await write(stored, change)


@pytest.mark.parametrize(("balance", "held", "entry_count"), [(100, 0, 0), (100, 0, 1), (0, 0, 1), (0, 1, 0)])
async def test_a_new_account_is_empty(stored: Database, balance: int, held: int, entry_count: int) -> None:
    opened = """
        INSERT INTO accounts (
            id, name, currency, balance, held, allows_negative, overdraft_limit, state, metadata, entry_count, revision,
            created_at, updated_at
        ) VALUES (gen_random_uuid(), 'A', 'GBP', {}, {}, true, 0, 'open', '{{}}', {}, 0, now(), now())
        """
    await write(stored, opened.format(0, 0, 0))
    with pytest.raises(CheckViolation) as rejected:
        await write(stored, opened.format(balance, held, entry_count))
    assert rejected.value.constraint == "new_account_is_empty"


async def test_entries_stay_in_order_if_updated_at_of_an_account_is_set_back(
    stored: Database, accounts: dict[str, UUID]
) -> None:
    await write(stored, "UPDATE accounts SET updated_at = now() - interval '1 year' WHERE id = :a", a=accounts["a"])
    with pytest.raises(CheckViolation) as rejected:
        await write(stored, insert_transfers(accounts, TransferRow(age=timedelta(days=1))))
    assert rejected.value.constraint == "transfer_matches_accounts"


async def test_a_temporary_table_does_not_take_the_place_of_the_entries(
    stored: Database, accounts: dict[str, UUID]
) -> None:
    async with stored.begin() as session:
        await session.execute(text("CREATE TEMPORARY TABLE entries ON COMMIT DROP AS SELECT * FROM entries LIMIT 0"))
        await session.execute(insert_transfers(accounts, TransferRow()))
    async with stored.session() as session:
        found = text("SELECT count(*) FROM entries WHERE account_id IN (:a, :b)")
        assert await session.scalar(found, {"a": accounts["a"], "b": accounts["b"]}) == 3


async def test_revision_counts_every_change_that_creates_no_entry(stored: Database, accounts: dict[str, UUID]) -> None:
    """The seals of accounts rely on it."""

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
        await write(stored, f"UPDATE accounts SET {column} = {value} WHERE id = :a", a=accounts["a"])
        before += 1
        assert await revision() == before
    await write(stored, insert_transfers(accounts, TransferRow()))
    assert await revision() == before
