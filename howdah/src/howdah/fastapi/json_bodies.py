"""Strict JSON in requests (I-JSON, RFC 7493): texts that two parsers may read differently are rejected."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from howdah.fastapi._routes import COMPLETE_DEPENDANT
from howdah.fastapi.parameters import get_single_parameters, list_query_items, reject_repeated
from howdah.fastapi.problem import ProblemException
from howdah.fastapi.sessions import find_dependant

# An error response shows this much of a name, because a name may be as long as the body.
_MAX_SHOWN_CHARACTERS: Final = 100

# A body that hasn't been parsed yet. This isn't None, because None is the value of the body `null`.
_NO_VALUE: Final = object()


class InvalidJSON(ValueError):
    """A text that `parse_json` rejects. `loc` is the place in it: names and positions, or the position of a character.

    `code` is `json_duplicate_name`, `json_surrogate`, `json_number`, `json_depth`, `json_encoding` or `json_invalid`.
    """

    def __init__(self, code: str, message: str, loc: tuple[str | int, ...] = ()) -> None:
        self.code = code
        self.loc = loc
        super().__init__(message)


def parse_json(content: bytes) -> Any:
    """The value of a JSON text. Raise `InvalidJSON` for a text that parsers may read differently, or not at all.

    It rejects:

    - two equal names in one object, also if one is escaped (`{"a": 1, "\\u0061": 2}`),
    - `NaN`, `Infinity`, and a number that a float can't hold (`1e999`),
    - an integer of more digits than Python reads (4,300),
    - half of a surrogate pair, and a text that isn't UTF-8,
    - more levels of nesting than Python's recursion limit.

    A byte order mark is skipped (RFC 8259, section 8.1).

    `json.loads` and Pydantic's `model_validate_json` keep the last of two equal names; other parsers keep the first.
    """
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        message = f"JSON must be UTF-8 (RFC 8259, section 8.1), and byte {error.start} isn't"
        raise InvalidJSON("json_encoding", message, (error.start,)) from error
    try:
        return _decode(text)
    except InvalidJSON:
        raise
    except json.JSONDecodeError as error:
        message = f"this is not JSON: {error.msg} at character {error.pos}"
        raise InvalidJSON("json_invalid", message, (error.pos,)) from error
    except UnicodeEncodeError as error:
        message = "a string has half of a surrogate pair (\\ud800 to \\udfff), which isn't a character"
        raise InvalidJSON("json_surrogate", message) from error
    except RecursionError as error:
        raise InvalidJSON("json_depth", "the JSON is nested too deeply") from error
    except ValueError as error:  # `int` refuses more digits than `sys.get_int_max_str_digits()`
        raise InvalidJSON("json_number", "a number has too many digits") from error


class StrictJSONRoute(APIRoute):
    """A route that reads a JSON body with `parse_json`: `APIRouter(route_class=StrictJSONRoute)`.

    A query parameter that has one value and is sent several times is rejected, too (`RepeatedParameter`, 400).

    A rejected body gets the status 422, with the place in `errors` (see `add_error_handlers`). As in FastAPI,
    the status is 400 if the body isn't UTF-8, is nested too deeply, or has a number of too many digits.

    A route that reads the body itself, such as a stream of lines, calls `parse_json`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, with requests whose `json()` is strict."""
        handle = super().get_route_handler()
        complete = getattr(self, COMPLETE_DEPENDANT, None)
        known = self.dependant, get_single_parameters(self.dependant)

        def check_query(request: Request) -> None:
            """Reject repeated parameters, also those of dependencies that `include_router` has added."""
            nonlocal known
            dependant = complete or find_dependant(request) or self.dependant
            if known[0] is not dependant:  # the route may be included several times
                known = dependant, get_single_parameters(dependant)
            reject_repeated(list_query_items(request.scope), known[1])

        async def handle_strictly(request: Request) -> Response:
            if request.scope["query_string"]:
                check_query(request)
            try:
                return await handle(_StrictRequest(request))
            except HTTPException as error:
                # FastAPI turns any other error of `Request.json()` into a 400 without details.
                if isinstance(error.__cause__, InvalidJSON) and not isinstance(error, ProblemException):
                    raise _to_response_error(error.__cause__) from error.__cause__
                raise

        return handle_strictly


class _StrictRequest(Request):
    """Reads the body from the other request, which another class of routes may have read before, or may read again."""

    def __init__(self, request: Request) -> None:
        self.__dict__.update(request.__dict__)  # with the parts that were parsed already, such as the query
        self._request = request
        self._strict_json: Any = _NO_VALUE

    async def stream(self) -> AsyncGenerator[bytes, None]:
        async for chunk in self._request.stream():
            yield chunk

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._body = await self._request.body()
        return self._body

    async def json(self) -> Any:
        if self._strict_json is _NO_VALUE:
            self._strict_json = parse_json(await self.body())
        return self._strict_json


def _to_response_error(error: InvalidJSON) -> Exception:
    """A 400 if FastAPI's own parser would raise a 400, otherwise a 422 with the place."""
    if error.code in ("json_encoding", "json_depth", "json_number"):
        return HTTPException(HTTPStatus.BAD_REQUEST, str(error))
    return RequestValidationError([{"type": error.code, "loc": ("body", *error.loc), "msg": str(error), "input": None}])


class _DuplicateName(Exception):
    """An object has two equal names. `_decode` finds out which."""


class _Members(list[tuple[str, Any]]):
    """All members of an object, also those with equal names."""


def _build_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) != len(members):
        raise _DuplicateName
    return value


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidJSON("json_invalid", "a number is too large for a float")
    return value


def _reject_constant(name: str) -> Any:
    raise InvalidJSON("json_invalid", f"this is not JSON: {name} is not a value of JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_float=_parse_float, parse_constant=_reject_constant
)


def _decode(text: str) -> Any:
    """The value of a JSON text. Raises `InvalidJSON`, or an error that `parse_json` translates."""
    try:
        value = _DECODER.decode(text)
    except _DuplicateName:
        # The hook doesn't know the place in the text, so parse the text again, with all members.
        *place, name = next(_find_duplicate_names(json.loads(text, object_pairs_hook=_Members)))
        message = f"the name '{_shorten(name)}' occurs more than once in one object: send it once"
        raise InvalidJSON("json_duplicate_name", message, (*map(_shorten, place), _shorten(name))) from None
    if "\\ud" in text or "\\uD" in text:  # UTF-8 itself can't encode half of a surrogate pair
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _find_duplicate_names(value: Any) -> Iterator[tuple[str | int, ...]]:
    """The places of members whose names occur earlier in their object.

    It doesn't recurse, because the text may be nested as deeply as Python's recursion limit.
    """
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while stack:
        place, each = stack.pop()
        members: list[tuple[str | int, Any]]
        if isinstance(each, _Members):
            names: set[str] = set()
            for name, _ in each:
                if name in names:
                    yield (*place, name)
                names.add(name)
            members = list(each)
        else:
            members = list(enumerate(each))
        stack.extend(((*place, key), item) for key, item in reversed(members) if isinstance(item, list))


def _shorten(part: str | int) -> str | int:
    """A part of a place, shortened and without half surrogate pairs, for the error response."""
    if isinstance(part, int):
        return part
    return "".join(each if each.isprintable() else "\ufffd" for each in part[:_MAX_SHOWN_CHARACTERS])
