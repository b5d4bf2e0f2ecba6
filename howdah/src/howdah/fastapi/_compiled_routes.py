"""Compile a route of FastAPI to a handler. It does the same as FastAPI's own handler, but makes most decisions once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Iterator
from copy import copy
from email.message import Message
from functools import lru_cache, partial
from json import JSONDecodeError
from typing import Any, Final

from fastapi import Request, Response, params
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.routing import APIRoute
from fastapi.utils import is_body_allowed_for_status_code
from pydantic_core import PydanticUndefined
from starlette.exceptions import HTTPException

from howdah.fastapi import _fastapi_internals as internals
from howdah.fastapi._json_responses import build_json_response
from howdah.fastapi._native_telemetry import report_validation_error
from howdah.fastapi._route_parameters import build_reads
from howdah.fastapi._routes import COMPLETE_DEPENDANT
from howdah.fastapi.access import AccessRule

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

# The value of a dependency that isn't called, because its parameters or those of its own dependencies are invalid.
_NOT_CALLED: Final = object()


class CannotCompile(Exception):
    """The route uses something that only FastAPI's own handler supports."""


class CompiledRoute:
    """The handler of a route. `dependencies` are the functions that it calls before the endpoint.

    `needs_stacks` is true if one of them is a generator: then `handle` needs the exit stacks in the scope.
    """

    def __init__(self, included: Any) -> None:
        """`included` is the route, or its inclusion by `include_router`. Raises `CannotCompile`."""
        route: APIRoute = getattr(included, "original_route", included)
        _check_route(route, included)
        calls = [*_iterate_calls(included.dependant, 0)]
        uses = Counter(each.key for each in calls)
        for each in calls:
            each.is_shared = uses[each.key] > 1
        self.dependencies = frozenset(each.call for each in calls[:-1])
        self.needs_stacks = any(each.stack for each in calls)
        self.handle: Handler = _put_into_route_class(route, included, _build_handler(calls, included))


def _check_route(route: APIRoute, included: Any) -> None:
    """Raise `CannotCompile` if the route needs something that the handler can't do."""
    own_class = type(route)
    for name in ("handle", "matches"):
        if getattr(own_class, name) is not getattr(APIRoute, name):
            raise CannotCompile(f"its class {own_class.__name__} has a method {name}() of its own")
    if getattr(included, "max_body_size", None) is not None:
        raise CannotCompile("it has a `max_body_size` of its own: remove it, or pass `max_body_bytes` to configure_app")
    if getattr(included.app, "__code__", None) is not _APP_CODE:
        raise CannotCompile(f"its class {own_class.__name__} replaces the application of the route")
    response_class = _unwrap_default(included.response_class)
    is_events = isinstance(response_class, type) and issubclass(response_class, internals.EventSourceResponse)
    if is_events or included.is_sse_stream or included.is_json_stream or internals.is_async_generator(route.endpoint):
        raise CannotCompile("it streams items")
    if included.body_field is not None and isinstance(included.body_field.field_info, params.Form):
        raise CannotCompile("its body is a form")


class _Call:
    """A call of a dependency or of the endpoint, with all decisions that don't depend on the request."""

    __slots__ = (
        *("body_fields", "call", "children", "dependant", "is_shared", "key", "links", "position", "reads"),
        *("request_names", "response_name", "stack", "uses_cache"),
    )

    def __init__(self, dependant: Dependant, position: int, children: list[tuple[str | None, int]]) -> None:
        """`children` are the names and positions of its dependencies."""
        call: Any = dependant.call
        self.dependant, self.call, self.position = dependant, call, position
        self.links = [(name, each) for name, each in children if name is not None]
        self.children = [each for _, each in children]
        self.key = _get_key(dependant)
        self.is_shared, self.uses_cache = False, dependant.use_cache
        self.reads = [*build_reads(dependant)]
        self.body_fields = dependant.body_params
        names = (dependant.request_param_name, dependant.http_connection_param_name)
        self.request_names = [each for each in names if each is not None]
        self.response_name = dependant.response_param_name
        self.stack: str | None = None
        if internals.is_async_generator(call):
            self.stack = internals.FUNCTION_STACK if dependant.scope == "function" else internals.REQUEST_STACK
        elif not internals.is_coroutine(call):
            remedy = ": use an `async def` that returns one" if isinstance(call, type) else ""
            raise CannotCompile(f"{_describe(call)} isn't `async def`{remedy}")
        if dependant.background_tasks_param_name is not None:
            raise CannotCompile(f"{_describe(call)} has BackgroundTasks")
        if dependant.security_scopes_param_name is not None or dependant.own_oauth_scopes:
            raise CannotCompile(f"{_describe(call)} has scopes of OAuth 2.0")
        if dependant.concurrency is not None:
            raise CannotCompile(f"{_describe(call)} has a limit of concurrency")


