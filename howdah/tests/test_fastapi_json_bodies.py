"""Strict JSON in requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter, Depends, FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from howdah.fastapi import InvalidJSON, StrictJSONRoute, parse_json
from howdah_tests.support.fastapi_apps import create_bare_app, http_client

JSON = {"Content-Type": "application/json"}


def error_of(content: bytes) -> InvalidJSON:
    with pytest.raises(InvalidJSON) as caught:
        parse_json(content)
    return caught.value


@pytest.mark.parametrize(
    ("content", "loc"),
    [
        (b'{"a": 1, "a": 1}', ("a",)),
        (rb'{"a": 1, "\u0061": 2}', ("a",)),
        (rb'{"\u0061": 1, "\u0061": 2}', ("a",)),
        (b'{"": 1, "": 2}', ("",)),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', ("a", "b")),
        (b'[1, {"a": [{}, {"b": [], "b": {}}]}]', (1, "a", 1, "b")),
        (b'{"a": {"b": 1, "b": 2}, "a": 3}', ("a",)),
        (b'[{"a": 0}, {"x": {"y": 1, "y": 2}}, {"z": 1, "z": 2}]', (1, "x", "y")),
        ('{"\u00e9": 1, "\\u00e9": 2}'.encode(), ("\u00e9",)),
        (rb'{"\ud800": 1, "\ud800": 2}', ("\ufffd",)),
        (rb'{"\ud800": {"a": 1, "a": 2}}', ("\ufffd", "a")),
        (b'{"a\\n": 1, "a\\n": 2}', ("a\ufffd",)),
        (b'{"a":' * 200 + b'{"b": 1, "b": 2}' + b"}" * 200, ("a",) * 200 + ("b",)),
    ],
)
def test_a_duplicate_name_is_rejected_with_its_location(content: bytes, loc: tuple[str | int, ...]) -> None:
    error = error_of(content)
    assert (error.code, error.loc) == ("json_duplicate_name", loc)
    assert f"'{loc[-1]}' occurs more than once" in str(error)


def test_a_long_name_is_shortened_in_the_message() -> None:
    name = "x" * 50_000
    error = error_of(f'{{"{name}": 1, "{name}": 2}}'.encode())
    assert len(str(error)) < 200
    assert error.loc == ("x" * 100,)


def test_names_that_differ_only_in_their_unicode_form_are_two_names() -> None:
    assert len(parse_json('{"\u00e9": 1, "e\u0301": 2}'.encode())) == 2


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"NaN", "json_invalid"),
        (b'{"a": [Infinity]}', "json_invalid"),
        (b"-Infinity", "json_invalid"),
        (b"1e999", "json_invalid"),
        (b"[-1e999]", "json_invalid"),
        (b"", "json_invalid"),
        (b"{", "json_invalid"),
        (b'{"a": 1, "a": 2', "json_invalid"),
        (b'[{"a": 1, "a": 2}, ]', "json_invalid"),
        (b'[{"a": 1, "a": 2}, ' + b"[" * 100_000, "json_depth"),
        (b'[{"a": 1, "a": 2}, ' + b"9" * 5_000 + b"]", "json_number"),
        (b'{"a": NaN, "a": 1}', "json_invalid"),
        (b"{'a': 1}", "json_invalid"),
        (b"[1,]", "json_invalid"),
        (b"01", "json_invalid"),
        (b'"\n"', "json_invalid"),
        (b"1 2", "json_invalid"),
        (b"\x00", "json_invalid"),
        (rb'"\ud800"', "json_surrogate"),
        (rb'{"\uDFFF": 1}', "json_surrogate"),
        (rb'"\udc00\ud800"', "json_surrogate"),
        (b'"\xed\xa0\x80"', "json_encoding"),
        (b"\xff", "json_encoding"),
        ("{}".encode("utf-16"), "json_encoding"),
        ('{"a": 1}'.encode("utf-16-le"), "json_invalid"),
        ("{}".encode("utf-32"), "json_encoding"),
        (b"[" * 100_000, "json_depth"),
        (b'{"a":' * 100_000, "json_depth"),
        (b"9" * 5_000, "json_number"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_json_without_a_single_meaning_is_rejected(content: bytes, code: str) -> None:
    assert error_of(content).code == code


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        " [1, 2.5, -0, 1e2, true, null] ",
        r'"\ud83d\ude00"',
        r'"\\ud800"',
        '{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}',
    ],
)
def test_valid_json_has_the_value_of_the_standard_library(text: str) -> None:
    assert parse_json(text.encode()) == json.loads(text)
    assert parse_json(b"\xef\xbb\xbf" + text.encode()) == json.loads(text)


_TEXT = st.text(st.characters(codec="utf-8"))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
)


@given(_VALUES, st.booleans())
def test_each_json_value_is_read_back_unchanged(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.lists(st.tuples(st.sampled_from("abc"), _VALUES), max_size=4), st.integers(0, 20))
def test_an_object_is_rejected_if_and_only_if_a_name_is_repeated(members: list[tuple[str, Any]], depth: int) -> None:
    text = "{" + ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in members) + "}"
    content = ("[0, " * depth + text + "]" * depth).encode()
    names = [name for name, _ in members]
    if len(set(names)) == len(names):
        assert parse_json(content) == json.loads(content)
    else:
        error = error_of(content)
        assert (error.code, error.loc[:-1]) == ("json_duplicate_name", (1,) * depth)
        assert names.count(str(error.loc[-1])) > 1


@given(st.binary())
def test_any_bytes_raise_only_invalid_json(content: bytes) -> None:
    with suppress(InvalidJSON):
        parse_json(content)


class Inner(BaseModel):
    amount: int


class Body(BaseModel):
    amount: int = 0
    inner: list[Inner] = []


@pytest.fixture
def app() -> FastAPI:
    app = create_bare_app()
    strict = APIRouter(prefix="/strict", route_class=StrictJSONRoute)
    lenient = APIRouter(prefix="/lenient")
    for router in (strict, lenient):

        @router.post("")
        async def create(body: Body) -> Body:
            return body

        @router.post("/raw")
        async def read(request: Request) -> Any:
            first = await request.json()
            return [first, await request.json() is first]

        app.include_router(router)
    return app


@pytest_asyncio.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(app) as client:
        yield client


async def test_the_response_to_a_duplicate_name_has_its_location(client: httpx.AsyncClient) -> None:
    body = b'{"inner": [{"amount": 1}, {"amount": 2, "amount": 3}]}'
    answer = await client.post("/strict", content=body, headers=JSON)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:howdah:problem:validation"
    assert answer.json()["errors"] == [
        {
            "loc": ["body", "inner", 1, "amount"],
            "msg": "the name 'amount' occurs more than once in one object: send it once",
            "type": "json_duplicate_name",
        }
    ]


async def test_a_repeated_parameter_of_a_dependency_that_include_router_adds_is_rejected() -> None:
    async def read_language(language: str = "en") -> None: ...

    router, app = APIRouter(route_class=StrictJSONRoute), create_bare_app()
    router.add_api_route("/books", read_language)
    app.include_router(router, prefix="/plain")
    app.include_router(router, prefix="/tenants", dependencies=[Depends(read_tenant)])
    async with http_client(app) as client:
        for _ in range(2):
            assert (await client.get("/tenants/books?tenant=1&tenant=2")).status_code == 400
            assert (await client.get("/plain/books?tenant=1&tenant=2")).status_code == 200
            assert (await client.get("/plain/books?language=de&language=en")).status_code == 400
        assert (await client.get("/tenants/books?tenant=1&language=de")).status_code == 200


async def read_tenant(tenant: int) -> int:
    return tenant


async def test_control_without_the_route_class_the_last_of_two_values_is_used(client: httpx.AsyncClient) -> None:
    """The fault that `StrictJSONRoute` prevents."""
    answer = await client.post("/lenient", content=b'{"amount": 1, "amount": 2}', headers=JSON)
    assert answer.json()["amount"] == 2


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "application/problem+json"])
async def test_each_media_type_of_json_is_checked(client: httpx.AsyncClient, kind: str) -> None:
    headers = {"Content-Type": kind}
    assert (await client.post("/strict", content=b'{"amount": 1, "amount": 2}', headers=headers)).status_code == 422
    assert (await client.post("/strict", content=b'{"amount": 1}', headers=headers)).json()["amount"] == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b'{"amount": NaN}', 422),
        (b'{"amount": 1e999}', 422),
        (rb'{"amount": "\ud800"}', 422),
        (b"\xff", 400),
        ("{}".encode("utf-16"), 400),
        (b"[" * 100_000, 400),
        (b'{"amount": ' + b"9" * 5_000 + b"}", 400),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_a_body_that_is_not_json_has_the_status_of_fastapi(
    client: httpx.AsyncClient, body: bytes, status: int
) -> None:
    strict = await client.post("/strict", content=body, headers=JSON)
    assert strict.status_code == status
    assert strict.headers["content-type"] == "application/problem+json"
    lenient = await client.post("/lenient", content=body, headers=JSON)
    assert lenient.status_code in (status, 200)  # FastAPI reads UTF-16


async def test_the_request_of_the_route_reads_the_same_value(client: httpx.AsyncClient) -> None:
    assert (await client.post("/strict/raw", content=b'{"a": 1}', headers=JSON)).json() == [{"a": 1}, True]


def test_the_openapi_description_is_that_of_other_routes(app: FastAPI) -> None:
    paths = app.openapi()["paths"]

    def described(path: str) -> Any:
        return {name: each for name, each in paths[path]["post"].items() if name != "operationId"}

    assert described("/strict") == described("/lenient")
