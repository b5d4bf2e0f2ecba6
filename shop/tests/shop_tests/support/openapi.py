"""Compares responses of the service with its OpenAPI description."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx

from shop.app import create_app
from shop_tests.support.identity import TEST_SETTINGS

_NUMBERS = {"integer": int, "number": int | float}
_OTHERS = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}


@cache
def description() -> dict[str, Any]:
    return create_app("postgresql://unused/", TEST_SETTINGS).openapi()


async def assert_matches_openapi(response: httpx.Response) -> None:
    """An event hook of the client: the status, the media type, the headers and a JSON body must match the operation.

    Responses that belong to no operation are not checked: other paths and methods, and internal errors (500).
    """
    operation = _operation(response.request.method, response.request.url.path)
    if operation is None or response.status_code == 500:
        return
    where = f"{response.request.method} {response.request.url.path}: {response.status_code}"
    assert str(response.status_code) in operation["responses"], f"{where} is not in the OpenAPI description"
    described = operation["responses"][str(response.status_code)]
    headers = {name.lower() for name, header in described.get("headers", {}).items() if header.get("required", True)}
    assert headers <= {*response.headers}, where
    content = described.get("content", {})
    if not content:
        assert not await response.aread(), where
        return
    media_type = response.headers["content-type"].split(";")[0]
    assert media_type in content, f"{where} has an undescribed media type: {media_type}"
    if media_type.endswith("json") and media_type != "application/x-ndjson":
        await response.aread()
        differences = list(_differences(response.json(), content[media_type].get("schema", {}), "body"))
        assert not differences, f"{where}: {differences}"


def _operation(method: str, path: str) -> dict[str, Any] | None:
    for pattern, operations in _patterns():
        if pattern.fullmatch(path):
            found: dict[str, Any] | None = operations.get(method.lower())
            return found
    return None


@cache
def _patterns() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    # `/orders/export` also matches `/orders/{order_id}`: try paths without parameters first
    paths = sorted(description()["paths"].items(), key=lambda item: "{" in item[0])
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operations) for path, operations in paths]


def _differences(value: Any, schema: dict[str, Any], place: str) -> Iterator[str]:
    """The differences between the value and the schema. Checks only the JSON Schema keywords that Shop's OpenAPI
    description uses."""
    if "$ref" in schema:
        yield from _differences(value, description()["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], place)
        return
    if "anyOf" in schema:
        if all(any(_differences(value, each, place)) for each in schema["anyOf"]):
            yield f"{place} matches none of {schema['anyOf']}: {value!r}"
        return
    kind = schema.get("type", "")
    expected = _NUMBERS.get(kind) or _OTHERS.get(kind)
    if expected is not None and (not isinstance(value, expected) or (kind in _NUMBERS and isinstance(value, bool))):
        yield f"{place} is not of type {kind}: {value!r}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} is not in {schema['enum']}: {value!r}"
    if schema.get("format") == "date-time" and not re.fullmatch(r".+T.+(Z|[+-]\d\d:\d\d)", value):
        yield f"{place} is not a time with an offset: {value!r}"
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from _differences(each, schema.get("items", {}), f"{place}.{index}")
    if isinstance(value, dict):
        yield from _member_differences(value, schema, place)


def _member_differences(value: dict[str, Any], schema: dict[str, Any], place: str) -> Iterator[str]:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    yield from (f"{place}.{name} is missing" for name in schema.get("required", ()) if name not in value)
    for name, each in value.items():
        if name in properties:
            yield from _differences(each, properties[name], f"{place}.{name}")
        elif others is False:
            yield f"{place}.{name} is not described"
        elif isinstance(others, dict):
            yield from _differences(each, others, f"{place}.{name}")
