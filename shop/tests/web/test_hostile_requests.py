"""Hostile requests are rejected with a problem response, and never cause an internal error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shop.app import create_app
from shop_tests.support.factories import make_account, make_order, make_user, transfer
from shop_tests.support.identity import TEST_SETTINGS

DESCRIBED = create_app("postgresql://unused/", TEST_SETTINGS).openapi()
JSON, NDJSON = "application/json", "application/x-ndjson"


def operations() -> Iterator[Any]:
    for path, methods in DESCRIBED["paths"].items():
        for method, operation in methods.items():
            yield pytest.param(method.upper(), path, operation, id=f"{method.upper()} {path}")


def operations_with_a_body() -> list[Any]:
    return [each for each in operations() if "requestBody" in each.values[2]]


def assert_no_internal_error(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400 and response.content and response.url.path != "/auth/token":  # RFC 6749
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["type"].startswith("urn:howdah:problem:")


def url_of(path: str, value: object = None) -> str:
    for name in ("user_id", "order_id", "account_id", "transfer_id", "session_id", "key_id"):
        path = path.replace(f"{{{name}}}", str(value or uuid4()))
    return path


BODIES = [
    pytest.param(b"", id="an empty body"),
    pytest.param(b"{", id="broken"),
    pytest.param(b"[" * 100_000, id="deep and broken"),
    pytest.param(b"[" * 500 + b"]" * 500, id="deep"),
    pytest.param(b'{"a":' * 300 + b"1" + b"}" * 300, id="deep objects"),
    pytest.param(b"NaN", id="NaN"),
    pytest.param(b'{"amount": NaN, "quantity": Infinity, "name": -Infinity}', id="NaN inside"),
    pytest.param(b"9" * 5_000, id="a huge number"),
    pytest.param(b'{"amount": 1e999999, "name": ' + b"9" * 5_000 + b"}", id="huge numbers inside"),
    pytest.param(rb'"\ud800"', id="half a surrogate pair"),
    pytest.param(
        rb'{"\ud800": "\udfff", "name": "\ud800", "email": "\ud800@\udc00.com"}', id="half surrogate pairs inside"
    ),
    pytest.param(rb'{"\u0000": "\u0000", "name": "\u0000"}', id="NUL"),
    pytest.param(b'{"name": "\x00"}', id="raw NUL"),
    pytest.param(b"\xff\xfe\x00", id="not UTF-8"),
    pytest.param('{"name": "Ada"}'.encode("utf-16"), id="UTF-16"),
    pytest.param(b'\xef\xbb\xbf{"name": "Ada"}', id="a byte order mark"),
    pytest.param(b"null", id="null"),
    pytest.param(b"true", id="true"),
    pytest.param(b'{"__proto__": {}, "__class__": "x", "": 1}', id="unusual names"),
    pytest.param(b'{"name": "a", "name": "b"}', id="a duplicate name"),
    pytest.param(b"[" + b"{}," * 5_000 + b"{}]", id="many faults"),
]


@pytest.mark.parametrize("body", BODIES)
async def test_a_hostile_body_is_rejected(client: httpx.AsyncClient, body: bytes) -> None:
    headers = {"If-Match": "*", "Idempotency-Key": "k"}
    for parameter in operations_with_a_body():
        method, path, _ = parameter.values
        for kind in (JSON, NDJSON, "text/plain"):
            response = await client.request(
                method, url_of(path), content=body, headers=headers | {"Content-Type": kind}
            )
            assert_no_internal_error(response)
            if path not in (
                "/transfers/batch",
                "/accounts/batch",
            ):  # their response is 200, with an outcome for each line
                assert response.status_code in (400, 404, 415, 422) or (body == b"" and path == "/users/bulk")


@pytest.mark.parametrize(
    "value", ["1", "x" * 5_000, "%00", "%ff", "%ed%a0%80", "..%2f..", "null", "%F0%9F%98%80", "{id}", "0" * 32 + "0"]
)
async def test_a_hostile_path_is_rejected(client: httpx.AsyncClient, value: str) -> None:
    for parameter in operations():
        method, path, _ = parameter.values
        if "{" in path:
            headers = {"If-Match": "*", "Idempotency-Key": "k"}
            response = await client.request(method, url_of(path, value), headers=headers)
            assert_no_internal_error(response)
            assert response.status_code in (404, 405, 422), path


@pytest.mark.parametrize(
    "value",
    [
        "",
        "%00",
        "%ff",
        "%ed%a0%80",
        "9" * 5_000,
        "-1",
        "1e400",
        "nan",
        "true",
        "null",
        "[]",
        "x" * 5_000,
        "%F0%9F%98%80",
    ],
)
async def test_a_hostile_query_is_no_internal_error(client: httpx.AsyncClient, value: str) -> None:
    for parameter in operations():
        method, path, operation = parameter.values
        named = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
        for name in named:
            response = await client.request(method, f"{url_of(path)}?{name}={value}")
            assert_no_internal_error(response)
            response = await client.request(method, f"{url_of(path)}?{name}={value}&{name}={value}")
            assert_no_internal_error(response)


async def test_an_unknown_query_parameter_of_a_list_is_rejected(client: httpx.AsyncClient) -> None:
    paths = ("/users", "/orders", "/orders/export", f"/accounts/{uuid4()}/entries")
    for path in paths:
        response = await client.get(path, params={"nonsense": 1})
        assert (response.status_code, response.json()["type"]) == (422, "urn:howdah:problem:validation")


@pytest_asyncio.fixture
async def existing(client: httpx.AsyncClient) -> dict[str, str]:
    """Ids of existing rows, by the name of the path parameter."""
    user, poor = await make_user(client), await make_account(client)
    order, rich = await make_order(client, user["id"]), await make_account(client, 2**40)
    posted = await transfer(client, rich, poor, 1)
    created = {"user_id": user, "order_id": order, "account_id": rich, "other_account_id": poor, "transfer_id": posted}
    none = {"session_id": str(uuid4()), "key_id": str(uuid4())}
    return {name: each["id"] for name, each in created.items()} | none


WITH_INPUT = [
    pytest.param(each.values, id=each.id)
    for each in operations()
    if {"parameters", "requestBody"} & each.values[2].keys()
]


@pytest.fixture
def values(existing: dict[str, str]) -> _Values:
    return _Values(list(existing.values()))


@pytest.mark.parametrize("route", WITH_INPUT)
@settings(max_examples=settings().max_examples // 6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_no_nearly_valid_request_is_an_internal_error(
    client: httpx.AsyncClient,
    existing: dict[str, str],
    values: _Values,
    route: tuple[str, str, dict[str, Any]],
    data: st.DataObject,
) -> None:
    method, path, operation = route
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path" or not (parameter.get("required") or data.draw(st.booleans())):
            continue
        value = data.draw(values.about(parameter["schema"]), label=parameter["name"])
        if parameter.get("style") == "deepObject" and isinstance(value, dict):
            query |= {_as_text(f"{parameter['name']}[{name}]"): _as_text(each) for name, each in value.items()}
            continue
        text = _as_text(value)
        if parameter["in"] == "query":
            query[parameter["name"]] = text
        else:
            headers[parameter["name"]] = "".join(each for each in text if each.isprintable()).strip()
    contents = operation.get("requestBody", {}).get("content", {})
    content = None
    if contents:
        headers["Content-Type"] = kind = data.draw(st.sampled_from(sorted(contents)), label="type")
        bodies = st.lists(values.about(contents[kind]["schema"]), min_size=1, max_size=1 if kind == JSON else 3)
        content = "\n".join(json.dumps(body) for body in data.draw(bodies, label="body")).encode()
    url = url_of(path.format_map(existing) if data.draw(st.integers(0, 4), label="id") else path)
    encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    assert_no_internal_error(await client.request(method, url, params=query, headers=encoded, content=content))


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


class _Values:
    """Values for the schemas of the OpenAPI description. Some of the UUIDs are these ids.

    Each strategy is built once. Otherwise Hypothesis would validate a new one for each example.
    """

    def __init__(self, ids: list[str]) -> None:
        self._ids = ids
        self._near_values: dict[str, st.SearchStrategy[Any]] = {}
        self._values: dict[str, st.SearchStrategy[Any]] = {}

    def about(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        """In 19 of 20 cases a value of the schema or just out of its range, otherwise any JSON value."""
        key, near = json.dumps(schema), self._near(schema)
        if key not in self._values:
            self._values[key] = st.integers(0, 19).flatmap(lambda dice: near if dice else ANY_JSON)
        return self._values[key]

    def _near(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        key = json.dumps(schema)
        if key not in self._near_values:
            self._near_values[key] = self._build(schema)
        return self._near_values[key]

    def _build(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        if "$ref" in schema:
            named = DESCRIBED["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
            return st.deferred(lambda: self._near(named))
        if "anyOf" in schema:
            return st.one_of([self._near(each) for each in schema["anyOf"]])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        match schema.get("type"):
            case "null":
                return st.none()
            case "boolean":
                return st.booleans()
            case "integer":
                low, high = schema.get("minimum", -(2**65)), schema.get("maximum", 2**65)
                return st.integers(low, high) | st.sampled_from([low - 1, low, high, high + 1])
            case "array":
                return st.lists(self.about(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
            case "object" if "properties" not in schema:
                [values] = schema["patternProperties"].values()
                names = self.about({"type": "string"} | schema["propertyNames"]).filter(
                    lambda name: isinstance(name, str)
                )
                return st.dictionaries(names, self.about(values), max_size=3)
            case "object":
                fields = {name: self.about(inner) for name, inner in schema["properties"].items()}
                required = {name: fields.pop(name) for name in schema.get("required", ())}
                return st.fixed_dictionaries(required, optional=fields)
        match schema.get("format"):
            case "uuid":
                return st.sampled_from(self._ids) | st.uuids().map(str)
            case "date-time":
                return st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat())
            case "email":
                return st.emails()
        text = st.text(min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 50))
        return st.sampled_from(schema["examples"]) | text if "examples" in schema else text
