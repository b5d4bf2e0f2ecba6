"""The OpenAPI description of problem details, and of models that FastAPI doesn't find by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, routing
from fastapi.dependencies.models import Dependant
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.constants import REF_PREFIX
from fastapi.openapi.models import OpenAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from howdah.fastapi._layers import find_layers
from howdah.fastapi._routes import iterate_all_routes, iterate_dependants
from howdah.fastapi.access import find_rules
from howdah.fastapi.headers import get_required_header, is_single_header
from howdah.fastapi.idempotency import REPLAYED_HEADER, is_idempotency_key
from howdah.fastapi.json_bodies import StrictJSONRoute
from howdah.fastapi.openapi_details import add_links, correct_schemas, forbid_nul, iterate_objects, require_headers
from howdah.fastapi.openapi_security import (
    add_security_schemes,
    describe_challenge,
    describe_rule,
    find_security_schemes,
)
from howdah.fastapi.pages import PageParameters
from howdah.fastapi.parameters import get_single_parameters
from howdah.fastapi.preconditions import get_required_if_match
from howdah.fastapi.problem import PROBLEM_JSON, Problem
from howdah.fastapi.sessions import is_committing_session, is_database_dependency
from howdah.filters import Filters
from howdah.serving.limits import METRICS_PATH, PROBE_PATHS

# The arguments of each call of `get_schema_ref`, by the name in its reference. `_insert_models` replaces these names.
_referenced: Final[dict[str, tuple[type[BaseModel], JsonSchemaMode]]] = {}

_READ_ONLY_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_RETRY_AFTER: Final = {"description": "Seconds", "schema": {"type": "integer"}}
_FASTAPI_422: Final = {"$ref": f"{REF_PREFIX}HTTPValidationError"}


def get_schema_ref(model: type[BaseModel], mode: JsonSchemaMode = "serialization") -> dict[str, str]:
    """A reference to the model's schema, for `responses` and `openapi_extra` of a route.

    FastAPI doesn't accept a model there if the media type isn't JSON. `mode="validation"` is for request bodies.

    Call `add_error_handlers` for the application: it adds the schema to the OpenAPI description.
    """
    name = re.sub(r"[^\w.-]", "_", f"{model.__module__}.{model.__qualname__}-{mode}")
    while _referenced.setdefault(name, (model, mode)) != (model, mode):
        name += "_"
    return {"$ref": REF_PREFIX + name}


def describe_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem details with these statuses, for `responses` of a route or a router."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        responses[int(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_JSON: {"schema": get_schema_ref(Problem)}},
        }
        if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
            responses[int(status)]["headers"] = {"Retry-After": _RETRY_AFTER}
    return responses


def add_problem_descriptions(app: FastAPI) -> None:
    """Add the problems of each route to the application's description. Responses that a route declares stay."""
    generate = app.openapi  # the application may have overridden it
    last_description: dict[str, Any] | None = None

    def openapi() -> dict[str, Any]:
        nonlocal last_description
        description = generate()
        if description is not last_description:  # FastAPI caches its description; this one is new
            _complete(description, app)
            last_description = description
        return description

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(description: dict[str, Any], app: FastAPI) -> None:
    """Add the problems and the models to a description. Remove FastAPI's error schemas if nothing refers to them."""
    routes = {(route.path_format, method): route for route in _iterate_routes(app) for method in route.methods}
    schemes = find_security_schemes(app)
    for path, operations in description.get("paths", {}).items():
        for method, operation in operations.items():
            if isinstance(operation, dict) and "responses" in operation:
                _describe_operation(operation, method.upper(), routes.get((path, method.upper())), schemes)
    add_security_schemes(description, schemes)
    _describe_body_limit(description, app)
    _describe_rate_limits(description, app)
    _insert_models(description)
    correct_schemas(description)
    add_links(description)
    schemas = description.get("components", {}).get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        if name in schemas and REF_PREFIX + name not in _find_references(description):
            del schemas[name]


