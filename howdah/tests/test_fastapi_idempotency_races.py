"""Idempotent requests that run at the same time, in several processes, or in a process that is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import func, select, text

from howdah import Database, IdempotencyKeyInUse, delete_old_requests
from howdah.idempotency import StoredAnswer, claim_request, store_answer
from howdah.testing import _new_database, _with_database
from howdah_tests.support.fastapi_apps import asgi_client, http_client
from howdah_tests.support.idempotent_app import (
    COMMIT_LOCK,
    IdempotentRequest,
    Note,
    count_notes,
    create_app,
    create_tables,
    read_stored,
    run_in_process,
    wait_in_commit,
)
from howdah_tests.support.waiting import kill, until, until_waiting

STORED, STORED_LATER = "/notes", "/stored-later/notes"
ANSWER = StoredAnswer(b"f", 201, [("a", "b")], b"body")


@pytest.fixture(scope="module")
def committed_url(postgres_url: str, template: str) -> Iterator[str]:
    """One database for all tests, because a new one takes a second."""
    with _new_database(postgres_url, template) as name:
        yield _with_database(postgres_url, name)


@pytest.fixture
async def stored(committed_database: Database) -> Database:
    """The database with new tables, and with no table, trigger or function of an earlier test."""
    async with committed_database.begin() as session:
        await session.execute(text("DROP SCHEMA public CASCADE"))
        await session.execute(text("CREATE SCHEMA public"))
    await create_tables(committed_database)
    return committed_database


async def post(client: httpx.AsyncClient, key: str = "k", path: str = "/notes", body: str = "a") -> httpx.Response:
    return await client.post(path, headers={"Idempotency-Key": key}, json={"text": body})


async def claim(database: Database, seconds: float = 10, key: str = "k") -> StoredAnswer | None:
    """Claim the key in a transaction of its own, and store an answer."""
    async with database.begin() as session:
        found = await claim_request(session, IdempotentRequest, scope="", key=key, max_wait_seconds=seconds)
        if found is None:
            await store_answer(session, IdempotentRequest, ANSWER, scope="", key=key)
        return found


async def test_concurrent_requests_with_one_key_have_one_effect_and_the_same_bytes(stored: Database) -> None:
    async with http_client(create_app(stored)) as client:
        answers = await asyncio.gather(*(post(client) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({(answer.headers["location"], answer.content) for answer in answers}) == 1
    assert sorted("idempotency-replayed" in answer.headers for answer in answers) == [False] + [True] * 39
    assert (await count_notes(stored), len(await read_stored(stored))) == (1, 1)


async def test_control_without_the_claim_two_requests_have_two_effects(stored: Database) -> None:
    """Reading the stored answer first isn't enough: neither request has committed when the other one reads."""
    for key in ("read", "claim"):
        async with stored.session() as first, stored.session() as second:
            waiting: list[asyncio.Task[StoredAnswer | None]] = []
            for session in (first, second):
                if key == "read":
                    assert await session.scalar(select(func.count()).select_from(IdempotentRequest)) == 0
                    session.add(Note(text=key))
                elif session is first:
                    assert (
                        await claim_request(session, IdempotentRequest, scope="", key=key, max_wait_seconds=9) is None
                    )
                    session.add(Note(text=key))
                    await store_answer(session, IdempotentRequest, ANSWER, scope="", key=key)
                else:
                    waiting.append(asyncio.create_task(claim(stored, key=key)))
                    await until_waiting(stored)
            await first.commit()
            await second.commit()
            assert [await task for task in waiting] == ([ANSWER] if key == "claim" else [])
        assert await count_notes(stored) == (2 if key == "read" else 3)


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_second_request_waits_for_the_end_of_the_first(stored: Database, is_committed: bool) -> None:
    async with stored.session() as session:
        assert await claim_request(session, IdempotentRequest, scope="", key="k", max_wait_seconds=9) is None
        waiting = asyncio.create_task(claim(stored))
        await until_waiting(stored)
        await store_answer(session, IdempotentRequest, ANSWER, scope="", key="k")
        await (session.commit() if is_committed else session.rollback())
    assert await waiting == (ANSWER if is_committed else None)
    assert len(await read_stored(stored)) == 1


