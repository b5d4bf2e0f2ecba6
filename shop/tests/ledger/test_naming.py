"""Lines of a batch, and elements of a linked chain, that post, void or reverse an existing transfer."""

from __future__ import annotations

import json
from itertools import count
from random import Random
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import Request
from sqlalchemy import event, func, select
from starlette.types import Message

from howdah import Database
from shop.ledger.group_commit import Ledger
from shop.ledger.http.transfer_batch import BATCH_LINES, post_transfer_lines
from shop.ledger.models import IdempotencyKey
from shop.ledger.requests import TransferRequest
from shop.ledger.transfer_schemas import LinkedIn, PostingIn, VoidingIn
from shop_tests.support.factories import balances, make_account, transfer
from shop_tests.support.funded_accounts import assert_ledger_is_correct, open_accounts
from shop_tests.support.identity import ADMIN
from shop_tests.support.problems import assert_problem

_numbers = count(1)


async def hold(client: httpx.AsyncClient, source: Any, target: Any, amount: int) -> dict[str, Any]:
    body = {"from_account_id": source["id"], "to_account_id": target["id"], "amount": amount, "pending_seconds": 600}
    answer = await client.post("/transfers", json=body, headers={"Idempotency-Key": f"hold-{next(_numbers)}"})
    assert answer.status_code == 201
    pending: dict[str, Any] = answer.json()
    return pending


def transfer_body(source: dict[str, Any], target: dict[str, Any], amount: int, **values: Any) -> dict[str, Any]:
    return {"from_account_id": source["id"], "to_account_id": target["id"], "amount": amount} | values


async def batch(client: httpx.AsyncClient, *lines: dict[str, Any]) -> list[dict[str, Any]]:
    keyed = [{"idempotency_key": f"line-{next(_numbers)}"} | line for line in lines]
    answer = await client.post(
        "/transfers/batch",
        content="\n".join(map(json.dumps, keyed)),
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.iter_lines()]


async def link(client: httpx.AsyncClient, *transfers: dict[str, Any], key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key or str(uuid4())}
    return await client.post("/transfers/linked", json={"transfers": transfers}, headers=headers)


def outcomes_of(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["refusal"] or answer["outcome"] for answer in answers]


async def test_lines_post_void_and_reverse(client: httpx.AsyncClient, stored: Database) -> None:
    a, b = await make_account(client, 1_000), await make_account(client)
    whole, part, voided = [await hold(client, a, b, 100) for _ in range(3)]
    plain, other = await transfer(client, a, b, 50), await transfer(client, a, b, 60)
    at = other["effective_at"]
    answers = await batch(
        client,
        {"posts": whole["id"]},
        {"posts": part["id"], "amount": 70},
        {"voids": voided["id"]},
        {"reverses": plain["id"], "amount": 20},
        {"reverses": plain["id"]},
        {"reverses": other["id"], "description": "wrong date", "effective_at": at},
        {"reverses": whole["id"], "amount": 1},  # which this batch has posted
    )
    assert outcomes_of(answers) == ["posted", "posted", "voided", *["posted"] * 4]
    transfers = [answer["transfer"] for answer in answers]
    assert [each["amount"] for each in transfers] == [100, 70, 100, 20, 30, 60, 1]
    assert [each["id"] for each in transfers[:3]] == [whole["id"], part["id"], voided["id"]]
    assert [each["reversed_total"] for each in transfers[3:]] == [20, 50, 60, 1]
    assert [each["description"] for each in transfers[4:6]] == [f"reversal of {plain['id']}", "wrong date"]
    assert transfers[5]["effective_at"] == at
    for each in transfers:
        now = (await client.get(f"/transfers/{each['id']}")).json()
        assert now | {"reversed_amount": 0} == each  # some were reversed by a later line
    assert await balances(client, a, b) == [831, 169]
    await assert_ledger_is_correct(stored)