def _iterate_calls(dependant: Dependant, position: int) -> Iterator[_Call]:
    """The calls in FastAPI's order: each after its dependencies, the endpoint last. The first one gets `position`.

    A dependency that is used several times occurs several times, because FastAPI validates its parameters each time.
    """
    children = []
    for each in dependant.dependencies:
        if isinstance(each.call, AccessRule) and each.name is None:
            continue  # a rule is checked before the handler is called
        for call in _iterate_calls(each, position):
            yield call
            position += 1
        children.append((each.name, position - 1))
    yield _Call(dependant, position, children)


def _get_key(dependant: Dependant) -> Hashable:
    """The key by which FastAPI calls a dependency only once."""
    try:
        key = internals.get_cache_key(dependant=dependant)
        hash(key)
    except TypeError as error:
        raise CannotCompile(f"{_describe(dependant.call)} can't be hashed") from error
    return key


def _build_handler(calls: list[_Call], included: Any) -> Handler:
    """FastAPI's `get_request_handler` and `solve_dependencies`, as one loop over the calls."""
    body_field, embeds_body = included.body_field, included._embed_body_fields
    is_strict = _unwrap_default(included.strict_content_type)
    describe = _build_describe(included.dependant)
    respond = _build_respond(included, describe)
    # Tuples, because the loop unpacks them faster than it reads the attributes of each call.
    steps = [(each, each.links, each.reads, each.body_fields, each.request_names) for each in calls]

    async def handle(request: Request) -> Response:  # noqa: PLR0912  # one loop, because each call takes 0.3 µs
        body = PydanticUndefined if body_field is None else await _read_body(request, describe, is_strict=is_strict)
        values: list[Any] = []  # the result of each call, by its position
        shared: dict[Hashable, Any] = {}
        errors: list[Any] = []
        response: Response | None = None
        for each, links, reads, body_fields, request_names in steps:
            if each.is_shared and each.uses_cache and each.key in shared:
                values.append(shared[each.key])
                continue
            arguments: dict[str, Any] = {}
            new_errors: list[Any] = []
            for name, position in links:
                arguments[name] = values[position]
            for read in reads:
                new_errors += read(request, arguments)
            if body_fields:
                new_errors += await _add_body(body_fields, body, arguments, embeds_body=embeds_body)
            if new_errors or (errors and any(values[child] is _NOT_CALLED for child in each.children)):
                errors += new_errors
                values.append(_NOT_CALLED)
                continue
            for name in request_names:
                arguments[name] = request
            if each.response_name is not None:
                if response is None:
                    response = _new_response()
                arguments[each.response_name] = response
            if each.stack is None:
                result = await each.call(**arguments)
            else:
                result = await internals.enter_generator(
                    dependant=each.dependant, stack=request.scope[each.stack], sub_values=arguments, request=request
                )
            values.append(result)
            if each.is_shared:
                shared.setdefault(each.key, result)
        if errors:
            content = None if body is PydanticUndefined else body
            raise report_validation_error(RequestValidationError(errors, body=content, endpoint_ctx=describe(request)))
        return result if isinstance(result, Response) else respond(request, result, response)

    return handle


def _new_response() -> Response:
    """The object on which an endpoint and its dependencies set headers and the status."""
    response = Response()
    response.raw_headers.clear()
    response.status_code = None  # type: ignore[assignment]  # None, so that a status that is set is noticed
    return response


async def _add_body(fields: Any, body: Any, arguments: dict[str, Any], *, embeds_body: bool) -> Any:
    if len(fields) == 1 and not embeds_body and body is not PydanticUndefined:
        arguments[fields[0].name], errors = fields[0].validate(body, arguments, loc=("body",))
        return errors
    found, errors = await internals.request_body_to_args(
        body_fields=fields, received_body=body, embed_body_fields=embeds_body
    )
    arguments.update(found)
    return errors


