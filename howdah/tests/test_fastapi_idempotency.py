"""`idempotency_key` and `IdempotentRoute`: which requests run, which are replayed, and which are rejected."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import Depends, HTTPException, Response
from sqlalchemy import delete

from howdah import Database
from howdah.fastapi import DbSession, idempotency_key
from howdah.testing import assert_statements
from howdah_tests.support.fastapi_apps import asgi_client
from howdah_tests.support.idempotent_app import (
    BODY,
    IdempotentRequest,
    Note,
    count_notes,
    create_app,
    is_replay,
    note_key,
    post,
    read_stored,
    serve,
    without_replayed,
)


@pytest.fixture
async def stored(database: Database) -> Database:
    """A database with the tables. Its changes are rolled back, so its requests can't run concurrently."""
    async with database.session() as session:
        await (await session.connection()).run_sync(Note.metadata.create_all)
        await session.commit()
    return database


@pytest.fixture
async def client(stored: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with asgi_client(create_app(stored)) as client:
        yield client


# Replays


async def test_a_retry_gets_the_same_status_headers_and_body(client: httpx.AsyncClient, stored: Database) -> None:
    first = await post(client)
    assert (first.status_code, is_replay(first)) == (201, False)
    assert first.headers.get_list("set-cookie") == ["a=1", "b=2"]
    again = await post(client)
    assert again.headers["idempotency-replayed"] == "true"
    assert without_replayed(again) == without_replayed(first)
    assert await count_notes(stored) == 1


async def test_a_retry_gets_the_response_after_its_row_was_deleted(client: httpx.AsyncClient, stored: Database) -> None:
    first = await post(client)
    async with stored.begin() as session:
        await session.execute(delete(Note))
    assert without_replayed(await post(client)) == without_replayed(first)
    assert await count_notes(stored) == 0


async def test_a_request_without_a_key_runs_each_time(client: httpx.AsyncClient, stored: Database) -> None:
    assert (await post(client, None)).json() != (await post(client, None)).json()
    assert (await count_notes(stored), await read_stored(stored)) == (2, [])


async def test_callers_never_get_each_others_responses(client: httpx.AsyncClient, stored: Database) -> None:
    answers = [await post(client, caller=caller) for caller in ("", "ada", "bob")]
    assert len({answer.json()["id"] for answer in answers}) == 3 == await count_notes(stored)
    assert not any(map(is_replay, answers))
    assert (await post(client, caller="ada")).json() == answers[1].json()


@pytest.mark.parametrize(
    "change",
    [
        {"json": {"text": "b"}},
        {"content": b'{ "text": "a"}', "headers": {"Content-Type": "application/json"}},
        {"content": b'{"text":"a"}', "headers": {"Content-Type": "application/json; charset=utf-8"}},
        {"params": {"a": "1"}},
        {"path": "/notes/refused"},
    ],
)
async def test_another_request_with_the_key_is_rejected(
    client: httpx.AsyncClient, stored: Database, change: dict[str, Any]
) -> None:
    first = await post(client)
    answer = await post(client, **change)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:howdah:problem:idempotency-key-reused")
    assert await count_notes(stored) == 1
    assert without_replayed(await post(client)) == without_replayed(first)


async def test_a_refusal_that_the_route_returns_is_stored_with_its_effects(
    client: httpx.AsyncClient, stored: Database
) -> None:
    first = await post(client, path="/notes/refused")
    assert (first.status_code, first.json()["detail"]) == (409, "refusal 1")
    again = await post(client, path="/notes/refused")
    assert (is_replay(again), without_replayed(again)) == (True, without_replayed(first))
    assert await count_notes(stored) == 1


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_a_response_that_asks_for_a_retry_is_rolled_back_and_frees_the_key(
    client: httpx.AsyncClient, stored: Database, status: int
) -> None:
    for _ in range(2):
        answer = await post(client, path="/notes/refused", params={"status": status})
        assert (answer.status_code, answer.json()["detail"], is_replay(answer)) == (status, "refusal 1", False)
    assert (await count_notes(stored), await read_stored(stored)) == (0, [])


async def test_an_exception_stores_nothing_and_frees_the_key(stored: Database) -> None:
    outcomes: list[Exception | None] = [HTTPException(404), ZeroDivisionError(), None]

    async def endpoint(db: DbSession) -> int:
        db.add(Note(text="a"))
        if error := outcomes.pop(0):
            raise error
        return await count_notes(stored)

    async with asgi_client(serve(stored, endpoint)) as client:
        answers = [await post(client, path="/") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [404, 500, 200, 200]
    assert [is_replay(answer) for answer in answers] == [False, False, False, True]
    assert await count_notes(stored) == 1


async def test_an_invalid_body_frees_the_key(client: httpx.AsyncClient, stored: Database) -> None:
    assert (await post(client, json={})).status_code == 422
    assert (await post(client)).status_code == 201


async def test_dependencies_before_the_key_run_for_a_replay_and_those_after_it_do_not(stored: Database) -> None:
    calls: list[str] = []

    async def before() -> None:
        calls.append("before")

    async def after() -> None:
        calls.append("after")

    async def endpoint(db: DbSession) -> None:
        calls.append("route")

    app = serve(stored, endpoint, status_code=204, dependencies=[Depends(before), note_key, Depends(after)])
    async with asgi_client(app) as client:
        answers = [await post(client, path="/") for _ in range(2)]
    assert calls == ["before", "after", "route", "before"]
    assert [(each.status_code, each.content, is_replay(each)) for each in answers] == [
        (204, b"", False),
        (204, b"", True),
    ]


async def test_a_body_that_the_route_reads_in_parts_is_compared_to_its_end(
    client: httpx.AsyncClient, stored: Database
) -> None:
    async def body(end: bytes) -> AsyncIterator[bytes]:
        yield b"a\nb\n\n"  # the route stops reading at the empty line
        yield end

    first = await post(client, path="/notes/lines", json=None, content=body(b"c\n"))
    assert (first.status_code, await count_notes(stored)) == (200, 2)
    assert is_replay(await post(client, path="/notes/lines", json=None, content=body(b"c\n")))
    assert is_replay(await post(client, path="/notes/lines", json=None, content=b"a\nb\n\nc\n"))
    assert (await post(client, path="/notes/lines", json=None, content=body(b"d\n"))).status_code == 422
    assert await count_notes(stored) == 2


async def test_random_requests_get_what_a_model_of_the_keys_predicts(stored: Database) -> None:
    """Callers, keys, bodies and outcomes are random. The model is a dictionary of stored responses."""
    random = Random(8)
    outcome = ""

    async def endpoint(body: dict[str, str], db: DbSession) -> Response:
        db.add(Note(text="a"))
        if outcome == "raised":
            raise HTTPException(409)
        return Response(uuid4().hex, int(outcome))

    model: dict[tuple[str, str], tuple[str, bytes]] = {}
    effects = 0
    async with asgi_client(serve(stored, endpoint)) as client:
        for _ in range(100):
            caller, key, item = random.choice("xy"), random.choice("abcde"), random.choice("12")
            outcome = random.choice(["200", "404", "503", "429", "raised"])
            answer = await post(client, key, "/", caller=caller, json={"item": item})
            if stored_answer := model.get((caller, key)):
                assert is_replay(answer) == (stored_answer[0] == item)
                assert (answer.content == stored_answer[1]) == (stored_answer[0] == item)
                assert is_replay(answer) or answer.status_code == 422
                continue
            assert (answer.status_code, is_replay(answer)) == (409 if outcome == "raised" else int(outcome), False)
            if outcome in ("200", "404"):
                model[caller, key] = item, answer.content
                effects += 1
    assert (await count_notes(stored), len(await read_stored(stored))) == (effects, len(model)) == (10, 10)


async def test_a_key_costs_two_statements_and_a_replay_takes_two(client: httpx.AsyncClient, stored: Database) -> None:
    for key, statements in ((None, 1), ("k", 3), ("k", 2)):
        with assert_statements(stored, statements):
            assert (await post(client, key)).status_code == 201


# The key


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 256])
async def test_a_malformed_key_is_rejected(client: httpx.AsyncClient, stored: Database, key: str) -> None:
    answer = await client.post("/notes", json=BODY, headers=[(b"Idempotency-Key", key.encode("latin-1"))])
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:howdah:problem:idempotency-key-invalid")
    assert await count_notes(stored) == 0


async def test_a_repeated_or_missing_key_is_rejected(client: httpx.AsyncClient, stored: Database) -> None:
    twice = await client.post("/notes", json=BODY, headers=[("Idempotency-Key", "k"), ("idempotency-key", "k")])
    assert (twice.status_code, twice.json()["type"]) == (400, "urn:howdah:problem:repeated-header")
    missing = await post(client, None, "/notes/required")
    assert (missing.status_code, missing.json()["type"]) == (400, "urn:howdah:problem:idempotency-key-missing")
    assert await count_notes(stored) == 0
    longest = await post(client, '"' + "x" * 253 + '"', "/notes/required")
    assert longest.status_code == 200


@pytest.mark.parametrize(("caller", "error"), [(None, TypeError), (7, TypeError), ("x" * 256, ValueError)])
async def test_a_scope_that_does_not_name_a_caller_is_rejected(
    stored: Database, caller: object, error: type[Exception]
) -> None:
    async def get_scope() -> object:
        return caller

    async def endpoint(db: DbSession) -> None: ...

    app = serve(stored, endpoint, dependencies=[idempotency_key(IdempotentRequest, scope=get_scope)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        with pytest.raises(error, match="get_scope returned"):
            await post(client, path="/")