async def test_a_line_can_spend_what_an_earlier_line_released(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    held = await hold(client, a, b, 80)
    answers = await batch(client, transfer_body(a, b, 90), {"voids": held["id"]}, transfer_body(a, b, 90))
    assert outcomes_of(answers) == ["insufficient_funds", "voided", "posted"]
    posted_id = answers[2]["transfer"]["id"]
    answers = await batch(client, transfer_body(a, b, 90), {"reverses": posted_id}, transfer_body(a, b, 91))
    assert outcomes_of(answers) == ["insufficient_funds", "posted", "posted"]


async def test_a_batch_and_a_chain_have_the_refusals_of_the_single_routes(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 1_000), await make_account(client)
    held, posted, voided = [await hold(client, a, b, 100) for _ in range(3)]
    plain, reversed_transfer = await transfer(client, a, b, 50), await transfer(client, a, b, 50)
    settled = await batch(
        client, {"posts": posted["id"]}, {"voids": voided["id"]}, {"reverses": reversed_transfer["id"]}
    )
    assert outcomes_of(settled) == ["posted", "voided", "posted"]
    refused: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
        ("post", posted, {}, "already_posted"),
        ("void", posted, {}, "already_posted"),
        ("post", voided, {}, "already_voided"),
        ("void", voided, {}, "already_voided"),
        ("void", plain, {}, "already_posted"),
        ("post", plain, {"amount": 1}, "already_posted"),
        ("post", held, {"amount": 101}, "exceeds_held_amount"),
        ("reverse", held, {}, "not_posted"),
        ("reverse", voided, {"amount": 5}, "not_posted"),
        ("reverse", plain, {"effective_at": "2000-01-01T00:00:00Z"}, "reversal_before_original"),
        ("reverse", plain, {"amount": 51}, "exceeds_reversible_amount"),
        ("reverse", reversed_transfer, {}, "already_reversed"),
    ]
    names = {"post": "posts", "void": "voids", "reverse": "reverses"}
    lines = [{names[how]: named["id"]} | body for how, named, body, _ in refused]
    assert outcomes_of(await batch(client, *lines)) == [refusal for *_, refusal in refused]
    for (how, named, body, refusal), line in zip(refused, lines, strict=True):
        code, headers = refusal.replace("_", "-"), {"Idempotency-Key": str(uuid4())}
        assert_problem(await client.post(f"/transfers/{named['id']}/{how}", json=body, headers=headers), 409, code)
        assert_problem(await link(client, transfer_body(a, b, 1), line), 409, code, index=1)
    assert await balances(client, a, b) == [850, 150]


