"""Details of the OpenAPI description that FastAPI leaves out or gets wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi.openapi.constants import REF_PREFIX

_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MAX_BIGINT: Final = 2**63 - 1
_WITHOUT_NUL: Final = r"^[^\u0000]*$"


def require_headers(operation: Mapping[str, Any], names: Iterable[str]) -> None:
    """Describe these headers as required.

    For FastAPI they are optional parameters, so that a dependency can reject a request without them.
    """
    required = {name.lower() for name in names}
    for parameter in operation.get("parameters", ()):
        if parameter.get("in") == "header" and parameter["name"].lower() in required:
            parameter["required"] = True
            schema = parameter["schema"]
            present = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
            if len(present) == 1:
                del schema["anyOf"]
                schema.update({**present[0], **schema})


def forbid_nul(operation: Mapping[str, Any]) -> None:
    """Describe that the texts of filters don't have U+0000. PostgreSQL can't store it, so `Filters` rejects it."""
    for parameter in operation.get("parameters", ()):
        if parameter.get("in") == "query":
            schema = parameter["schema"]
            for each in (schema, schema.get("items", {}), *schema.get("anyOf", ())):
                if each.get("type") == "string" and not each.keys() & {"pattern", "format", "enum", "const"}:
                    each["pattern"] = _WITHOUT_NUL


def correct_schemas(description: dict[str, Any]) -> None:
    """Correct the schemas of integers, and of objects whose names must match a pattern.

    FastAPI writes the bounds of an integer as floating-point numbers, and Pydantic also allows names that don't match.
    """
    for schema in iterate_objects(description):
        if schema.get("type") == "integer":
            for bound in _BOUNDS:
                if isinstance(value := schema.get(bound), float) and value.is_integer():
                    # 2**63 - 1 has become 2**63, the next number that a float can hold
                    schema[bound] = min(int(value), _MAX_BIGINT)
        if "patternProperties" in schema:
            schema.setdefault("additionalProperties", False)


def add_links(description: dict[str, Any]) -> None:
    """Link each operation that creates something to the operations on it, by the `id` in the response.

    `POST /users` links to `GET /users/{user_id}`, for example. Links that a route declares are kept.
    """
    paths = description.get("paths", {})
    schemas = description.get("components", {}).get("schemas", {})
    for path, operations in paths.items():
        created = operations.get("post", {}).get("responses", {}).get(str(int(HTTPStatus.CREATED)), {})
        if not _has_id(created, schemas):
            continue
        links = created.setdefault("links", {})
        for target, targets in paths.items():
            parameter = _find_parameter(path, target)
            for operation in targets.values() if parameter is not None else ():
                if isinstance(operation, dict) and "operationId" in operation:
                    link = {"operationId": operation["operationId"], "parameters": {parameter: "$response.body#/id"}}
                    links.setdefault(operation["operationId"], link)
        if not links:
            del created["links"]


def _has_id(response: Mapping[str, Any], schemas: Mapping[str, Any]) -> bool:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    resolved = schemas.get(schema.get("$ref", "").removeprefix(REF_PREFIX), schema)
    return "id" in resolved.get("properties", {})


def _find_parameter(path: str, target: str) -> str | None:
    """The only parameter of the target, if the target is `<path>/{parameter}` or below it."""
    rest = target.removeprefix(path)
    if rest == target or not rest.startswith("/{") or rest.count("{") != 1:
        return None
    return rest[2:].partition("}")[0]


def iterate_objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from iterate_objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from iterate_objects(inner)
