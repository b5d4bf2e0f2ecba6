"""Dependencies for request headers that have one value."""

# No `from __future__ import annotations`: FastAPI can't resolve the name of a local type in a string.

from http import HTTPStatus
from typing import Annotated, Any
from weakref import WeakKeyDictionary, WeakSet

from fastapi import Header
from fastapi.params import Depends as DependsMarker
from starlette.requests import HTTPConnection

from howdah.fastapi.problem import ProblemException


class RepeatedHeader(ProblemException):
    """A header that has one value was sent several times (400, `repeated-header`).

    For example, a proxy added the header and did not remove the client's. Nobody can tell which value is meant.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST, "repeated-header", f"the header {name} was sent several times: send it once"
        )


class MissingHeader(ProblemException):
    """A required header was not sent (400, `<name>-missing`, for example `idempotency-key-missing`)."""

    def __init__(self, name: str) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST, f"{name.lower()}-missing", f"the request needs the header {name}: send it"
        )


def single_header(
    name: str,
    type_: Any = str,
    *,
    required: bool = False,
    default: Any = None,
    description: str | None = None,
    examples: list[Any] | None = None,
) -> Any:
    """A dependency with the value of a header: `Annotated[str | None, single_header("X-Device-Id")]`.

    `type_` is the type of the value, with its constraints. The response for an invalid value is 422. If the header
    isn't sent, the value is `default`, or with `required` the request is rejected with `MissingHeader`. A header that
    is sent several times is rejected with `RepeatedHeader`, because Starlette would use the first value and ignore the
    others.
    """
    marker = Header(alias=name, description=description, examples=examples)

    async def get_header(connection: HTTPConnection, value: Annotated[type_ | None, marker] = None) -> Any:
        if value is None:
            if required:
                raise MissingHeader(name)
            return default
        if len(connection.headers.getlist(name)) > 1:
            raise RepeatedHeader(name)
        return value

    _header_dependencies.add(get_header)
    if required:
        _required_headers[get_header] = name
    return DependsMarker(get_header)


_header_dependencies: WeakSet[Any] = WeakSet()
_required_headers: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def is_single_header(dependency: Any) -> bool:
    """Whether the dependency is one that `single_header` made."""
    # compared by identity, because a dependency may be unhashable
    return any(dependency is each for each in _header_dependencies)


def get_required_header(dependency: Any) -> str | None:
    """The name of the header, if the dependency is one that `single_header(..., required=True)` made."""
    return _required_headers[dependency] if is_single_header(dependency) and dependency in _required_headers else None