async def test_a_line_with_an_unknown_transfer_is_invalid_and_uses_no_key(
    client: httpx.AsyncClient, stored: Database
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    unknown = str(uuid4())
    names = ("posts", "voids", "reverses")
    lines = [{name: unknown, "idempotency_key": f"no-{name}"} for name in names]
    answers = await batch(client, transfer_body(a, b, 1), *lines, transfer_body(a, b, 1))
    assert outcomes_of(answers) == ["posted", "invalid", "invalid", "invalid", "posted"]
    for answer in answers[1:4]:
        assert answer["detail"] == f"no Transfer with key {unknown}"
    response = await client.post(f"/transfers/{unknown}/void", headers={"Idempotency-Key": "k"})
    assert (response.status_code, response.json()["detail"]) == (404, f"no Transfer with key {unknown}")
    async with stored.session() as session:
        used = select(func.count()).select_from(IdempotencyKey).where(IdempotencyKey.key.like("no-%"))
        assert await session.scalar(used) == 0
    again = await batch(client, *(transfer_body(a, b, 1, idempotency_key=f"no-{name}") for name in names))
    assert outcomes_of(again) == ["posted"] * 3


async def test_a_chain_with_an_unknown_transfer_is_not_posted(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    held, unknown = await hold(client, a, b, 5), {"voids": str(uuid4())}
    answers = await batch(
        client,
        transfer_body(a, b, 1),
        transfer_body(a, b, 1, linked=True),
        {"posts": held["id"], "linked": True},
        unknown | {"linked": True},
        unknown,
        transfer_body(a, b, 1),
        unknown,
        transfer_body(a, b, 1, linked=True),
        {"posts": held["id"]},
    )
    assert outcomes_of(answers) == ["posted", *["invalid"] * 4, "posted", "invalid", "posted", "posted"]
    assert ["linked" in (answer["detail"] or "") for answer in answers[1:5]] == [True, True, False, False]
    assert await balances(client, a, b) == [92, 8]
    answer = await link(client, transfer_body(a, b, 1), unknown, key="k")
    assert_problem(answer, 404, "not-found")
    assert (await link(client, transfer_body(a, b, 1), transfer_body(a, b, 1), key="k")).status_code == 201


async def test_a_chain_of_postings_voids_and_reversals_is_all_or_nothing(
    client: httpx.AsyncClient, stored: Database
) -> None:
    a, b, c = await make_account(client, 100), await make_account(client), await make_account(client)
    first, second = await hold(client, a, b, 60), await hold(client, a, b, 40)
    plain = {"reverses": (await transfer(client, await make_account(client, 9), a, 9))["id"]}
    refused = await batch(
        client,
        {"posts": first["id"], "linked": True},
        {"voids": second["id"], "linked": True},
        plain | {"linked": True},
        transfer_body(b, c, 61),
    )
    assert outcomes_of(refused) == [*["linked_transfer_failed"] * 3, "insufficient_funds"]
    assert [(await client.get(f"/transfers/{each['id']}")).json()["state"] for each in (first, second)] == [
        "pending",
        "pending",
    ]
    assert_problem(
        await link(client, {"posts": first["id"]}, {"voids": second["id"]}, plain, transfer_body(b, c, 61)),
        409,
        "insufficient-funds",
        index=3,
    )
    answers = [
        await link(
            client,
            {"posts": first["id"], "amount": 50},
            {"voids": second["id"]},
            plain,
            transfer_body(b, c, 50),
            key="k",
        )
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    states = [each["state"] for each in answers[0].json()["transfers"]]
    assert states == ["posted", "voided", "posted", "posted"]
    assert await balances(client, a, b, c) == [50, 0, 50]
    await assert_ledger_is_correct(stored)


async def test_a_replayed_line_returns_the_first_answer_after_later_changes(
    client: httpx.AsyncClient, stored: Database
) -> None:
    a, b = await make_account(client, 1_000), await make_account(client)
    one, two, three = [await hold(client, a, b, 100) for _ in range(3)]
    plain = await transfer(client, a, b, 50)
    lines = [
        {"posts": one["id"], "amount": 101, "idempotency_key": "too-much"},
        {"posts": one["id"], "amount": 60, "idempotency_key": "post"},
        {"voids": two["id"], "idempotency_key": "void"},
        {"reverses": three["id"], "idempotency_key": "not-yet"},
        {"reverses": plain["id"], "amount": 10, "idempotency_key": "part"},
    ]
    first = await batch(client, *lines)
    assert outcomes_of(first) == ["exceeds_held_amount", "posted", "voided", "not_posted", "posted"]
    between = await batch(
        client,
        {"posts": three["id"]},
        {"reverses": plain["id"]},
        {"reverses": one["id"]},
        {"voids": two["id"]},
    )
    assert outcomes_of(between) == ["posted", "posted", "posted", "already_voided"]
    assert await batch(client, *lines) == [answer | {"replayed": True} for answer in first]
    changed = [line | ({"description": "d"} if "reverses" in line else {"posts": three["id"]}) for line in lines]
    changed = [{name: value for name, value in line.items() if name != "voids"} for line in changed]
    assert outcomes_of(await batch(client, *changed)) == ["key_reused"] * 5
    await assert_ledger_is_correct(stored)


async def test_a_key_of_a_line_is_replayed_by_the_single_route(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 1_000), await make_account(client)
    one, two, plain = await hold(client, a, b, 10), await hold(client, a, b, 10), await transfer(client, a, b, 5)
    pairs: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("posts", "post", one, {"amount": 7}),
        ("voids", "void", two, {}),
        ("reverses", "reverse", plain, {"amount": 3, "effective_at": "2999-01-01T00:00:00Z"}),
    ]
    for name, how, named, body in pairs:
        line = {name: named["id"], "idempotency_key": how} | body
        [answer] = await batch(client, line)
        alone = await client.post(f"/transfers/{named['id']}/{how}", json=body, headers={"Idempotency-Key": how})
        assert (alone.status_code, alone.json(), answer["replayed"]) == (201, answer["transfer"], False)
        assert alone.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"from_account_id": str(uuid4())}, "posts and from_account_id can't be sent together"),
        (
            {"to_account_id": str(uuid4()), "pending_seconds": 5},
            "posts and to_account_id, pending_seconds can't be sent together: with posts, send at most amount",
        ),
        ({"voids": str(uuid4())}, "posts and voids can't be sent together"),
        ({"reverses": None}, "posts and reverses can't be sent together"),
        ({"description": "d"}, "posts and description can't be sent together"),
        ({"amount": 0}, "amount: Input should be greater than or equal to 1"),
        ({"amount": "1"}, "amount: Input should be a valid integer"),
        ({"posts": "1"}, "posts: Input should be a valid UUID"),
        ({"posts": None}, "posts: UUID input should be a string"),
        ({"unknown": 1}, "unknown: Extra inputs are not permitted"),
    ],
)
async def test_the_error_of_an_element_lists_the_fields_that_exclude_each_other(
    client: httpx.AsyncClient, extra: dict[str, Any], expected: str
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    wrong = {"posts": str(uuid4())} | extra
    answers = await batch(client, transfer_body(a, b, 1), wrong, transfer_body(a, b, 1))
    assert outcomes_of(answers) == ["posted", "invalid", "posted"]
    assert answers[1]["detail"].startswith(expected)
    answer = await link(client, transfer_body(a, b, 1), wrong)
    assert_problem(answer, 422, "validation")
    [error] = answer.json()["errors"]
    place, _, message = (
        expected.rpartition(": ")
        if ": Input" in expected or ": UUID" in expected or ": Extra" in expected
        else ("", "", expected)
    )
    assert error["loc"] == ["body", "transfers", 1, *([place] if place else [])]
    assert error["msg"].startswith(message)


def test_elements_that_are_already_models_are_kept() -> None:
    elements = [VoidingIn(voids=uuid4()), PostingIn(posts=uuid4(), amount=1)]
    assert LinkedIn(transfers=elements).transfers == elements


@pytest.mark.parametrize("name", ["voids", "reverses"])
async def test_the_error_of_a_void_or_reversal_lists_the_excluded_field(client: httpx.AsyncClient, name: str) -> None:
    exclusions: dict[str, dict[str, Any]] = {"voids": {"amount": 1}, "reverses": {"metadata": {"a": "b"}}}
    excluded = exclusions[name]
    [answer] = await batch(client, {name: str(uuid4())} | excluded)
    assert answer["detail"].startswith(f"{name} and {next(iter(excluded))} can't be sent together")


def make_request(*lines: dict[str, Any]) -> Request:
    """A request whose body is these lines."""
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "headers": [(b"content-type", b"application/x-ndjson")]}, receive)


