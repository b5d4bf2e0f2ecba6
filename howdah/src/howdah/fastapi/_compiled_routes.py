"""Compile a route of FastAPI: a handler that does what FastAPI's own one does, but decides less for each request."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from copy import copy
from email.message import Message
from json import JSONDecodeError
from typing import Any, Final

from fastapi import Request, Response, params
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_body_to_args, request_params_to_args
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from fastapi.utils import is_body_allowed_for_status_code
from pydantic_core import PydanticUndefined
from starlette.exceptions import HTTPException

from howdah.fastapi.access import AccessRule

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

FUNCTION_STACK: Final = "fastapi_function_astack"
REQUEST_STACK: Final = "fastapi_inner_astack"


class CannotCompile(Exception):
    """A route uses something that only FastAPI's own handler can do."""


class CompiledRoute:
    """The handler of a route. `calls` are the functions that it calls. `needs_stacks` if one of them is a generator."""

    def __init__(self, included: Any) -> None:
        """`included` is the route, or its inclusion by `include_router`. Raises `CannotCompile`."""
        route: APIRoute = getattr(included, "original_route", included)
        _check_route(route, included)
        endpoint = _Step(included.dependant)
        self.calls = frozenset(each.call for each in endpoint.iterate() if _is_hashable(each.call))
        self.needs_stacks = any(each.is_generator for each in endpoint.iterate())
        self.handle: Handler = _put_into_route_class(route, included, _build_handler(endpoint, included))


def _check_route(route: APIRoute, included: Any) -> None:
    """Raise `CannotCompile` for what the handler can't do."""
    call = included.dependant.call
    if not inspect.iscoroutinefunction(call):
        raise CannotCompile("its function isn't `async def`")
    if included.max_body_size is not None:
        raise CannotCompile("it has a `max_body_size` of its own: remove it, or pass `max_body_bytes` to configure_app")
    if included.body_field is not None and isinstance(included.body_field.field_info, params.Form):
        raise CannotCompile("its body is a form")


class _Step:
    """A dependency, or the endpoint, with all decisions that don't depend on the request."""

    __slots__ = (
        *("body_fields", "call", "dependencies", "has_parameters", "is_generator", "key", "name"),
        *("path_fields", "parameter_groups", "request_names", "response_name", "stack", "uses_cache"),
    )

    def __init__(self, dependant: Dependant) -> None:
        call: Any = dependant.call
        self.call, self.name = call, dependant.name
        # A rule is checked before the handler is called.
        self.dependencies = [_Step(each) for each in dependant.dependencies if not _is_rule(each)]
        self.is_generator = _is_async_generator(call)
        self.stack = FUNCTION_STACK if dependant.scope == "function" else REQUEST_STACK
        self.uses_cache = dependant.use_cache
        self.key = (id(call), self.stack if self.is_generator else dependant.scope)
        self.path_fields = [(each, ("path", each.alias)) for each in dependant.path_params]
        self.parameter_groups = [
            (fields, name)
            for fields, name in (
                (dependant.query_params, "query_params"),
                (dependant.header_params, "headers"),
                (dependant.cookie_params, "cookies"),
            )
            if fields
        ]
        self.body_fields = dependant.body_params
        names = (dependant.request_param_name, dependant.http_connection_param_name)
        self.request_names = [each for each in names if each is not None]
        self.response_name = dependant.response_param_name
        if not self.is_generator and not _is_coroutine(call):
            raise CannotCompile(f"{_describe(call)} isn't `async def`")
        if dependant.background_tasks_param_name is not None:
            raise CannotCompile(f"{_describe(call)} has BackgroundTasks")
        if dependant.security_scopes_param_name is not None or dependant.own_oauth_scopes:
            raise CannotCompile(f"{_describe(call)} has scopes of OAuth 2.0")
        if getattr(dependant, "concurrency", None) is not None:
            raise CannotCompile(f"{_describe(call)} has a limit of concurrency")

    def iterate(self) -> Iterator[_Step]:
        yield self
        for each in self.dependencies:
            yield from each.iterate()


class _Run:
    """The state of one request."""

    __slots__ = ("body", "embeds_body", "errors", "request", "response", "results")

    def __init__(self, request: Request, body: Any, *, embeds_body: bool) -> None:
        self.request, self.body, self.embeds_body = request, body, embeds_body
        self.errors: list[Any] = []
        self.results: dict[Any, Any] = {}
        self.response: Response | None = None

    async def collect_arguments(self, step: _Step) -> dict[str, Any] | None:
        """Call the dependencies of this step, and validate its parameters. None if the request is invalid."""
        arguments: dict[str, Any] = {}
        request, first_error = self.request, len(self.errors)
        for each in step.dependencies:
            if each.uses_cache and each.key in self.results:
                result = self.results[each.key]
            else:
                inner = await self.collect_arguments(each)
                if inner is None:
                    continue
                result = await self._call(each, inner)
                self.results.setdefault(each.key, result)
            if each.name is not None:
                arguments[each.name] = result
        for field, place in step.path_fields:
            value, errors = field.validate(request.path_params[place[1]], arguments, loc=place)
            arguments[field.name] = value
            self.errors += errors
        for fields, name in step.parameter_groups:
            values, errors = request_params_to_args(fields, getattr(request, name))
            arguments |= values
            self.errors += errors
        if step.body_fields:
            values, errors = await request_body_to_args(
                body_fields=step.body_fields, received_body=self.body, embed_body_fields=self.embeds_body
            )
            arguments |= values
            self.errors += errors
        for each_name in step.request_names:
            arguments[each_name] = request
        if step.response_name is not None:
            arguments[step.response_name] = self.get_response()
        return arguments if len(self.errors) == first_error else None

    async def _call(self, step: _Step, arguments: dict[str, Any]) -> Any:
        if not step.is_generator:
            return await step.call(**arguments)
        stack: AsyncExitStack = self.request.scope[step.stack]
        return await stack.enter_async_context(asynccontextmanager(step.call)(**arguments))

    def get_response(self) -> Response:
        """The response on which the route and its dependencies set headers and the status."""
        if self.response is None:
            self.response = Response()
            del self.response.headers["content-length"]
            self.response.status_code = None  # type: ignore[assignment]  # so that one that is set is noticed
        return self.response


