"""Responses with the bytes of a `JsonView`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Response
from starlette.requests import HTTPConnection

from howdah._reads.lookups import JsonBytes
from howdah._reads.page import Page


def json_response(body: JsonBytes, request: HTTPConnection | None = None) -> Response:
    """A response with the JSON of a `JsonView` and its `ETag`.

    If the `If-None-Match` of the request contains that tag, the response is 304 without the body.

    Declare the Pydantic model as the route's `response_model`. The OpenAPI description then has the model's schema, and
    FastAPI sends the response unchanged.
    """
    etag = body.etag
    if_none_match = "" if request is None else ",".join(request.headers.getlist("if-none-match"))
    # weak comparison: RFC 9110, section 13.1.2
    if if_none_match == "*" or etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(",")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
    return Response(bytes(body), headers={"ETag": etag}, media_type="application/json")


def page_response(page: Page[bytes]) -> Response:
    """A response with a page of a `JsonView`: an object with `items`, `next` and `previous`.

    If the rows were counted, the object also has `total` and `total_capped`. Declare `PageOut` of the Pydantic model as
    the route's `response_model`.
    """
    members: dict[str, Any] = {"next": page.next, "previous": page.previous}
    if page.total is not None:
        members |= {"total": page.total, "total_capped": page.total_capped}
    # The items are JSON already, so they are joined and not parsed. `[1:]` drops the `{` of the other members.
    return Response(
        b'{"items":[' + b",".join(page.items) + b"]," + orjson.dumps(members)[1:], media_type="application/json"
    )