async def test_the_wait_is_bounded_and_the_answer_is_409(stored: Database) -> None:
    async with stored.session() as session, asgi_client(create_app(stored)) as client:
        await claim_request(session, IdempotentRequest, scope="", key="k", max_wait_seconds=9)
        answer = await post(client, path="/notes/required")  # waits for 50 ms
        assert answer.status_code == 409
        assert answer.headers["retry-after"] in {"1", "2", "3"}
        assert answer.json()["type"] == "urn:howdah:problem:idempotency-key-in-use"
        other_key = await post(client, "other", "/notes/required")
        assert other_key.status_code == 200
        await session.rollback()
        assert (await post(client, path="/notes/required")).status_code == 200


async def test_the_limit_of_the_wait_is_not_that_of_later_statements(stored: Database) -> None:
    async with stored.begin() as session:
        before = await session.scalar(text("SHOW lock_timeout"))
        for expected in (None, ANSWER):
            found = await claim_request(session, IdempotentRequest, scope="", key="k", max_wait_seconds=0.05)
            assert found == expected
            assert await session.scalar(text("SHOW lock_timeout")) == before == "5s"
            if found is None:
                await store_answer(session, IdempotentRequest, ANSWER, scope="", key="k")


async def test_a_commit_that_fails_stores_nothing_and_frees_the_key(stored: Database) -> None:
    async with stored.begin() as session:
        statement = "ALTER TABLE notes ADD CONSTRAINT one_text UNIQUE (text) DEFERRABLE INITIALLY DEFERRED"
        await session.execute(text(statement))
    async with http_client(create_app(stored)) as client:
        assert (await post(client, "first")).status_code == 201
        failed = await post(client)
        assert (failed.status_code, failed.json()["constraint"]) == (409, "one_text")
        assert [each.key for each in await read_stored(stored)] == ["first"]
        async with stored.begin() as session:
            await session.execute(text("DELETE FROM notes"))
        again = await post(client)
        assert (again.status_code, "idempotency-replayed" in again.headers) == (201, False)


async def test_a_client_that_gives_up_before_the_commit_leaves_nothing_or_a_replay(
    stored: Database, committed_url: str
) -> None:
    """The request is cancelled while its COMMIT waits. Whether it commits or not, a retry leaves one effect."""
    await wait_in_commit(stored)
    async with (
        Database(committed_url, connect_timeout=0.3) as impatient,  # the limit of the wait for the COMMIT
        asgi_client(create_app(impatient)) as client,
    ):
        async with stored.session() as blocker:
            await blocker.execute(select(func.pg_advisory_xact_lock(COMMIT_LOCK)))
            request = asyncio.create_task(post(client))
            await until_waiting(stored)
            request.cancel()
            await asyncio.wait([request])
            assert request.cancelled()
        assert (await post(client)).status_code == 201
        assert "idempotency-replayed" in (await post(client)).headers
    assert (await count_notes(stored), len(await read_stored(stored))) == (1, 1)


async def check_two_processes(database: Database, process: httpx.AsyncClient) -> None:
    """Send the same request to this process and to the other one: it has one effect."""
    async with http_client(create_app(database)) as own:
        answers = await asyncio.gather(*(post(each) for each in [own, process] * 10))
    assert len({answer.content for answer in answers}) == 1
    assert sorted("idempotency-replayed" in answer.headers for answer in answers) == [False] + [True] * 19
    assert await count_notes(database) == 1


