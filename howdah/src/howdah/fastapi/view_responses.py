"""Responses with the bytes that a `JsonView` has written."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Response
from starlette.requests import HTTPConnection

from howdah.page import Page
from howdah.views import Body


def json_response(body: Body, request: HTTPConnection | None = None) -> Response:
    """What a `JsonView` wrote, with its `ETag`; of a request whose `If-None-Match` has it, 304 without the body.

    For a route that names the Pydantic model as its `response_model`: the OpenAPI schema stays that of the model, and
    FastAPI leaves a response as it is.
    """
    etag = body.etag
    known = "" if request is None else ",".join(request.headers.getlist("if-none-match"))
    # a comparison of weak tags: RFC 9110, section 13.1.2
    if known == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
    return Response(bytes(body), headers={"ETag": etag}, media_type="application/json")


def page_response(page: Page[bytes]) -> Response:
    """A page of a `JsonView`: an object with `items`, `next` and `previous`, and where the page was counted with
    `total` and `total_capped`. As with `json_response`, the route names the Pydantic model."""
    members: dict[str, Any] = {"next": page.next, "previous": page.previous}
    if page.total is not None:
        members |= {"total": page.total, "total_capped": page.total_capped}
    return Response(
        b'{"items":[' + b",".join(page.items) + b"]," + orjson.dumps(members)[1:], media_type="application/json"
    )
