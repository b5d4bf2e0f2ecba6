"""Times in requests: RFC 3339 with an offset, on every route."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

import shop.ledger.account_schemas
import shop.ledger.transfer_schemas
import shop.orders.schemas
import shop.users.schemas
from shop.app import create_app
from shop.web.fields import Moment
from shop_tests.support.factories import make_account
from shop_tests.support.identity import TEST_SETTINGS

DESCRIBED = create_app("postgresql://unused/", TEST_SETTINGS).openapi()
NDJSON = {"Content-Type": "application/x-ndjson"}

NOT_A_TIME = [
    "20240101",
    "1700000000",
    "1.7e9",
    "2024-01-01",
    "2024-01-01T00:00:00",
    "2024-01-01 00:00:00Z",
    "2024-01-01T00:00Z",
    "2024-W01-1T00:00:00Z",
    "2024-01-01T00:00:00.1234567Z",
    "2016-12-31T23:59:60Z",
    "2024-01-01T00:00:00Zjunk",
    " 2024-01-01T00:00:00Z",
    "true",
    "",
]
OUT_OF_RANGE = [
    "0001-01-01T23:59:59Z",
    "9999-12-30T00:00:01Z",
    "9999-12-31T23:59:59+23:59",
    "0001-01-01T00:00:00+23:59",
]


def query_times() -> Iterator[Any]:
    for path, methods in DESCRIBED["paths"].items():
        for parameter in methods.get("get", {}).get("parameters", ()):
            if parameter["in"] == "query" and "date-time" in json.dumps(parameter["schema"]):
                yield pytest.param(path.format(account_id=uuid4()), parameter["name"], id=f"{path} {parameter['name']}")


def input_times() -> Iterator[Any]:
    """Each field of a request model that is a time."""
    for module in (
        shop.ledger.account_schemas,
        shop.orders.schemas,
        shop.ledger.transfer_schemas,
        shop.users.schemas,
    ):
        for model in vars(module).values():
            if isinstance(model, type) and issubclass(model, BaseModel) and not model.__name__.endswith("Out"):
                for name, field in model.model_fields.items():
                    times: TypeAdapter[Any] = TypeAdapter(Annotated[(field.annotation, *field.metadata, field)])  # type: ignore[arg-type]
                    schema = times.json_schema()
                    if "date-time" in json.dumps(schema) and "$defs" not in schema:
                        yield pytest.param(times, id=f"{model.__name__}.{name}")


def test_the_times_of_all_routes_are_tested() -> None:
    assert {each.id for each in query_times()} >= {
        "/accounts/{account_id}/balance at",
        "/accounts/{account_id}/balance effective_at",
        "/orders placed_from",
        "/orders placed_before",
        "/orders/export placed_from",
        "/orders/export placed_before",
        "/users created_from",
        "/users created_before",
    }
    found = {each.id for each in input_times()}
    assert found >= {"TransferIn.effective_at", "TransferLineIn.effective_at", "ReversalLineIn.effective_at"}


@pytest.mark.parametrize("times", list(input_times()))
def test_no_field_of_a_request_accepts_an_ambiguous_time(times: TypeAdapter[Any]) -> None:
    for value in (*NOT_A_TIME, 1700000000, 1.7e9, True):
        with pytest.raises(ValidationError):
            times.validate_python(value)
        with pytest.raises(ValidationError):
            times.validate_json(json.dumps(value))
    assert times.validate_python("2024-01-01T01:00:00+01:00") == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("path", "name"), list(query_times()))
async def test_no_query_parameter_accepts_an_ambiguous_time(client: httpx.AsyncClient, path: str, name: str) -> None:
    for value in (*NOT_A_TIME, "2024-01-01T00:00:00+01:00"):
        response = await client.get(f"{path}?{name}={quote(value, safe='+')}")
        assert response.status_code == 422, value
        assert response.json()["errors"][0]["loc"] == ["query", name]
        assert ("write + as %2B in a URL" in response.text) == ("+" in value)
    response = await client.get(path, params={name: "2024-01-01T00:00:00.5+01:00"})
    assert response.status_code in (200, 404)


async def test_no_body_accepts_an_ambiguous_time(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    valid = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1}
    for value in (*NOT_A_TIME, *OUT_OF_RANGE, 1700000000, 1.7e9, True, ["2024-01-01T00:00:00Z"]):
        body = valid | {"effective_at": value}
        key = {"Idempotency-Key": str(uuid4())}
        alone = await client.post("/transfers", json=body, headers=key)
        linked = await client.post("/transfers/linked", json={"transfers": [valid, body]}, headers=key)
        lines = json.dumps(body | {"idempotency_key": str(uuid4())}).encode()
        batch = await client.post("/transfers/batch", content=lines, headers=NDJSON)
        assert (alone.status_code, alone.json()["errors"][0]["loc"]) == (422, ["body", "effective_at"])
        assert (linked.status_code, linked.json()["errors"][0]["loc"]) == (
            422,
            ["body", "transfers", 1, "effective_at"],
        )
        assert batch.json()["outcome"] == "invalid"
        assert batch.json()["detail"].startswith("effective_at: ")
    assert (await client.get(f"/accounts/{a['id']}")).json()["balance"] == 100


@pytest.mark.parametrize(
    "value", ["2024-01-01T00:00:00Z", "2024-01-01t05:30:00.000000+05:30", "2024-01-01T00:00:00-00:00"]
)
async def test_a_time_with_an_offset_is_stored_as_that_moment(client: httpx.AsyncClient, value: str) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1, "effective_at": value}
    response = await client.post("/transfers", json=body, headers={"Idempotency-Key": str(uuid4())})
    assert response.json()["effective_at"] == "2024-01-01T00:00:00Z"
    for at, balance in (("2023-12-31T23:59:59.999999Z", 0), (value, 1)):
        found = await client.get(f"/accounts/{b['id']}/balance", params={"effective_at": at})
        assert found.json()["balance"] == balance


async def test_a_retry_with_the_same_moment_written_differently_is_a_replay(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1}
    spelled = [{"effective_at": each} for each in ("2024-01-01T00:00:00Z", "2024-01-01T01:00:00.0+01:00")]
    first, second = [
        await client.post("/transfers", json=body | each, headers={"Idempotency-Key": "k"}) for each in spelled
    ]
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"


def test_a_moment_is_within_the_limits_and_in_utc() -> None:
    moment: TypeAdapter[datetime] = TypeAdapter(Moment)
    for text in ("0001-01-02T00:00:00Z", "9999-12-30T00:00:00Z"):
        assert moment.validate_python(text).isoformat() == text.replace("Z", "+00:00")
    assert moment.validate_python("2024-06-01T12:00:00+02:00").utcoffset() == datetime.now(UTC).utcoffset()
    for text in OUT_OF_RANGE:
        with pytest.raises(ValidationError, match="from 0001-01-02 to 9999-12-30"):
            moment.validate_python(text)


@pytest.mark.parametrize("value", ["1.0", "+1", " 1", "1_0", "1e1"])
@pytest.mark.parametrize(
    "path",
    ["/accounts/{id}/balance?entry_number=", "/orders?total_from=", "/orders/export?total_to=", "/transfers?limit="],
)
async def test_an_integer_parameter_accepts_only_decimal_digits(
    client: httpx.AsyncClient, path: str, value: str
) -> None:
    response = await client.get(path.format(id=uuid4()) + quote(value))
    assert response.status_code == 422
    assert response.json()["errors"][0]["type"] == "decimal_integer"