async def kill_during_commit(
    database: Database, process: asyncio.subprocess.Process, client: httpx.AsyncClient
) -> None:
    """Kill the process of the application in four COMMITs. Then two of them succeed, and two fail."""
    await wait_in_commit(database)
    count = await count_notes(database)
    async with database.session() as blocker:
        await blocker.execute(select(func.pg_advisory_xact_lock(COMMIT_LOCK)))
        requests = [asyncio.create_task(post(client, f"lost{path}", path, "lost")) for path in (STORED, STORED_LATER)]
        await until_waiting(database, 2)
        waiting = await blocker.scalars(
            text("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
        )
        lost = waiting.all()
        requests += [asyncio.create_task(post(client, f"kept{path}", path, "kept")) for path in (STORED, STORED_LATER)]
        await until_waiting(database, 4)
        process.kill()
        for outcome in await asyncio.gather(*requests, return_exceptions=True):
            assert isinstance(outcome, httpx.HTTPError)
        for pid in lost:
            await kill(database, pid)
    await until(lambda: has_notes(database, count + 2))


async def has_notes(database: Database, count: int) -> bool:
    return await count_notes(database) == count


async def test_two_processes_have_one_effect_and_a_killed_one_has_stored_effect_and_response_or_neither(
    stored: Database, committed_url: str
) -> None:
    """The control is a response that is stored after the commit, as in Redis. The retry then has a second effect.

    One test for both, because the start of a process takes a second.
    """
    async with run_in_process(committed_url) as (process, client):
        await check_two_processes(stored, client)
        await kill_during_commit(stored, process, client)
    async with asgi_client(create_app(stored)) as client:
        for path, replays, counts in ((STORED, ["kept"], (1, 1)), (STORED_LATER, [], (2, 1))):
            answers = {key: await post(client, f"{key}{path}", path, key) for key in ("kept", "lost")}
            assert [answer.status_code for answer in answers.values()] == [201, 201]
            assert [key for key, answer in answers.items() if "idempotency-replayed" in answer.headers] == replays
            assert (await count_notes(stored, f"{path} kept"), await count_notes(stored, f"{path} lost")) == counts
            for key, answer in answers.items():
                assert (await post(client, f"{key}{path}", path, key)).content == answer.content


async def test_a_request_whose_stored_answer_is_being_deleted_runs_again(stored: Database) -> None:
    """A replay is what it gets before the deletion is committed, and a new effect after it: never half of both."""
    assert await claim(stored) is None
    async with stored.session() as session:
        await session.execute(text("DELETE FROM idempotent_requests"))
        waiting = asyncio.create_task(claim(stored))
        await until_waiting(stored)
        await session.commit()
    assert await waiting is None
    async with stored.session() as session:
        await session.execute(text("DELETE FROM idempotent_requests"))
        waiting = asyncio.create_task(claim(stored))
        await until_waiting(stored)
        await session.rollback()
    assert await waiting == ANSWER


async def test_old_requests_are_deleted_in_batches_and_others_are_kept(stored: Database) -> None:
    for number in range(7):
        await claim(stored, key=str(number))
    async with stored.begin() as session:
        await session.execute(
            text("UPDATE idempotent_requests SET created_at = now() - interval '2 days' WHERE key < '5'")
        )
    async with stored.session() as session:
        await session.execute(text("SELECT FROM idempotent_requests WHERE key = '3' FOR UPDATE"))
        deleted = await delete_old_requests(stored, IdempotentRequest, older_than=timedelta(days=1), batch_size=2)
        assert deleted == 4  # the locked row is skipped
    assert await delete_old_requests(stored, IdempotentRequest, older_than=timedelta(days=1)) == 1
    assert [each.key for each in await read_stored(stored)] == ["5", "6"]
    with pytest.raises(ValueError, match="older_than"):
        await delete_old_requests(stored, IdempotentRequest, older_than=timedelta(0))


async def test_a_key_that_is_claimed_twice_or_committed_without_an_answer_is_an_error(stored: Database) -> None:
    async with stored.session() as session:
        await claim_request(session, IdempotentRequest, scope="", key="k", max_wait_seconds=1)
        with pytest.raises(RuntimeError, match="has no answer"):
            await claim_request(session, IdempotentRequest, scope="", key="k", max_wait_seconds=1)


async def test_an_answer_that_another_transaction_has_stored_after_a_rollback_is_a_conflict(stored: Database) -> None:
    async with stored.session() as session:
        await claim_request(session, IdempotentRequest, scope="", key="k", max_wait_seconds=1)
        await session.rollback()
        assert await claim(stored) is None
        session.add(Note(text="a"))
        with pytest.raises(IdempotencyKeyInUse):
            await store_answer(session, IdempotentRequest, ANSWER, scope="", key="k")
    assert await count_notes(stored) == 0
