"""Requests that are authenticated by a cookie are rejected if another site's page sent them."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from howdah.fastapi import CrossOrigin, check_same_origin

HOST = ("host", "shop.example.com")


def make_connection(*headers: tuple[str, str], method: str = "POST", kind: str = "http") -> HTTPConnection:
    scope = {"type": kind, "path": "/", "headers": [(name.encode(), value.encode()) for name, value in headers]}
    return HTTPConnection(scope | ({"method": method} if kind == "http" else {}))


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_safe_methods_are_allowed_from_anywhere(method: str) -> None:
    check_same_origin(make_connection(HOST, ("sec-fetch-site", "cross-site"), method=method))


@pytest.mark.parametrize(
    "headers",
    [
        [("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "none")],
        # a page with `Referrer-Policy: no-referrer` sends the origin `null` to its own origin
        [("sec-fetch-site", "same-origin"), ("origin", "null")],
        [("origin", "https://shop.example.com")],
        [("origin", "HTTPS://Shop.Example.com:443")],
        [("origin", "http://shop.example.com")],
    ],
)
def test_requests_of_the_own_origin_are_allowed(headers: list[tuple[str, str]]) -> None:
    check_same_origin(make_connection(HOST, *headers))


@pytest.mark.parametrize(
    "headers",
    [
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "")],
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        # `Sec-Fetch-Site` decides, if there is one
        [("sec-fetch-site", "cross-site"), ("origin", "https://shop.example.com")],
        [("origin", "https://evil.example.com")],
        [("origin", "https://shop.example.com.evil.test")],
        [("origin", "https://shop.example.com:8443")],
        [("origin", "https://shop.example.com"), ("origin", "https://evil.example.com")],
        [("origin", "null")],
        [("origin", "")],
        [("origin", "shop.example.com")],
        [("origin", "file://shop.example.com")],
        [],
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"])
def test_other_requests_are_rejected(method: str, headers: list[tuple[str, str]]) -> None:
    with pytest.raises(CrossOrigin) as caught:
        check_same_origin(make_connection(HOST, *headers, method=method))
    assert (caught.value.status_code, caught.value.code) == (403, "cross-origin")


def test_the_opening_of_a_websocket_is_checked() -> None:
    check_same_origin(make_connection(HOST, ("origin", "https://shop.example.com"), kind="websocket"))
    with pytest.raises(CrossOrigin):
        check_same_origin(make_connection(HOST, ("origin", "https://evil.example.com"), kind="websocket"))


def test_a_request_without_one_host_is_rejected() -> None:
    origin = ("origin", "https://shop.example.com")
    for headers in ([origin], [origin, HOST, HOST], [origin, ("host", "")]):
        with pytest.raises(CrossOrigin):
            check_same_origin(make_connection(*headers))


def test_a_trusted_origin_is_allowed() -> None:
    connection = make_connection(HOST, ("sec-fetch-site", "same-site"), ("origin", "https://app.example.com"))
    with pytest.raises(CrossOrigin):
        check_same_origin(connection)
    check_same_origin(connection, trusted_origins={"https://app.example.com"})
