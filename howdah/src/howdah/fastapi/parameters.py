"""Query parameters that have one value."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final, get_args, get_origin

from fastapi.dependencies.models import Dependant
from pydantic import BaseModel
from starlette.datastructures import QueryParams

from howdah.fastapi.problem import ProblemException

_COLLECTIONS: Final = (list, set, frozenset, tuple)


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


def reject_repeated(parameters: QueryParams, single: frozenset[str]) -> None:
    """Raise `RepeatedParameter` if one of these names occurs more than once."""
    names = [name for name, _ in parameters.multi_items()]
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
