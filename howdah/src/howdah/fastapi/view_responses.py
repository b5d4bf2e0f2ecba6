"""Responses with the bytes of a `JsonView`."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from typing import Any, TypeVar, overload

import orjson
from fastapi import Response
from sqlalchemy import Select, select
from starlette.requests import HTTPConnection

from howdah._reads.lookups import JsonBytes
from howdah._reads.page import Page
from howdah.fastapi._json_responses import build_json_response
from howdah.fastapi.pages import PageParameters
from howdah.fastapi.preconditions import has_tag
from howdah.views import JsonViewReader

ViewerT = TypeVar("ViewerT")


def json_response(body: JsonBytes, request: HTTPConnection | None = None) -> Response:
    """A response with the JSON of a `JsonView` and its `ETag`.

    If the `If-None-Match` of the request contains that tag, the response is 304 without the body.

    Declare the Pydantic model as the route's `response_model`. The OpenAPI description then has the model's schema, and
    FastAPI sends the response unchanged.
    """
    etag = body.etag
    if request is not None and (tags := _find_if_none_match(request)) and has_tag(tags, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
    return build_json_response(bytes(body), headers=[(b"etag", etag.encode())])


def _find_if_none_match(request: HTTPConnection) -> str:
    # not `request.headers`, which copies all headers of the request
    values = [value for name, value in request.scope["headers"] if name == b"if-none-match"]
    return b",".join(values).decode("latin-1") if values else ""


@overload
async def list_response(
    reader: JsonViewReader[Any, None],
    parameters: PageParameters,
    *,
    statement: Select[Any] | None = None,
    count: bool | int = False,
) -> Response: ...
@overload
async def list_response(
    reader: JsonViewReader[Any, ViewerT],
    parameters: PageParameters,
    *,
    statement: Select[Any] | None = None,
    viewer: ViewerT,
    count: bool | int = False,
) -> Response: ...
async def list_response(
    reader: JsonViewReader[Any, Any],
    parameters: PageParameters,
    *,
    statement: Select[Any] | None = None,
    viewer: Any = None,
    count: bool | int = False,
) -> Response:
    """A response with a page of the view: the rows, the order and the page that the query parameters choose.

        @router.get("/orders", response_model=PageOut[OrderOut])
        async def list_orders(parameters: Annotated[OrderParameters, Query()], orders: OrderReader) -> Response:
            return await list_response(orders, parameters)

    `statement` is a `select()` of the model. Its conditions are kept, and its order unless the parameters have a
    `Sort`; without it the list has all rows. `viewer` and `count` are those of `JsonViewReader.page`.
    """
    model: Any = reader.model
    chosen = parameters.apply(_select_all(model) if statement is None else statement)
    return page_response(await reader.page(chosen, viewer=viewer, count=count, **parameters.page_arguments))


@lru_cache(maxsize=256)
def _select_all(model: Any) -> Select[Any]:
    """One object for all requests, for which the view prepares its page once."""
    return select(model)


def page_response(page: Page[bytes]) -> Response:
    """A response with a page of a `JsonView`: an object with `items`, `next` and `previous`.

    If the rows were counted, the object also has `total` and `total_capped`. Declare `PageOut` of the Pydantic model as
    the route's `response_model`.
    """
    members: dict[str, Any] = {"next": page.next, "previous": page.previous}
    if page.total is not None:
        members |= {"total": page.total, "total_capped": page.total_capped}
    # The items are JSON already, so they are joined and not parsed. `[1:]` drops the `{` of the other members.
    return build_json_response(b'{"items":[' + b",".join(page.items) + b"]," + orjson.dumps(members)[1:])
