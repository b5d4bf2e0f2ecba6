"""Commits that fail, and commits whose outcome is unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from sqlalchemy import text

from howdah import ConnectionLost, Database
from shop.ledger.check import check_ledger
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account
from shop.ledger.requests import TransferRequest, TransferResult
from shop_tests.support.factories import balances, make_account, make_order, make_user, post_transfer
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.http_service import create_service, http_client
from shop_tests.support.lossy_proxy import COMMIT, run_lossy_proxy
from shop_tests.support.problems import assert_problem
from shop_tests.support.waiting import until

# A deferred trigger, which runs the code in COMMIT.
_IN_COMMIT = (
    """
    CREATE FUNCTION in_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {}; RETURN NULL; END $$
    """,
    """
    CREATE CONSTRAINT TRIGGER in_commit AFTER INSERT ON transfers
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION in_commit()
    """,
)
_LOCK = 4711


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    with TemporaryDirectory(
        prefix="pg"
    ) as folder:  # the path of a socket is at most 107 bytes long; tmp_path is longer
        yield Path(folder)


async def run_in_commit(database: Database, code: str) -> None:
    async with database.begin() as session:
        for statement in _IN_COMMIT:
            await session.execute(text(statement.format(code)))


async def drop_commit_trigger(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("DROP TRIGGER in_commit ON transfers"))


async def count_transfers(database: Database) -> int:
    async with database.session() as session:
        report = await check_ledger(session)
        assert report.faults == {}
        return report.transfers


async def test_a_failed_commit_is_the_response_and_uses_no_key(
    committed_url: str, committed_database: Database
) -> None:
    async with http_client(create_service(committed_url)) as client:
        a, b = await make_account(client, 100), await make_account(client)
        await run_in_commit(committed_database, "RAISE unique_violation USING CONSTRAINT = 'in_commit'")

        answer = await post_transfer(client, a, b, 60, key="k")

        assert_problem(answer, 409, "unique-violation", constraint="in_commit")
        assert await balances(client, a, b) == [100, 0]
        await drop_commit_trigger(committed_database)
        answer = await post_transfer(client, a, b, 60, key="k")
        assert (answer.status_code, "idempotency-replayed" in answer.headers) == (201, False)
        assert await balances(client, a, b) == [40, 60]


async def test_a_payment_whose_commit_fails_leaves_the_order_pending(
    committed_url: str, committed_database: Database
) -> None:
    async with http_client(create_service(committed_url)) as client:
        a, b = await make_account(client, 100), await make_account(client)
        order = await make_order(client, (await make_user(client))["id"], 60)
        await run_in_commit(committed_database, "RAISE EXCEPTION USING ERRCODE = 'XX000'")
        body = {"from_account_id": a["id"], "to_account_id": b["id"]}

        answer = await client.post(f"/orders/{order['id']}/pay", json=body, headers={"Idempotency-Key": "k"})

        assert_problem(answer, 500, "internal-error")
        assert (await client.get(f"/orders/{order['id']}")).json() == order
        assert await balances(client, a, b) == [100, 0]


async def kill_waiting(database: Database) -> bool:
    """End the backend that waits for a lock. Each wait is short, so there may be none at this moment."""
    kill = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with database.engine.connect() as connection:
        return bool(await connection.scalar(kill))


async def test_a_transfer_whose_backend_was_killed_in_commit_is_posted_by_another(
    committed_url: str, committed_database: Database
) -> None:
    async with http_client(create_service(committed_url)) as client:
        a, b = await make_account(client, 100), await make_account(client)
        await run_in_commit(committed_database, f"PERFORM pg_advisory_xact_lock({_LOCK})")
        async with committed_database.begin() as session:
            await session.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            sent = asyncio.create_task(post_transfer(client, a, b, 60, key="k"))
            await until(partial(kill_waiting, committed_database))
        answer = await sent

        assert (answer.status_code, "idempotency-replayed" in answer.headers) == (201, False)
        assert await balances(client, a, b) == [40, 60]
        await drop_commit_trigger(committed_database)  # `check_ledger` reports triggers that aren't the ledger's
        assert await count_transfers(committed_database) == 2


@pytest.mark.parametrize("pending", [False, True], ids=["one statement", "under locks"])
async def test_a_commit_whose_response_is_lost_is_found_by_its_key(
    committed_url: str,
    committed_database: Database,
    socket_folder: Path,
    pending: bool,
) -> None:
    async with (
        run_lossy_proxy(committed_url, socket_folder) as proxy,
        http_client(create_service(proxy.url.render_as_string(hide_password=False))) as client,
    ):
        a, b = await make_account(client, 100), await make_account(client)
        proxy.lost_bytes, proxy.times = (COMMIT if pending else b"lost-key"), 1
        body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 60}
        if pending:
            body["pending_seconds"] = 600

        answer = await client.post("/transfers", json=body, headers={"Idempotency-Key": "lost-key"})

        assert proxy.times == 0
        assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (201, "true")
        account = (await client.get(f"/accounts/{a['id']}")).json()
        assert (account["balance"], account["held"]) == ((100, 60) if pending else (40, 0))
        assert await count_transfers(committed_database) == (1 if pending else 2)


async def test_repeatedly_lost_responses_are_an_error_and_the_request_can_be_retried(
    committed_url: str, committed_database: Database, socket_folder: Path
) -> None:
    async with (
        run_lossy_proxy(committed_url, socket_folder) as proxy,
        http_client(create_service(proxy.url.render_as_string(hide_password=False))) as client,
    ):
        a, b = await make_account(client, 100), await make_account(client)
        proxy.lost_bytes = b"lost-key"
        assert_problem(await post_transfer(client, a, b, 60, key="lost-key"), 503, "connection-lost")
        assert proxy.lost > 1
        proxy.lost_bytes = None

        again = await post_transfer(client, a, b, 60, key="lost-key")

        assert (again.status_code, again.headers.get("idempotency-replayed")) == (201, "true")
        assert await balances(client, a, b) == [40, 60]
        assert await count_transfers(committed_database) == 2


async def test_a_lost_response_raises_connection_lost_for_requests_without_a_key(
    committed_url: str, committed_database: Database, socket_folder: Path
) -> None:
    a, b = await open_accounts(committed_database, 100, 0)
    async with (
        run_lossy_proxy(committed_url, socket_folder) as proxy,
        Database(proxy.url) as database,
        Ledger(database) as ledger,
    ):
        await ledger.submit(TransferRequest(a, b, 1))
        proxy.lost_bytes, proxy.times = b"lost-key", 1
        answers = await asyncio.gather(
            ledger.submit(TransferRequest(a, b, 10)),
            ledger.submit(TransferRequest(a, b, 20, key="lost-key")),
            ledger.submit_many([TransferRequest(a, b, 3, key="other"), TransferRequest(a, b, 4)]),
            return_exceptions=True,
        )
    lost, kept, mixed = answers
    assert isinstance(lost, ConnectionLost)
    assert isinstance(mixed, ConnectionLost)
    assert isinstance(kept, TransferResult)
    assert kept.replayed
    async with committed_database.session() as session:
        assert (await session.get_one(Account, b)).balance == 38
    assert await count_transfers(committed_database) == 6


async def test_a_retry_with_another_key_after_a_lost_response_pays_twice(
    committed_url: str, committed_database: Database, socket_folder: Path
) -> None:
    """The control test: if the outcome is unknown, a retry with another key moves the money again."""

    async def pay(client: httpx.AsyncClient, key: str) -> int:
        await post_transfer(client, a, b, 30, key=key)
        return (await balances(client, b))[0]

    async with (
        run_lossy_proxy(committed_url, socket_folder) as proxy,
        http_client(create_service(proxy.url.render_as_string(hide_password=False))) as client,
    ):
        a, b = await make_account(client, 100), await make_account(client)
        proxy.lost_bytes = b"lost-key"
        await post_transfer(client, a, b, 30, key="lost-key")
        proxy.lost_bytes = None
        assert await pay(client, "another") == 60
        assert await count_transfers(committed_database) == 3
