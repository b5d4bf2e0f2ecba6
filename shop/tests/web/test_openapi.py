"""The OpenAPI description of the HTTP API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from shop.app import create_app
from shop_tests.support.factories import make_user
from shop_tests.support.identity import TEST_SETTINGS


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return create_app("postgresql://unused/", TEST_SETTINGS).openapi()


def operations(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


async def test_the_description_and_its_page_are_served(client: httpx.AsyncClient, description: dict[str, Any]) -> None:
    assert (await client.get("/openapi.json")).json() == description
    page = await client.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "/openapi.json" in page.text


def test_every_documented_route_is_described(description: dict[str, Any]) -> None:
    assert {f"{method} {path}" for method, path, _ in operations(description)} >= {
        "POST /users",
        "GET /users",
        "GET /users/{user_id}",
        "PATCH /users/{user_id}",
        "DELETE /users/{user_id}",
        "POST /users/bulk",
        "GET /users/{user_id}/order-summary",
        "POST /orders",
        "GET /orders",
        "GET /orders/{order_id}",
        "GET /orders/export",
        "PATCH /orders/status",
        "POST /orders/{order_id}/pay",
        "POST /accounts",
        "POST /accounts/batch",
        "GET /accounts/{account_id}",
        "PATCH /accounts/{account_id}",
        "GET /accounts/{account_id}/entries",
        "POST /transfers",
        "GET /transfers/{transfer_id}",
        "POST /transfers/{transfer_id}/reverse",
        "POST /transfers/batch",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }


def test_every_reference_refers_to_a_schema(description: dict[str, Any]) -> None:
    found = set(references(description))
    assert {"#/components/schemas/Problem", "#/components/schemas/UserIn", "#/components/schemas/BatchLineIn"} <= found
    for kind in ("TransferLineIn", "PostingLineIn", "VoidingLineIn", "ReversalLineIn", "PostingIn", "ReversalIn"):
        assert f"#/components/schemas/{kind}" in found
    for reference in found:
        prefix, name = reference.rsplit("/", 1)
        assert prefix == "#/components/schemas"
        assert name in description["components"]["schemas"], reference


def test_the_names_of_schemas_and_operations_are_those_of_generated_clients(description: dict[str, Any]) -> None:
    # FastAPI writes the module into the names of two models with the same name. Generated clients then have both
    # modules in their names, or reject one of the models.
    assert not [name for name in description["components"]["schemas"] if "__" in name]
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_every_operation_has_a_summary_and_a_success_response(description: dict[str, Any]) -> None:
    for method, path, operation in operations(description):
        assert operation["summary"], path
        [success] = [status for status in operation["responses"] if status.startswith("2")]
        assert ("content" in operation["responses"][success]) == (success != "204"), f"{method} {path}"


def test_every_error_response_is_described_as_a_problem(description: dict[str, Any]) -> None:
    for _, path, operation in operations(description):
        errors = {status: each for status, each in operation["responses"].items() if status.startswith(("4", "5"))}
        if path not in ("/healthz", "/metrics"):
            assert "503" in errors
            assert "Retry-After" in errors["503"]["headers"]
        if path == "/auth/token":  # its errors have the shape of RFC 6749
            continue
        # the lines of a batch are rejected one by one, in a response of 200
        if operation.get("parameters") or (operation.get("requestBody") and not path.endswith("/batch")):
            assert "422" in errors
        for error in errors.values():
            assert error["content"] == {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            }
    assert "HTTPValidationError" not in description["components"]["schemas"]


async def test_every_body_has_an_example_that_the_service_accepts(
    client: httpx.AsyncClient, description: dict[str, Any]
) -> None:
    user = await make_user(client)
    for method, path, operation in operations(description):
        if "requestBody" not in operation or "application/json" not in operation["requestBody"]["content"]:
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        body = example_of(schema, description["components"]["schemas"])
        url = re.sub(r"\{user_id\}", user["id"], path)
        url = re.sub(r"\{\w+\}", str(uuid4()), url)
        headers = {} if path == "/users/bulk" else {"If-Match": "*", "Idempotency-Key": str(uuid4())}
        answer = await client.request(method, url, json=body, headers=headers)
        problem = answer.json()["type"].rsplit(":", 1)[1] if answer.status_code >= 400 else None
        # the schema accepts the example; the rows that it refers to don't exist
        # no secret of an example is valid, and the user of the token isn't in the database
        refused = {"invalid-token", "invalid-refresh-token", "sign-in-failed", "role-refused", "not-authenticated"}
        missing = {"foreign-key-violation", "unknown-account", "not-found", "unique-violation"}
        assert problem is None or problem in missing | (refused if path.startswith("/auth/") else set()), (
            path,
            body,
            answer.text,
        )


def example_of(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """An example of the schema, composed of its fields' examples. Fails if a required field has no example."""
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    if "anyOf" in schema:
        return example_of(schema["anyOf"][0], schemas)
    if "default" in schema:
        return schema["default"]
    if schema.get("type") == "array":
        return [example_of(schema["items"], schemas)] * max(1, schema.get("minItems", 1))
    if schema.get("type") == "object":
        required = schema.get("required", ())
        return {
            name: example_of(inner, schemas)
            for name, inner in schema.get("properties", {}).items()
            if name in required or "examples" in inner
        }
    raise AssertionError(f"no example: {schema}")
