"""Hooks of schemathesis for services that are built with `howdah.fastapi`.

    SCHEMATHESIS_HOOKS=howdah.testing.fuzzing schemathesis run http://127.0.0.1:8000/openapi.json --checks all

They say what an OpenAPI description can't say, so that all checks can stay on:

- Bodies and responses with NDJSON: the schema is that of one line. A generated value is sent as two equal lines, and
  each line of a response is compared with the schema (the check `ndjson_lines`).
- A cursor is what an earlier page of the same list returned. A generated `after` or `before` is replaced by one,
  or removed.
- `after` and `before` exclude each other.
- A valid `If-Match` depends on the row, so `*` is sent.
- An idempotency key is used once, so a generated one is replaced by a new one.
- JSON Schema counts `1.0` as an integer, and Pydantic's `StrictInt` doesn't, so integers are sent without a fraction.
- Values of `format: email` are addresses that `EmailStr` accepts, if email-validator is installed.
- A change without a required `If-Match` is rejected with 428.
- schemathesis may take null from a response as the value of a path parameter, and then the request isn't valid.
- A valid request may be rejected because of the state of the database (`STATE_PROBLEMS`). A service adds its own types:
  `STATE_PROBLEMS.add("out-of-stock")`.

A service with further rules imports this module in its own module of hooks.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from importlib.util import find_spec
from itertools import count
from typing import Any, Final, TypeAlias
from uuid import UUID

import jsonschema_rs
import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.openapi.checks import MissingHeaderNotRejected, RejectedPositiveData

from howdah.fastapi import NDJSON

_Case: TypeAlias = schemathesis.Case[Any]

_TYPE_PREFIX: Final = "urn:howdah:problem:"

STATE_PROBLEMS: Final = {"idempotency-key-reused", "precondition-failed"}
"""The problems of valid requests that the schemathesis check `positive_data_acceptance` wouldn't expect. Statuses such
as 404 and 409 are expected anyway."""

_CURSORS: Final = ("after", "before")
_MAX_CURSORS: Final = 10
_MAX_EMAIL_CHARACTERS: Final = 254
_cursors: Final[defaultdict[str, deque[str]]] = defaultdict(lambda: deque(maxlen=_MAX_CURSORS))
_key_numbers: Final = count(1)


def get_problem_type(response: schemathesis.Response) -> str | None:
    """The code of the problem details, such as `not-found`, or None."""
    try:
        problem = json.loads(response.content)
    except ValueError:
        return None
    kind = problem.get("type") if isinstance(problem, dict) else None
    return kind.removeprefix(_TYPE_PREFIX) if isinstance(kind, str) else None


def is_valid(case: _Case) -> bool:
    """Whether schemathesis generated the request to be valid."""
    return case.meta is not None and case.meta.generation.mode.is_positive


if find_spec("email_validator") is not None:
    from email_validator import EmailNotValidError, validate_email
    from hypothesis import strategies as st

    _email_schema = jsonschema_rs.Draft202012Validator({"format": "email"}, validate_formats=True)

    def _is_email(text: str) -> bool:
        try:
            return (
                _email_schema.is_valid(text)
                and len(validate_email(text, check_deliverability=False).normalized) <= _MAX_EMAIL_CHARACTERS
            )
        except EmailNotValidError:
            return False

    schemathesis.openapi.format("email", st.emails().filter(_is_email))


@schemathesis.serializer(NDJSON)
def serialize_lines(context: Any, value: Any) -> bytes:
    """The value as two lines. Bytes stay unchanged."""
    return value if isinstance(value, bytes) else (json.dumps(value).encode() + b"\n") * 2


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: _Case, kwargs: dict[str, Any]) -> None:
    """Give a valid request real cursors and a new idempotency key."""
    if not is_valid(case):
        return
    query: dict[str, Any] = case.query if isinstance(case.query, dict) else {}
    for name in _CURSORS:
        known = _cursors[_name_list(case, name)]
        if query.pop(name, None) is not None and known and not query.keys() & {*_CURSORS}:
            query[name] = known[-1]
    for name in case.headers or ():
        if name.lower() == "if-match":
            case.headers[name] = "*"
        elif name.lower() == "idempotency-key":
            # numbered, so that each run with the same seed sends the same keys
            case.headers[name] = str(UUID(int=next(_key_numbers), version=4))
    body = _without_fractions(case.body)
    # Compare texts, because `1 == 1.0`. Assign only if needed: an assigned body is validated again, more strictly.
    if isinstance(case.body, dict | list) and json.dumps(body) != json.dumps(case.body):
        case.body = body


@schemathesis.hook
def after_call(context: schemathesis.HookContext, case: _Case, response: schemathesis.Response) -> None:
    """Remember the cursors of a page."""
    if response.status_code != 200 or case.method.upper() != "GET":
        return
    try:
        page = json.loads(response.content)
    except ValueError:
        return
    if isinstance(page, dict) and {"items", "next", "previous"} <= page.keys():
        for name, cursor in (("after", page["next"]), ("before", page["previous"])):
            if cursor is not None:
                _cursors[_name_list(case, name)].append(cursor)


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Failure, case: _Case, response: schemathesis.Response
) -> bool:
    """Return false for a failure that isn't one. The module's docstring has the reasons."""
    if isinstance(failure, RejectedPositiveData):
        has_null = "None" in map(str, (case.path_parameters or {}).values())
        return not has_null and get_problem_type(response) not in STATE_PROBLEMS
    return not (
        isinstance(failure, MissingHeaderNotRejected) and response.status_code == HTTPStatus.PRECONDITION_REQUIRED
    )


@schemathesis.check
def ndjson_lines(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: _Case) -> bool | None:
    """Each line of an NDJSON response matches the schema in the OpenAPI description."""
    media_type = response.headers.get("content-type", [""])[0].partition(";")[0]
    if media_type != NDJSON:
        return True
    schema = _find_schema(case, str(response.status_code))
    for number, line in enumerate(response.content.splitlines(), start=1):
        for error in _iterate_errors(schema, json.loads(line)):
            raise AssertionError(f"line {number} of the response: {error}")
    return None


def _name_list(case: _Case, cursor: str) -> str:
    """A name for the cursors of one list: of its path, filters and order."""
    query = {name: value for name, value in (case.query or {}).items() if name not in (*_CURSORS, "limit")}
    return json.dumps([cursor, case.formatted_path, query, {**(case.headers or {})}], default=str, sort_keys=True)


def _without_fractions(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: _without_fractions(each) for name, each in value.items()}
        case list():
            return [_without_fractions(each) for each in value]
    return value


def _find_schema(case: _Case, status: str) -> str:
    description = case.operation.schema.raw_schema
    response = description["paths"][case.operation.path][case.operation.method]["responses"][status]
    schema = response["content"][NDJSON]["schema"]
    return json.dumps({**schema, "components": description["components"]})


def _iterate_errors(schema: str, value: Any) -> Iterator[str]:
    for error in _build_validator(schema).iter_errors(value):
        yield str(error)


@cache
def _build_validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(json.loads(schema))