async def _read_body(request: Request, describe: Any, *, is_strict: bool) -> Any:
    """The value of a JSON body, the bytes of another one, or `PydanticUndefined` without a body. As in FastAPI."""
    try:
        content = await request.body()
        if not content:
            return PydanticUndefined
        content_type = _find_content_type(request)
        if _is_json(content_type) if content_type else not is_strict:
            return await request.json()
    except JSONDecodeError as error:
        place, context = ("body", error.pos), {"error": error.msg}
        problem = {"type": "json_invalid", "loc": place, "msg": "JSON decode error", "input": {}, "ctx": context}
        invalid = RequestValidationError([problem], body=error.doc, endpoint_ctx=describe(request))
        raise report_validation_error(invalid) from error
    except HTTPException:
        raise
    except Exception as error:
        if internals.MAX_BODY_SIZE_SCOPE_KEY in request.scope and (limit := internals.get_body_limit_error(error)):
            raise limit from error
        raise HTTPException(400, "There was an error parsing the body") from error
    else:
        return content


def _find_content_type(request: Request) -> str | None:
    """The same as `request.headers.get("content-type")`, in a third of its time."""
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            text: str = value.decode("latin-1")
            return text
    return None


@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def _build_describe(dependant: Dependant) -> Callable[[Request], Any]:
    """A function that describes the endpoint for the text of a validation error."""

    def describe(request: Request) -> Any:
        prefix = request.scope.get("root_path", "").rstrip("/")
        place = internals.get_endpoint_context(dependant.call)
        return {**place, "path": f"{request.method} {prefix}{dependant.path}"}

    return describe


def _build_respond(included: Any, describe: Callable[[Request], Any]) -> Callable[..., Response]:
    """A function that makes the response from the result of the endpoint, and from the headers that were set."""
    field, status_code = included.response_field, included.status_code
    response_class = _unwrap_default(included.response_class)
    encodes_directly = field is not None and isinstance(included.response_class, DefaultPlaceholder)
    options = {
        "include": included.response_model_include,
        "exclude": included.response_model_exclude,
        "by_alias": included.response_model_by_alias,
        "exclude_unset": included.response_model_exclude_unset,
        "exclude_defaults": included.response_model_exclude_defaults,
        "exclude_none": included.response_model_exclude_none,
    }

    def respond(request: Request, result: Any, changed: Response | None) -> Response:
        arguments: dict[str, Any] = {"background": None}
        status = (changed.status_code if changed is not None else None) or status_code
        if status is not None:
            arguments["status_code"] = status
        if field is None:
            content = jsonable_encoder(result)
        else:
            value, errors = field.validate(result, {}, loc=("response",))
            if errors:
                raise ResponseValidationError(errors=errors, body=result, endpoint_ctx=describe(request))
            content = field.serialize_json(value, **options) if encodes_directly else field.serialize(value, **options)
        response: Response
        if encodes_directly and (status is None or is_body_allowed_for_status_code(status)):
            response = build_json_response(content, status=status or 200)
        else:
            new = partial(Response, media_type="application/json") if encodes_directly else response_class
            response = new(content, **arguments)
            if not is_body_allowed_for_status_code(response.status_code):
                response.body = b""
        if changed is not None:
            response.headers.raw.extend(changed.headers.raw)
        return response

    return respond


class _InnermostHandler(APIRoute):
    """A base class after the route's own class, so that `super().get_route_handler()` returns `compiled`."""

    compiled: Handler
    is_used: bool

    def get_route_handler(self) -> Handler:
        self.is_used = True
        return self.compiled


def _put_into_route_class(route: APIRoute, included: Any, handle: Handler) -> Handler:
    """The handler that the class of the route, such as `StrictJSONRoute`, makes from `handle`."""
    own_class = type(route)
    if own_class.get_route_handler is APIRoute.get_route_handler:
        return handle
    changed: Any = copy(route)
    changed.__class__ = type(own_class.__name__, (own_class, _InnermostHandler), {})
    changed.compiled, changed.is_used = handle, False
    setattr(changed, COMPLETE_DEPENDANT, included.dependant)
    wrapped: Handler = changed.get_route_handler()
    if not changed.is_used:
        raise CannotCompile(f"{own_class.__name__} doesn't call super().get_route_handler()")
    return wrapped


async def _probe() -> None:
    """An endpoint, to find the code of the application that FastAPI makes for each route."""


_APP_CODE: Final = getattr(APIRoute("/", _probe).app, "__code__", None)


def _unwrap_default(value: Any) -> Any:
    return value.value if isinstance(value, DefaultPlaceholder) else value


def _describe(call: Any) -> str:
    return str(getattr(call, "__name__", None) or repr(call))