def _describe_operation(
    operation: dict[str, Any], method: str, route: Any, schemes: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add the problems that the route can answer with, and replace FastAPI's own 422. Declared responses stay."""
    responses = operation["responses"]
    if route is not None:
        require_headers(operation, _find_required_headers(route))
        if any(_has_parameters(each, Filters) for each in iterate_dependants(route.dependant)):
            forbid_nul(operation)
    statuses: list[int] = [] if route is None else list(_infer_statuses(operation, method, route))
    if route is not None and schemes:
        for rule in find_rules(route):
            statuses += describe_rule(operation, rule, schemes)
    schema_422 = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema")
    if schema_422 == _FASTAPI_422:
        del responses["422"]
        statuses.append(HTTPStatus.UNPROCESSABLE_ENTITY)
    for status in statuses:
        if not responses.keys() & {str(int(status)), f"{status // 100}XX", "default"}:
            responses |= {str(code): response for code, response in describe_problems(status).items()}
    if route is not None and any(is_idempotency_key(each.call) for each in iterate_dependants(route.dependant)):
        _describe_replays(responses)
    if schemes:
        describe_challenge(responses)
    operation["responses"] = dict(sorted(responses.items()))


def _describe_body_limit(description: Mapping[str, Any], app: FastAPI) -> None:
    """Add 413 to every operation with a body, if the application limits bodies."""
    layers = find_layers(app)
    if layers is None or layers.body_limiter is None:
        return
    for operations in description.get("paths", {}).values():
        for operation in operations.values():
            if isinstance(operation, dict) and "requestBody" in operation:
                status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                responses = operation.setdefault("responses", {})
                if not responses.keys() & {str(int(status)), "4XX", "default"}:
                    responses[str(int(status))] = describe_problems(status)[status]
                operation["responses"] = dict(sorted(responses.items()))


def _describe_rate_limits(description: Mapping[str, Any], app: FastAPI) -> None:
    """Add 429 to every operation, if the application has rate limits. Probes and metrics aren't limited."""
    layers = find_layers(app)
    if layers is None or layers.rate_limiter is None:
        return
    status = HTTPStatus.TOO_MANY_REQUESTS
    for path, operations in description.get("paths", {}).items():
        for operation in operations.values() if path not in {*PROBE_PATHS, METRICS_PATH} else ():
            responses = operation.get("responses") if isinstance(operation, dict) else None
            if responses is not None and not responses.keys() & {str(int(status)), "4XX", "default"}:
                operation["responses"] = dict(
                    sorted({**responses, str(int(status)): describe_problems(status)[status]}.items())
                )


def _describe_replays(responses: dict[str, Any]) -> None:
    """Add the header of a replay to successful responses, and `Retry-After` to the 409 of a key that is in use."""
    replayed = {"description": "`true` if this is a stored response", "required": False, "schema": {"type": "string"}}
    for status, response in responses.items():
        if status.startswith("2"):
            response.setdefault("headers", {}).setdefault(REPLAYED_HEADER, replayed)
        elif status == str(int(HTTPStatus.CONFLICT)):
            response.setdefault("headers", {}).setdefault("Retry-After", _RETRY_AFTER | {"required": False})


def _infer_statuses(operation: Mapping[str, Any], method: str, route: Any) -> Iterator[HTTPStatus]:
    """The statuses that follow from the route's parameters; `add_error_handlers` documents the rule."""
    parameters = {(each["in"], each["name"].lower()) for each in operation.get("parameters", ()) if "in" in each}
    dependants = list(iterate_dependants(route.dependant))
    calls = [each.call for each in dependants]
    # FastAPI answers 400 if, for example, the body isn't UTF-8 or has a number of 5,000 digits.
    has_pages = any(_has_parameters(each, PageParameters) for each in dependants)
    is_strict = isinstance(getattr(route, "original_route", route), StrictJSONRoute)
    has_single = is_strict and bool(get_single_parameters(route.dependant))  # a repeated one is rejected
    if route.body_field is not None or has_pages or has_single or any(map(is_single_header, calls)):
        yield HTTPStatus.BAD_REQUEST
    if any(place == "path" for place, _ in parameters):
        yield HTTPStatus.NOT_FOUND
    if method not in _READ_ONLY_METHODS and any(map(is_committing_session, calls)):
        yield HTTPStatus.CONFLICT
    if ("header", "if-match") in parameters:
        yield HTTPStatus.PRECONDITION_FAILED
    if get_required_if_match in calls:
        yield HTTPStatus.PRECONDITION_REQUIRED
    if any(map(is_database_dependency, calls)):
        yield HTTPStatus.SERVICE_UNAVAILABLE


def _find_required_headers(route: Any) -> Iterator[str]:
    for each in iterate_dependants(route.dependant):
        if each.call is get_required_if_match:
            yield "If-Match"
        elif (name := get_required_header(each.call)) is not None:
            yield name


def _has_parameters(dependant: Dependant, kind: type[BaseModel]) -> bool:
    """Whether the dependency is this class of parameters, or has a parameter of that type.

    The cursor of `PageParameters` can be invalid (400).
    """
    types = [dependant.call, *(parameter.field_info.annotation for parameter in dependant.query_params)]
    return any(isinstance(each, type) and issubclass(each, kind) for each in types)


def _iterate_routes(app: FastAPI) -> Iterator[Any]:
    """The routes of the description, with the prefixes and dependencies that `include_router` adds."""
    for route in iterate_all_routes(app.routes):
        if isinstance(getattr(route, "original_route", route), routing.APIRoute):
            yield route


def _insert_models(description: dict[str, Any]) -> None:
    """Add the models of `get_schema_ref` to the components, and replace the references by their final names."""
    used_names = {
        name for each in _find_references(description) if (name := each.removeprefix(REF_PREFIX)) in _referenced
    }
    if not used_names:
        return
    # One of FastAPI's own schemas may have the same name. If the two schemas differ, the one that is added is renamed.
    references, generated = models_json_schema(
        [_referenced[name] for name in sorted(used_names)], ref_template=REF_PREFIX + "{model}"
    )
    definitions = _normalize_schemas(generated["$defs"])
    components = description.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    shared_names = definitions.keys() & schemas.keys()
    final_references = {REF_PREFIX + name: references[_referenced[name]]["$ref"] for name in used_names}
    if any(definitions[name] != schemas[name] for name in shared_names):  # another model has the same name
        new_names = {name: _make_unused_name(name, schemas.keys() | definitions.keys()) for name in shared_names}
        definitions = {new_names.get(name, name): definition for name, definition in definitions.items()}
        new_references = {REF_PREFIX + name: REF_PREFIX + new for name, new in new_names.items()}
        _replace_references(definitions, new_references)
        final_references = {name: new_references.get(target, target) for name, target in final_references.items()}
    _replace_references(description, final_references)
    components["schemas"] = dict(sorted((definitions | schemas).items()))


def _normalize_schemas(definitions: dict[str, Any]) -> dict[str, Any]:
    """The schemas in the form that FastAPI writes, so that they can be compared with FastAPI's."""
    empty: dict[str, Any] = {"openapi": "3.1.0", "info": {"title": "", "version": ""}, "paths": {}}
    description = OpenAPI(**empty, components={"schemas": definitions})
    encoded: dict[str, Any] = jsonable_encoder(description, by_alias=True, exclude_none=True)["components"]["schemas"]
    return encoded


def _make_unused_name(name: str, names: Any) -> str:
    while name in names:
        name += "_"
    return name


def _find_references(value: Any) -> set[str]:
    return {holder["$ref"] for holder in _iterate_reference_objects(value)}


def _replace_references(value: Any, names: Mapping[str, str]) -> None:
    for holder in _iterate_reference_objects(value):
        holder["$ref"] = names.get(holder["$ref"], holder["$ref"])


def _iterate_reference_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within the value that has a `$ref`."""
    return (each for each in iterate_objects(value) if isinstance(each.get("$ref"), str))
