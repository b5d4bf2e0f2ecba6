"""The private functions of FastAPI and Starlette that direct routes use, in order to do exactly what FastAPI does.

They are used while a route is compiled, and for the rare cases of a request. A version of FastAPI before 0.164 doesn't
have them: then `IS_SUPPORTED` is false, and FastAPI serves all routes. A test compares the source of the functions that
direct routes replace with the source that was read.
"""

from __future__ import annotations

from typing import Final

try:
    from fastapi._body_limit import get_body_limit_error
    from fastapi._compat import ModelField, field_annotation_is_sequence, get_cached_model_fields
    from fastapi.dependencies.models import _get_cache_key, _is_async_gen_callable, _is_coroutine_callable
    from fastapi.dependencies.utils import (
        _get_param_aliases,
        _get_param_model,
        _solve_generator,
        request_body_to_args,
        request_params_to_args,
    )
    from fastapi.routing import _extract_endpoint_context
    from fastapi.sse import EventSourceResponse
    from starlette._exception_handler import wrap_app_handling_exceptions
    from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
except ImportError:
    IS_SUPPORTED = False
else:
    IS_SUPPORTED = True
    get_param_aliases, get_param_model = _get_param_aliases, _get_param_model
    get_cache_key, get_endpoint_context = _get_cache_key, _extract_endpoint_context
    is_async_generator, is_coroutine = _is_async_gen_callable, _is_coroutine_callable
    enter_generator = _solve_generator

FUNCTION_STACK: Final = "fastapi_function_astack"
"""The key in the ASGI scope of the exit stack whose dependencies end before the response is sent."""

REQUEST_STACK: Final = "fastapi_inner_astack"
"""The key of the exit stack whose dependencies end after the response was sent."""

__all__ = [
    "FUNCTION_STACK",
    "IS_SUPPORTED",
    "MAX_BODY_SIZE_SCOPE_KEY",
    "REQUEST_STACK",
    "EventSourceResponse",
    "ModelField",
    "enter_generator",
    "field_annotation_is_sequence",
    "get_body_limit_error",
    "get_cache_key",
    "get_cached_model_fields",
    "get_endpoint_context",
    "get_param_aliases",
    "get_param_model",
    "is_async_generator",
    "is_coroutine",
    "request_body_to_args",
    "request_params_to_args",
    "wrap_app_handling_exceptions",
]
