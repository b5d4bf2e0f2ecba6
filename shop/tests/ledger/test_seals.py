"""The seals show each row that was changed, removed or added without triggers, even if all other rows agree with it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import DatabaseError, savepoint
from shop.ledger.account_schemas import AccountIn
from shop.ledger.accounts import open_account
from shop.ledger.check import check_ledger
from shop.ledger.models import Account, AccountState
from shop.ledger.requests import TransferRequest
from shop.ledger.seals import Link, last_link
from shop.ledger.service import post_transfers
from shop_tests.support.checked_ledger import find_faults
from shop_tests.support.reversals import reversal_request
from shop_tests.support.trigger_bypass import disable_triggers, enable_triggers

# `rich` received 1000, sent 300 twice (keys 1st and 2nd; the first was reversed), and has three holds of 10.
_FIRST, _SECOND, _BACK = (f"(SELECT id FROM transfers WHERE description = '{each}')" for each in ("1st", "2nd", "back"))
_REMOVED = """
    DELETE FROM idempotency_keys WHERE key = 'last';
    DELETE FROM entries WHERE transfer_id = (SELECT id FROM transfers WHERE description = 'last');
    DELETE FROM transfers WHERE description = 'last';
    UPDATE accounts a SET balance = e.balance_after, entry_count = e.entry_number FROM entries e
    WHERE e.account_id = a.id AND e.entry_number = (SELECT max(entry_number) FROM entries WHERE account_id = a.id)
    """
_ENLARGED = """
    UPDATE transfers SET amount = amount + 1 WHERE description = 'last';
    UPDATE entries e SET amount = e.amount + sign(e.amount), balance_after = balance_after + sign(e.amount)
    FROM transfers t WHERE t.id = e.transfer_id AND t.description = 'last';
    UPDATE accounts a SET balance = e.balance_after
    FROM entries e WHERE e.account_id = a.id AND e.entry_number = a.entry_count
    """
_ADDED_ACCOUNT = """
    INSERT INTO accounts (
        id, name, currency, balance, held, allows_negative, overdraft_limit, state, metadata, entry_count, revision,
        created_at, updated_at
    ) VALUES (gen_random_uuid(), 'Mine', 'GBP', 0, 0, true, 0, 'open', '{}', 0, 0, now(), now())
    """


async def create_ledger(session: AsyncSession) -> None:
    """Create a ledger whose last transfer is the last one of both of its accounts, and link the seals."""
    world = await open_account(session, AccountIn(name="world", currency="GBP", allows_negative=True))
    rich, poor = [await open_account(session, AccountIn(name=name, currency="GBP")) for name in ("rich", "poor")]
    results = await post_transfers(
        session,
        [
            TransferRequest(world.id, rich.id, 1_000, description="deposit", key="deposit"),
            TransferRequest(rich.id, poor.id, 300, description="1st", metadata={"a": "b"}, key="1st"),
            TransferRequest(rich.id, poor.id, 300, description="2nd", key="2nd"),
            TransferRequest(poor.id, rich.id, 9_999, key="refused"),
        ],
    )
    back = await reversal_request(session, results[1].unwrap().id)
    await post_transfers(session, [back])
    pending = await post_transfers(
        session, [TransferRequest(rich.id, poor.id, 10, pending_seconds=60, key=f"hold {n}") for n in range(3)]
    )
    await post_transfers(
        session,
        [
            TransferRequest(rich.id, poor.id, None, posts=pending[1].unwrap().id),
            TransferRequest(rich.id, poor.id, None, voids=pending[2].unwrap().id),
        ],
    )
    await post_transfers(session, [TransferRequest(rich.id, poor.id, 5, description="last", key="last")])
    rich.name = "Rich"
    await session.flush()
    poor.state = AccountState.FROZEN
    await session.flush()
    await session.execute(text("SELECT link_seals(1000)"))


async def tamper(session: AsyncSession, statements: str) -> None:
    await disable_triggers(session)
    for statement in statements.split(";"):
        await session.execute(text(statement.replace(":", "\\:")))
    await enable_triggers(session)


@pytest.mark.parametrize(
    ("found", "change"),
    [
        pytest.param("transfers differ from their seal", _ENLARGED, id="a transfer with entries and balances"),
        pytest.param(
            "sealed transfers are missing", _REMOVED, id="the last transfer with its entries, balances and key"
        ),
        *(
            pytest.param("transfers differ from their seal", f"UPDATE transfers SET {change}", id=change)
            for change in (
                "effective_at = effective_at + interval '1 us' WHERE description = '1st'",
                "description = 'other' WHERE description = '1st'",
                "description = '' WHERE description IS NULL",
                "description = NULL WHERE description = '1st'",
                """metadata = '{"a": "c"}' WHERE description = '1st'""",
                "metadata = NULL WHERE description = '1st'",
                f"reverses_id = {_SECOND} WHERE reverses_id IS NOT NULL",
                "reverses_id = NULL, reversed_total = NULL WHERE reverses_id IS NOT NULL",
                "group_id = id WHERE description = '1st'",
            )
        ),
        *(
            pytest.param(
                "pending transfers differ from their last seal",
                f"UPDATE pending_transfers SET {change}",
                id=change,
            )
            for change in (
                "to_account_id = (SELECT id FROM accounts WHERE name = 'world') WHERE state = 'pending'",
                "expires_at = expires_at + interval '1 day' WHERE state = 'pending'",
                "expires_at = expires_at + interval '1 day' WHERE state = 'posted'",
                "settled_at = settled_at + interval '1 us' WHERE state = 'voided'",
                "description = 'other' WHERE state = 'pending'",
            )
        ),
        pytest.param(
            "pending transfers differ from their last seal",
            """
            UPDATE pending_transfers SET state = 'pending', settled_at = NULL WHERE state = 'voided';
            UPDATE accounts SET held = held + 10 WHERE name = 'Rich'
            """,
            id="a pending transfer that was voided is pending again",
        ),
        pytest.param(
            "sealed pending transfers are missing",
            """
            DELETE FROM idempotency_keys k USING pending_transfers p WHERE p.id = k.transfer_id AND p.state = 'pending';
            DELETE FROM pending_transfers WHERE state = 'pending';
            UPDATE accounts SET held = 0 WHERE name = 'Rich'
            """,
            id="a deleted pending transfer",
        ),
        *(
            pytest.param(
                "idempotency keys are not sealed, or differ from their seal",
                f"UPDATE idempotency_keys SET {change}",
                id=change,
            )
            for change in (
                f"transfer_id = {_SECOND} WHERE key = '1st'",
                "fingerprint = sha256('other') WHERE key = '1st'",
                "refusal = 'account_frozen' WHERE key = 'refused'",
                "created_at = created_at + interval '1 us' WHERE key = 'refused'",
                "scope = 'other' WHERE key = 'refused'",
                "key = 'other' WHERE key = 'refused'",
            )
        ),
        pytest.param(
            "idempotency keys are not sealed, or differ from their seal",
            "INSERT INTO idempotency_keys SELECT (jsonb_populate_record(k, jsonb_build_object('key', 'new'))).*"
            " FROM idempotency_keys k WHERE key = '1st'",
            id="an additional key",
        ),
        *(
            pytest.param("accounts differ from their last seal", f"UPDATE accounts SET {change}", id=change)
            for change in (
                "state = 'open' WHERE name = 'poor'",
                "name = 'rich' WHERE name = 'Rich'",
                "overdraft_limit = 1000 WHERE name = 'Rich'",
                "balance_limit = 1000 WHERE name = 'Rich'",
                "allows_negative = true WHERE name = 'Rich'",
                "metadata = '{\"a\": \"b\"}' WHERE name = 'Rich'",
                "purpose = 'fees' WHERE name = 'Rich'",
                "revision = 0 WHERE name = 'Rich'",
            )
        ),
        pytest.param("accounts are not sealed", _ADDED_ACCOUNT, id="an additional account"),
        *(
            pytest.param("seals disagree with the previous seal", f"UPDATE seals SET {change}", id=change)
            for change in (
                "created_at = created_at + interval '1 us' WHERE position = 2",
                "hash = sha256('other') WHERE position = 2",
                "digests[1] = sha256('other') WHERE position = 2",
                "subject = 'accounts' WHERE subject = 'transfers'",
            )
        ),
        pytest.param("the chain of seals has gaps", "DELETE FROM seals WHERE position = 2", id="a deleted seal"),
        pytest.param(
            "the chain of seals has gaps", "DELETE FROM seals WHERE position = 1", id="the first seal is deleted"
        ),
        pytest.param(
            "idempotency keys are not sealed, or differ from their seal",
            "DELETE FROM seals WHERE position = (SELECT max(position) FROM seals WHERE subject = 'idempotency_keys')",
            id="the last seal of keys is deleted",
        ),
    ],
)
async def test_changes_that_bypass_the_triggers_are_found(session: AsyncSession, found: str, change: str) -> None:
    await create_ledger(session)
    assert await find_faults(session) == {}
    await tamper(session, change)
    assert found in await find_faults(session)


@pytest.mark.parametrize("change", [_ENLARGED, _REMOVED])
async def test_without_the_seals_such_a_change_is_not_found(session: AsyncSession, change: str) -> None:
    """The control test: the rows agree with each other, and only the seals show the change."""
    await create_ledger(session)
    await tamper(session, change)
    assert [fault for fault in await find_faults(session) if "seal" not in fault] == []


async def test_a_finding_names_the_row(session: AsyncSession) -> None:
    await create_ledger(session)
    id_ = await session.scalar(text("SELECT id FROM transfers WHERE description = 'last'"))
    await tamper(session, _REMOVED)
    assert await find_faults(session) == {"sealed transfers are missing": [f"transfer {id_}"]}


async def test_a_change_that_a_later_one_overwrites_is_found(session: AsyncSession) -> None:
    """The seal of the later change also has the digest before it."""
    await create_ledger(session)
    await tamper(session, "UPDATE accounts SET overdraft_limit = 1000 WHERE name = 'Rich'")
    await session.execute(text("UPDATE accounts SET held = held + 0 WHERE name = 'Rich'"))
    await session.execute(text("UPDATE accounts SET name = 'Richer' WHERE name = 'Rich'"))
    await tamper(session, "UPDATE pending_transfers SET amount = 9 WHERE state = 'pending'")
    await session.execute(
        text("UPDATE pending_transfers SET state = 'voided', settled_at = now() WHERE state = 'pending'")
    )
    found = await find_faults(session)
    assert len(found["accounts were changed between two seals"]) == 1
    assert len(found["pending transfers were changed between two seals"]) == 1


async def test_a_restored_old_ledger_is_found_by_a_recorded_seal(
    session: AsyncSession,
) -> None:
    await create_ledger(session)
    before = await last_link(session)
    assert before is not None
    assert (await check_ledger(session, since=before)).faults == {}
    world, rich = (
        await session.scalars(text("SELECT id FROM accounts WHERE name IN ('world', 'Rich') ORDER BY 1"))
    ).all()
    with suppress(LookupError):
        async with savepoint(session):
            await post_transfers(session, [TransferRequest(world, rich, 1)])
            await session.execute(text("SELECT link_seals(1000)"))
            written = await last_link(session)
            assert written is not None
            assert (written.position, (await check_ledger(session, since=before)).faults) == (before.position + 1, {})
            raise LookupError
    assert (await check_ledger(session)).faults == {}
    report = await check_ledger(session, since=written)
    assert report.faults == {"the chain of seals doesn't contain this seal": [str(written)]}
    # a seal with the same position and another hash
    await post_transfers(session, [TransferRequest(world, rich, 2)])
    await session.execute(text("SELECT link_seals(1000)"))
    assert (await check_ledger(session, since=written)).faults == report.faults


async def test_session_settings_do_not_change_a_digest(session: AsyncSession) -> None:
    await create_ledger(session)
    settings = {
        "client_encoding": "LATIN1",
        "TimeZone": "Asia/Tokyo",
        "DateStyle": "German",
        "IntervalStyle": "sql_standard",
        "bytea_output": "escape",
        "extra_float_digits": "-15",
        "quote_all_identifiers": "on",
    }
    await tamper(session, "UPDATE accounts SET name = 'Zoë'")
    await tamper(session, "UPDATE transfers SET description = 'Zoë'")
    await tamper(session, """UPDATE transfers SET metadata = '{"Zoë": "Zoë"}'""")
    for table, function in (
        ("transfers", "digest_of_transfer(t)"),
        ("pending_transfers", "digest_of_pending_transfer(t)"),
        ("idempotency_keys", "digest_of_idempotency_key(t)"),
        ("accounts", "digest_of_account(t)"),
        ("seals", "hash_of_seal(NULL, t)"),
    ):
        digests = f"SELECT array_agg({function} ORDER BY t.created_at, t) FROM {table} t"
        sets = " ".join(f"SET {name} = '{value}'" for name, value in settings.items())
        await session.execute(
            text(
                f"CREATE OR REPLACE FUNCTION pg_temp.elsewhere() RETURNS bytea[] LANGUAGE sql {sets} AS $$ {digests} $$"
            )
        )
        assert await session.scalar(text(digests)) == await session.scalar(text("SELECT pg_temp.elsewhere()"))


@pytest.mark.parametrize(
    ("table", "digest", "row", "expected"),
    [
        (
            "transfers",
            "digest_of_transfer(t)",
            """
            "id": "{id}", "from_account_id": "{id}", "from_entry_number": 1, "to_account_id": "{id}",
            "to_entry_number": 2, "amount": 3, "currency": "GBP", "description": "Zoë",
            "metadata": {{"bb": "ü", "a": "1.0"}}, "effective_at": "{at}", "created_at": "{at}"
            """,
            "204914c3a2742aa63eb20163ca8cb9e9",
        ),
        (
            "accounts",
            "digest_of_account(t)",
            """
            "id": "{id}", "name": "Zoë", "currency": "GBP", "allows_negative": true, "overdraft_limit": 5,
            "state": "open", "metadata": {{"n": 1.50, "l": [null, true, 1e3]}}, "created_at": "{at}"
            """,
            "b087a1ff316fcdb739c501d58fa27a46",
        ),
        (
            "seals",
            "hash_of_seal('before', t)",
            """
            "id": 1, "subject": "accounts", "ids": ["{id}"], "revisions": [7], "digests": ["\\\\x00ff"],
            "created_at": "{at}"
            """,
            "d89b35521d843a7965ac26b7911e53b1fb873a15cfb3f94f1e679725886dffbe",
        ),
    ],
)
async def test_digests_are_the_same_in_every_version_of_postgresql(
    session: AsyncSession, table: str, digest: str, row: str, expected: str
) -> None:
    """Otherwise an upgrade of the server would look like a fault."""
    values = "{" + row.format(id="01990000-0000-7000-8000-000000000000", at="2026-01-02T03:04:05.678901+00:00") + "}"
    of = text(f"SELECT encode({digest}, 'hex') FROM jsonb_populate_record(NULL::{table}, CAST(:row AS text)::jsonb) t")
    assert await session.scalar(of, {"row": values}) == expected


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO seals (subject, digests) VALUES ('transfers', '{}')",
        "UPDATE seals SET hash = sha256('other')",
        "UPDATE seals SET position = NULL, hash = NULL",
        "UPDATE seals SET created_at = now() WHERE position IS NULL",
        "UPDATE seals SET digests = '{}', position = 99, hash = sha256('other') WHERE position IS NULL",
        "DELETE FROM seals",
        "TRUNCATE seals",
        "UPDATE idempotency_keys SET refusal = NULL",
        "TRUNCATE idempotency_keys",
    ],
)
async def test_seals_and_sealed_rows_are_never_changed_directly(session: AsyncSession, change: str) -> None:
    await create_ledger(session)
    source, target = await session.scalars(text("SELECT id FROM accounts ORDER BY 1 LIMIT 2"))
    await post_transfers(session, [TransferRequest(source, target, 1)])
    with pytest.raises(DatabaseError, match="never") as caught:
        async with savepoint(session):
            await session.execute(text(change))
    assert caught.value.sqlstate == "55000"
    assert await find_faults(session) == {}


async def test_a_change_of_only_the_held_amount_creates_no_seal(session: AsyncSession) -> None:
    await create_ledger(session)
    of_accounts = text("SELECT count(*) FROM seals WHERE subject = 'accounts'")
    before = await session.scalar(of_accounts)
    await session.execute(update(Account).where(Account.name == "Rich").values(held=Account.held + 1))
    assert await session.scalar(of_accounts) == before


@pytest.mark.parametrize(
    "written", ["", "1", "1:ab", "0:" + 64 * "a", "x:" + 64 * "a", "1:" + 64 * "g", "-1:" + 64 * "a"]
)
def test_an_invalid_seal_is_rejected(written: str) -> None:
    with pytest.raises(ValueError, match="write POSITION:HASH"):
        Link.parse(written)
    assert str(Link.parse("12:" + 64 * "a")) == "12:" + 64 * "a"
