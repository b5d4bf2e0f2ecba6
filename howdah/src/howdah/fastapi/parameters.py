"""Query parameters that have one value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, get_args, get_origin
from urllib.parse import parse_qsl

from fastapi.dependencies.models import Dependant
from pydantic import BaseModel
from starlette.types import Scope

from howdah.fastapi.problem import ProblemException

_COLLECTIONS: Final = (list, set, frozenset, tuple)
# Longer queries are parsed each time, so that the cache stays small.
_MAX_CACHED_BYTES: Final = 256


class RepeatedParameter(ProblemException):
    """A query parameter that has one value was sent several times (400, `repeated-parameter`).

    FastAPI would use the last value and ignore the others.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST, "repeated-parameter", f"the parameter {name} was sent several times: send it once"
        )


def get_single_parameters(dependant: Dependant) -> frozenset[str]:
    """The names of the route's query parameters that have one value."""
    return frozenset(_iterate_names(dependant))


def list_query_items(scope: Scope) -> Sequence[tuple[str, str]]:
    """The names and values of the query, as `request.query_params.multi_items()` returns them.

    Short queries are parsed once, and then cached. Clients send the same query again and again, such as `limit=50`, and
    parsing it takes several microseconds.
    """
    query = scope["query_string"]
    return _parse_query(query) if len(query) > _MAX_CACHED_BYTES else _parse_query_once(query)


def _parse_query(query: bytes) -> tuple[tuple[str, str], ...]:
    return tuple(parse_qsl(query.decode("latin-1"), keep_blank_values=True))


_parse_query_once: Final = lru_cache(maxsize=512)(_parse_query)


def reject_repeated(parameters: Sequence[tuple[str, str]], single: frozenset[str]) -> None:
    """Raise `RepeatedParameter` if one of these names occurs more than once."""
    names = [name for name, _ in parameters]
    if len({*names}) < len(names):
        repeated = next((name for index, name in enumerate(names) if name in single and name in names[:index]), None)
        if repeated is not None:
            raise RepeatedParameter(repeated)


def _iterate_names(dependant: Dependant) -> Iterator[str]:
    for each in dependant.dependencies:
        yield from _iterate_names(each)
    for parameter in dependant.query_params:
        kind = parameter.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, field in kind.model_fields.items():
                if not _has_collection(field.annotation):
                    yield _get_alias(name, field.validation_alias, field.alias)
        elif not _has_collection(kind):
            yield parameter.alias


def _get_alias(name: str, *aliases: Any) -> str:
    return next((each for each in aliases if isinstance(each, str)), name)


def _has_collection(annotation: Any) -> bool:
    """Whether the annotation is a collection, or a union with one."""
    kind = get_origin(annotation) or annotation
    if isinstance(kind, type) and issubclass(kind, _COLLECTIONS):
        return True
    is_literal_or_class = isinstance(kind, type) and not get_args(annotation)
    return not is_literal_or_class and any(_has_collection(each) for each in get_args(annotation))
