"""Problem details (RFC 9457), and the status for each error."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
from fastapi import Response
from fastapi.encoders import jsonable_encoder
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from howdah import errors
from howdah.fastapi.client_text import shorten
from howdah.serving._problems import choose_retry_after

PROBLEM_JSON: Final = "application/problem+json"

# The only place that assigns statuses. An error has the status of the first class in its MRO that is listed here. An
# error that isn't listed is a bug of the application, and the response is 500.
HTTP_STATUS_BY_ERROR: Final[dict[type[errors.HowdahError], HTTPStatus]] = {
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.InvalidCursor: HTTPStatus.BAD_REQUEST,
    errors.StaleRow: HTTPStatus.CONFLICT,
    errors.UniqueViolation: HTTPStatus.CONFLICT,
    errors.ExclusionViolation: HTTPStatus.CONFLICT,
    errors.ForeignKeyViolation: HTTPStatus.CONFLICT,
    errors.CheckViolation: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotNullViolation: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.PolicyViolation: HTTPStatus.FORBIDDEN,
    errors.InvalidValue: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TransactionConflict: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ReadOnly: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.IdempotencyKeyInUse: HTTPStatus.CONFLICT,
    errors.IdempotencyKeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}

_HAS_RETRY_AFTER: Final = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS})

NO_SNIFF: Final = (b"x-content-type-options", b"nosniff")
NO_STORE: Final = (b"cache-control", b"no-store")
"""The default of every response of an application. A problem has it even if it doesn't pass through the middleware."""

# A detail is a sentence of the service, which may quote a text of the client. So it may be longer.
_MAX_DETAIL_CHARACTERS: Final = 500

# The members that RFC 9457 defines and that have arguments of their own, or follow from them.
_OWN_MEMBERS: Final = frozenset({"title", "type"})


class ProblemException(HTTPException):
    """Reject the request: the problem details have the type `urn:howdah:problem:<code>`, and `members` extend them.

        raise ProblemException(409, "out-of-stock", f"{item} is sold out", item=item)

    As every exception, it rolls the session of the request back. A returned `problem_response` commits it. `detail` is
    for people. Clients branch on the type, so keep `code` stable. Raises `ValueError` if the status is below 400.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        if status < HTTPStatus.BAD_REQUEST:
            raise ValueError(f"a problem has a status from 400 on, not {status}: return a response instead")
        if reserved := sorted(_OWN_MEMBERS & members.keys()):
            raise TypeError(f"a problem can't have the member {reserved[0]}: it follows from the status or the code")
        super().__init__(status, detail, headers)
        self.code = code
        self.members = members


class InputError(BaseModel):
    """An error in one part of the request."""

    loc: list[str | int] = Field(description="Where: `body`, `query`, `path` or `header`, then names and positions")
    msg: str
    type: str


class Problem(BaseModel):
    """RFC 9457. A client should branch on `type`, which is stable. `title` and `detail` are for people."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:howdah:problem:not-found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str | None = Field(default=None, examples=["no User with key 01977f1e-7c3a-7000-8000-000000000000"])
    constraint: str | None = Field(default=None, description="The constraint of the database that the row violates")
    errors: list[InputError] | Any = Field(
        default=None,
        description="The errors of an invalid request (`urn:howdah:problem:validation`)",
    )


def problem_response(
    status: int,
    code: str,
    *,
    title: str | None = None,
    detail: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """A problem details response with the type `urn:howdah:problem:<code>`; `members` extend it.

    A `detail` of more than 500 characters is shortened, because it may quote a text of the client. A 503 and a 429
    always have the header `Retry-After`. If `headers` has none, `retry_after` chooses it.
    """
    if status in _HAS_RETRY_AFTER and not any(name.lower() == "retry-after" for name in headers or ()):
        headers = {**(headers or {}), "Retry-After": retry_after()}
    body = {
        "type": f"urn:howdah:problem:{code}",
        "title": title or HTTPStatus(status).phrase,
        "status": int(status),
        **({} if detail is None else {"detail": shorten(detail, _MAX_DETAIL_CHARACTERS)}),
        **members,
    }
    # The encoder accepts some types that orjson rejects, such as the driver's subclass of UUID.
    content = orjson.dumps(body, default=jsonable_encoder, option=orjson.OPT_NON_STR_KEYS)
    response = Response(content, int(status), headers=headers, media_type=PROBLEM_JSON)
    names = {name for name, _ in response.raw_headers}
    response.raw_headers += [each for each in (NO_SNIFF, NO_STORE) if each[0] not in names]
    return response


def retry_after() -> str:
    """A value for the header `Retry-After`: 1, 2 or 3 seconds, at random.

    With a fixed value all clients of an overloaded service would come back in the same second.
    """
    return choose_retry_after()


def error_response(error: errors.HowdahError, **members: Any) -> Response:
    """The problem details for this error, with its status in `HTTP_STATUS_BY_ERROR`.

    `members` extend them, for example with the line of the input that caused the error. If `HTTP_STATUS_BY_ERROR` has
    no status for the error, the error itself is raised. A 503 has the header `Retry-After`, and so has the 409 of
    `IdempotencyKeyInUse`.
    """
    status = next((HTTP_STATUS_BY_ERROR[cls] for cls in type(error).__mro__ if cls in HTTP_STATUS_BY_ERROR), None)
    if status is None:
        raise error
    return problem_response(
        status,
        to_problem_code(type(error).__name__),
        detail=_describe_for_client(error),
        headers={"Retry-After": retry_after()} if isinstance(error, errors.IdempotencyKeyInUse) else None,
        **_get_members(error),
        **members,
    )


def describe_error(error: errors.HowdahError) -> dict[str, Any]:
    """The members `type`, `detail` and `constraint` of the problem details for this error."""
    code = to_problem_code(type(error).__name__)
    return {"type": f"urn:howdah:problem:{code}", "detail": _describe_for_client(error), **_get_members(error)}


def _describe_for_client(error: Exception) -> str | None:
    """The text for the client. It never contains a statement or a row's values."""
    if isinstance(error, errors.IntegrityViolation):
        if error.constraint:
            return f"the constraint {error.constraint} rejected the row"
        if error.column:
            return f"{error.column} must have a value"
        return "the database rejected the row"
    if isinstance(error, errors.DatabaseError):
        return (type(error).__doc__ or "").split("\n")[0]
    return str(error)


def _get_members(error: Exception) -> dict[str, Any]:
    if isinstance(error, errors.IntegrityViolation) and error.constraint:
        return {"constraint": error.constraint}
    return {}


def to_problem_code(name: str) -> str:
    """Convert a name to a code: `UniqueViolation` to `unique-violation`, and `Not Found` to `not-found`."""
    words = "".join(f" {letter}" if letter.isupper() else letter for letter in name.replace("-", " ")).split()
    return "-".join(words).lower()