def _build_handler(endpoint: _Step, included: Any) -> Handler:
    body_field, embeds_body = included.body_field, included._embed_body_fields
    is_strict = _unwrap_default(included.strict_content_type)
    respond = _build_respond(included)
    call = endpoint.call

    async def handle(request: Request) -> Response:
        body = PydanticUndefined if body_field is None else await _read_body(request, is_strict=is_strict)
        run = _Run(request, body, embeds_body=embeds_body)
        arguments = await run.collect_arguments(endpoint)
        if arguments is None:
            raise RequestValidationError(run.errors, body=None if body is PydanticUndefined else body)
        result = await call(**arguments)
        return result if isinstance(result, Response) else respond(result, run.response)

    return handle


async def _read_body(request: Request, *, is_strict: bool) -> Any:
    """The value of a JSON body, the bytes of another one, or `PydanticUndefined` without a body. As in FastAPI."""
    try:
        content = await request.body()
        if not content:
            return PydanticUndefined
        content_type = request.headers.get("content-type")
        if _is_json(content_type) if content_type else not is_strict:
            return await request.json()
    except JSONDecodeError as error:
        raise RequestValidationError(
            [
                {
                    "type": "json_invalid",
                    "loc": ("body", error.pos),
                    "msg": "JSON decode error",
                    "input": {},
                    "ctx": {"error": error.msg},
                }
            ],
            body=error.doc,
        ) from error
    except HTTPException:
        raise
    except Exception as error:
        raise HTTPException(400, "There was an error parsing the body") from error
    else:
        return content


def _is_json(content_type: str) -> bool:
    if content_type == "application/json":
        return True
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def _build_respond(included: Any) -> Callable[[Any, Response | None], Response]:
    """A function that makes the response from what the endpoint returned, and from the headers that it has set."""
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

    def encode(result: Any) -> Any:
        if field is None:
            return jsonable_encoder(result)
        value, errors = field.validate(result, {}, loc=("response",))
        if errors:
            raise ResponseValidationError(errors=errors, body=result)
        return field.serialize_json(value, **options) if encodes_directly else field.serialize(value, **options)

    def respond(result: Any, changed: Response | None) -> Response:
        status = status_code
        if changed is not None and changed.status_code:
            status = changed.status_code
        arguments = {} if status is None else {"status_code": status}
        content = encode(result)
        if encodes_directly:
            response = Response(content, media_type="application/json", **arguments)
        else:
            response = response_class(content, **arguments)
        if not is_body_allowed_for_status_code(response.status_code):
            response.body = b""
        if changed is not None:
            response.raw_headers += changed.raw_headers
        return response

    return respond


class _InnermostHandler(APIRoute):
    """Comes after the route's own class in the order of classes, so that `super().get_route_handler()` is `handle`."""

    compiled: Handler
    is_used: bool

    def get_route_handler(self) -> Handler:
        self.is_used = True
        return self.compiled


def _put_into_route_class(route: APIRoute, included: Any, handle: Handler) -> Handler:
    """The handler that the class of the route, such as `StrictJSONRoute`, makes from `handle`."""
    own_class = type(route)
    if own_class is APIRoute:
        return handle
    changed: Any = copy(route)
    changed.dependant = included.dependant
    changed.__class__ = type(own_class.__name__, (own_class, _InnermostHandler), {})
    changed.compiled, changed.is_used = handle, False
    wrapped: Handler = changed.get_route_handler()
    if not changed.is_used:
        raise CannotCompile(f"{own_class.__name__} doesn't call super().get_route_handler()")
    return wrapped


def _is_rule(dependant: Dependant) -> bool:
    return isinstance(dependant.call, AccessRule) and dependant.name is None


def _is_coroutine(call: Any) -> bool:
    return not isinstance(call, SecurityBase) and any(
        inspect.iscoroutinefunction(each)
        for each in (call, getattr(call, "__call__", None))  # noqa: B004
    )


def _is_async_generator(call: Any) -> bool:
    return any(inspect.isasyncgenfunction(each) for each in (call, getattr(call, "__call__", None)))  # noqa: B004


def _is_hashable(call: Any) -> bool:
    try:
        hash(call)
    except TypeError:
        return False
    return True


def _unwrap_default(value: Any) -> Any:
    return value.value if isinstance(value, DefaultPlaceholder) else value


def _describe(call: Any) -> str:
    return str(getattr(call, "__name__", None) or repr(call))