async def test_the_transfers_of_a_batch_of_lines_are_looked_up_by_one_statement(stored: Database) -> None:
    a, b = await open_accounts(stored, 10_000, 0)
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    async with Ledger(stored) as ledger, stored.session(read_only=True) as session:
        holds = [TransferRequest(a, b, 1, pending_seconds=60)] * (2 * BATCH_LINES)
        ids: list[UUID] = [result.unwrap().id for result in await ledger.submit_many(holds)]
        lines = [
            {"posts" if number % 2 else "voids": str(id_), "idempotency_key": str(id_)}
            for number, id_ in enumerate(ids)
        ]
        event.listen(stored.engine.sync_engine, "before_cursor_execute", note)
        try:
            answers = await post_transfer_lines(make_request(*lines), session, ledger, ADMIN)
        finally:
            event.remove(stored.engine.sync_engine, "before_cursor_execute", note)
        body = b"".join([part async for part in answers.body_iterator if isinstance(part, bytes)])
    outcomes = [json.loads(line)["outcome"] for line in body.splitlines()]
    assert outcomes == ["voided", "posted"] * BATCH_LINES
    assert sum("UNION ALL" in each and "pending_transfers" in each for each in statements) == 2
    assert len(statements) < 40
    await assert_ledger_is_correct(stored)


async def create_accounts_and_transfers(client: httpx.AsyncClient) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Create three accounts, and transfers between them. Half of the transfers are pending."""
    accounts = [await make_account(client, 200) for _ in range(3)]
    pairs = [(source, target) for source in accounts for target in accounts if source is not target]
    holds = [await hold(client, source, target, 20) for source, target in pairs]
    return accounts, holds + [await transfer(client, source, target, 20) for source, target in pairs]


@pytest.mark.parametrize("seed", range(3))
async def test_a_batch_has_the_same_outcomes_as_the_single_routes(
    client: httpx.AsyncClient, stored: Database, seed: int
) -> None:
    """The same random lines are sent as a batch and as single requests, on accounts with the same balances."""
    dice = Random(seed)
    chosen = [
        (dice.choice(("move", "move", "posts", "voids", "reverses")), dice.sample(range(3), 2), dice.randrange(12))
        for _ in range(100)
    ]
    amounts = [dice.choice((None, 1, 7, 20, 21, 150)) for _ in chosen]
    answers: list[list[tuple[str, int | None]]] = []
    for in_batch in (True, False):
        accounts, transfers = await create_accounts_and_transfers(client)
        lines: list[dict[str, Any]] = []
        paths: list[str] = []
        for (what, (source, target), which), amount in zip(chosen, amounts, strict=True):
            if what == "move":
                lines.append(transfer_body(accounts[source], accounts[target], amount or 5))
                paths.append("/transfers")
            else:
                part = {} if amount is None or what == "voids" else {"amount": amount}
                lines.append({what: transfers[which]["id"]} | part)
                paths.append(f"/transfers/{transfers[which]['id']}/{what.removesuffix('s')}")
        if in_batch:
            outcomes = await batch(client, *lines)
            answers.append([(outcomes_of([each])[0], (each["transfer"] or {}).get("amount")) for each in outcomes])
            continue
        alone: list[tuple[str, int | None]] = []
        for path, line in zip(paths, lines, strict=True):
            body = {name: value for name, value in line.items() if name not in ("posts", "voids", "reverses")}
            answer = await client.post(path, json=body, headers={"Idempotency-Key": str(uuid4())})
            content = answer.json()
            problem = content.get("type", "").rpartition(":")[2].replace("-", "_")
            alone.append((content["state"], content["amount"]) if answer.status_code == 201 else (problem, None))
        answers.append(alone)
    assert answers[0] == answers[1]
    assert len({outcome for outcome, _ in answers[0]}) > 6
    await assert_ledger_is_correct(stored)
