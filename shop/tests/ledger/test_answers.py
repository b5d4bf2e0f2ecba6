"""A replay returns the first answer, even if another request with its key is in the same batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, DatabaseError
from shop.ledger.group_commit import Ledger
from shop.ledger.models import IdempotencyKey, TransferState
from shop.ledger.requests import Refusal, TransferRequest, TransferResult
from shop.ledger.service import find_replay, post_transfers
from shop_tests.support.factories import make_account
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.trigger_bypass import disable_triggers

KEY = "key"
KINDS = ("transfer", "hold", "post", "void", "reversal", "refused")
Submit = Callable[[Sequence[TransferRequest]], Awaitable[list[TransferResult]]]


async def _in_one_transaction(database: Database, requests: Sequence[TransferRequest]) -> list[TransferResult]:
    async with database.begin() as session:
        return await post_transfers(session, requests)


async def _as_one_list(database: Database, requests: Sequence[TransferRequest]) -> list[TransferResult]:
    async with Ledger(database) as ledger:
        return await ledger.submit_many(requests)


async def _concurrently(database: Database, requests: Sequence[TransferRequest]) -> list[TransferResult]:
    """The first one occupies the only batch, so the others share the next one."""
    async with Ledger(database, workers=1) as ledger:
        return await asyncio.gather(*map(ledger.submit, requests))


ENTRY_POINTS = [_in_one_transaction, _as_one_list, _concurrently]


class Requests:
    """Requests of every kind between two accounts. Each request that refers to a transfer refers to a different one."""

    def __init__(self, accounts: Sequence[UUID], transfers: Sequence[UUID], holds: Sequence[UUID]) -> None:
        self._accounts = tuple(accounts)
        self._transfers, self._holds = iter(transfers), iter(holds)

    def of(self, kind: str, *, amount: int = 5, key: str | None = KEY) -> TransferRequest:
        a, b = self._accounts
        match kind:
            case "transfer":
                return TransferRequest(a, b, amount, key=key)
            case "hold":
                return TransferRequest(a, b, amount, pending_seconds=600, key=key)
            case "post":
                return TransferRequest(a, b, amount, posts=next(self._holds), key=key)
            case "void":
                return TransferRequest(a, b, None, voids=next(self._holds), key=key)
            case "reversal":
                return TransferRequest(b, a, amount, reverses=next(self._transfers), key=key)
            case _:
                return TransferRequest(a, b, 10**9, key=key)


async def prepare(database: Database) -> Requests:
    a, b = await open_accounts(database, 10_000, 10_000)
    posted = await _in_one_transaction(database, [TransferRequest(a, b, 10)] * 10)
    held = await _in_one_transaction(database, [TransferRequest(a, b, 10, pending_seconds=600)] * 10)
    return Requests((a, b), [each.unwrap().id for each in posted], [each.unwrap().id for each in held])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("submit", ENTRY_POINTS)
async def test_a_replay_returns_the_first_answer_next_to_another_request_with_its_key(
    stored: Database, submit: Any, kind: str
) -> None:
    requests = await prepare(stored)
    request = requests.of(kind)
    [first] = await submit(stored, [request])
    assert (first.refusal is not None) == (kind == "refused")
    for other in [requests.of(each, amount=7) for each in KINDS if each != "refused"]:
        for batch in ([request, other], [other, request], [request, other, request]):
            answers = await submit(stored, batch)
            for submitted_request, answer in zip(batch, answers, strict=True):
                expected = (
                    first._replace(replayed=True)
                    if submitted_request is request
                    else TransferResult(refusal=Refusal.KEY_REUSED)
                )
                assert answer == expected


@pytest.mark.parametrize("submit", ENTRY_POINTS[:2])
async def test_a_replayed_chain_returns_the_first_answers_next_to_other_requests_with_its_keys(
    stored: Database, submit: Any
) -> None:
    requests = await prepare(stored)
    kinds = KINDS[:-1]
    chain = [requests.of(kind, key=kind)._replace(linked=kind != kinds[-1]) for kind in kinds]
    first = await submit(stored, chain)
    assert [answer.unwrap().state for answer in first] == ["posted", "pending", "posted", "voided", "posted"]
    others = [requests.of("transfer", amount=7, key=kind) for kind in kinds]
    for batch in ([*chain, *others], [*others, *chain]):
        answers = await submit(stored, batch)
        assert [answer for answer in answers if answer.replayed] == [each._replace(replayed=True) for each in first]
        assert [answer.refusal for answer in answers if not answer.replayed] == [Refusal.KEY_REUSED] * len(others)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_answer_to_one_request_is_found_by_its_key(stored: Database, kind: str) -> None:
    requests = await prepare(stored)
    request = requests.of(kind)
    async with stored.begin() as session:
        assert await find_replay(session, request) is None
        [first] = await post_transfers(session, [request])
        assert await find_replay(session, request) == first._replace(replayed=True)
        for other in [requests.of(each, amount=7) for each in KINDS if each != "refused"]:
            assert await find_replay(session, other) == TransferResult(refusal=Refusal.KEY_REUSED)


@pytest.mark.parametrize("settling", ["post", "void"])
async def test_a_hold_and_its_settlement_are_replayed_as_they_were_answered(stored: Database, settling: str) -> None:
    requests = await prepare(stored)
    hold = requests.of("hold", key="hold")
    [held] = await _in_one_transaction(stored, [hold])
    names = {"post": "posts", "void": "voids"}
    named: dict[str, Any] = {names[settling]: held.unwrap().id}
    settle = hold._replace(amount=None, pending_seconds=None, key=settling, **named)
    [settled] = await _in_one_transaction(stored, [settle])
    assert settled.unwrap().state == ("posted" if settling == "post" else "voided")
    for batch, expected in (([hold, settle], [held, settled]), ([settle, hold], [settled, held])):
        assert await _as_one_list(stored, batch) == [each._replace(replayed=True) for each in expected]


async def test_a_replayed_line_returns_the_first_answer_next_to_another_line_with_its_key(
    client: httpx.AsyncClient,
) -> None:
    a, b = await make_account(client, 100), await make_account(client)

    async def answers(*lines: dict[str, Any]) -> list[dict[str, Any]]:
        common = {"from_account_id": a["id"], "to_account_id": b["id"], "idempotency_key": KEY}
        body = "\n".join(json.dumps(common | line) for line in lines)
        response = await client.post("/transfers/batch", content=body, headers={"Content-Type": "application/x-ndjson"})
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.iter_lines()]

    hold, other = {"amount": 5, "pending_seconds": 600}, {"amount": 7}
    [first] = await answers(hold)
    assert first["outcome"] == TransferState.PENDING
    for lines in ([hold, other], [other, hold]):
        second = await answers(*lines)
        place = lines.index(hold)
        assert (second[place]["transfer"], second[place]["replayed"]) == (first["transfer"], True)
        assert second[1 - place]["refusal"] == "key_reused"


def test_a_result_is_either_a_transfer_or_a_refusal() -> None:
    for wrong in ((), (None, None, True)):
        with pytest.raises(ValueError, match="pass either transfer or refusal"):
            TransferResult(*wrong)
    assert TransferResult(refusal=Refusal.SAME_ACCOUNT).transfer is None


@pytest.mark.parametrize(("kind", "answer"), [("transfer", "posted"), ("hold", "pending")])
async def test_a_key_whose_transfer_is_missing_is_an_error(stored: Database, kind: str, answer: str) -> None:
    requests = await prepare(stored)
    request = requests.of(kind)
    await _in_one_transaction(stored, [request])
    async with stored.begin() as session:
        await disable_triggers(session)
        await session.execute(update(IdempotencyKey).values(transfer_id=uuid4()))
    with pytest.raises(LookupError, match=f"key 'key' names the {answer} transfer .* doesn't exist: run `shop check`"):
        await _in_one_transaction(stored, [request])
    async with Ledger(stored, workers=1) as ledger:
        others = [requests.of("transfer", key=f"other {number}") for number in range(3)]
        answers = await asyncio.gather(*map(ledger.submit, [*others, request]), return_exceptions=True)
    assert [type(answer) for answer in answers] == [TransferResult] * 3 + [LookupError]


@pytest.mark.parametrize(
    "values",
    [
        {"answer": "posted"},
        {"answer": "posted", "refusal": "same_account"},
        {"answer": "refused", "transfer_id": uuid4()},
        {"answer": "opened", "transfer_id": uuid4()},
        {"answer": "voided", "account_id": uuid4()},
        {"answer": "posted", "transfer_id": uuid4(), "refusal": "same_account"},
        {"answer": "opened", "transfer_id": uuid4(), "account_id": uuid4()},
        {"answer": "guessed", "transfer_id": uuid4()},
    ],
)
async def test_the_database_rejects_an_answer_with_the_wrong_kind(
    session: AsyncSession, values: dict[str, Any]
) -> None:
    with pytest.raises(DatabaseError) as raised:
        await session.execute(
            text("""
                INSERT INTO idempotency_keys
                    (scope, key, fingerprint, created_at, answer, transfer_id, refusal, account_id)
                VALUES ('', 'k', '', now(), :answer, :transfer_id, :refusal, :account_id)
                """),
            {"transfer_id": None, "refusal": None, "account_id": None, **values},
        )
    assert raised.value.constraint in {"ck_idempotency_keys_exactly_one_result", "ck_idempotency_keys_answer_is_known"}
