"""Read the parameters of a request as FastAPI does. The decisions that don't depend on the request are made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from fastapi import Request, params
from fastapi.dependencies.models import Dependant
from pydantic import Json

from howdah.fastapi import _fastapi_internals as internals
from howdah.fastapi.parameters import list_query_items

Read = Callable[[Request, dict[str, Any]], Sequence[Any]]
"""Adds an argument of a function to the others. Returns the errors."""

_NO_DEFAULT: Final = object()
# Other defaults may be mutable, so FastAPI copies them for each request.
_IMMUTABLE: Final = (type(None), bool, int, float, str)


def build_reads(dependant: Dependant) -> Iterator[Read]:
    """A function for each parameter of a dependency or an endpoint, in FastAPI's order. The body isn't among them."""
    groups = (
        ("path_params", dependant.path_params),
        ("query_params", dependant.query_params),
        ("headers", dependant.header_params),
        ("cookies", dependant.cookie_params),
    )
    for group, fields in groups:
        for field in fields:
            yield _build_read(field, group)


def _build_read(field: Any, group: str) -> Read:
    def read_by_fastapi(request: Request, arguments: dict[str, Any]) -> Sequence[Any]:
        found, errors = internals.request_params_to_args([field], getattr(request, group))
        arguments.update(found)
        return errors

    if internals.get_param_model(field) is not None:
        return _build_query_model_read(field) if _is_plain_query_model(field) else read_by_fastapi
    aliases = internals.get_param_aliases(field)
    if len(aliases) > 1 or internals.field_annotation_is_sequence(field.field_info.annotation):
        return read_by_fastapi
    name, alias, default = field.name, aliases[0][1], _find_default(field)
    place = (field.field_info.in_.value, alias)

    def read(request: Request, arguments: dict[str, Any]) -> Sequence[Any]:
        value = getattr(request, group).get(alias)
        if value is not None:
            arguments[name], errors = field.validate(value, arguments, loc=place)
            return errors  # type: ignore[no-any-return]
        if default is _NO_DEFAULT:
            return read_by_fastapi(request, arguments)
        arguments[name] = default
        return ()

    return read


def _find_default(field: Any) -> Any:
    """The value without the parameter, if it is the same object for each request."""
    info = field.field_info
    if info.is_required() or info.default_factory is not None or info.validate_default:
        return _NO_DEFAULT
    return field.default if isinstance(field.default, _IMMUTABLE) else _NO_DEFAULT


def _is_plain_query_model(field: Any) -> bool:
    """Whether each parameter of the model has one name and isn't a JSON text, and the model itself isn't optional."""
    info = field.field_info
    if not isinstance(info, params.Query) or info.annotation is not internals.get_param_model(field):
        return False
    fields = internals.get_cached_model_fields(info.annotation)
    names = [alias for each in fields for alias in internals.get_param_aliases(each)]
    has_json = any(type(item) is Json for each in fields for item in each.field_info.metadata)
    return len(fields) == len(names) == len({*names}) and not has_json


def _build_query_model_read(field: Any) -> Read:
    """A model of query parameters: they are collected by their names, and validated together."""
    is_list = {
        internals.get_param_aliases(each)[0][0]: internals.field_annotation_is_sequence(each.field_info.annotation)
        for each in internals.get_cached_model_fields(field.field_info.annotation)
    }
    name, place = field.name, (field.field_info.in_.value,)

    def read(request: Request, arguments: dict[str, Any]) -> Sequence[Any]:
        received: dict[str, Any] = {}
        if request.scope["query_string"]:
            lists: dict[str, list[str]] = {}
            for key, value in list_query_items(request.scope):
                lists.setdefault(key, []).append(value)
            # the declared ones first, in their order, as in FastAPI
            for key, takes_list in is_list.items():
                if (values := lists.pop(key, None)) is not None:
                    received[key] = values if takes_list else values[-1]
            for key, values in lists.items():
                received[key] = values if len(values) > 1 else values[0]
        arguments[name], errors = field.validate(received, arguments, loc=place)
        return errors  # type: ignore[no-any-return]

    return read
