"""`find_cookie` reads only a cookie with exactly the name."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from howdah.fastapi import find_cookie

NAME = "__Host-session"


def connection_with(*headers: bytes) -> HTTPConnection:
    return HTTPConnection({"type": "http", "headers": [(b"cookie", each) for each in headers]})


@pytest.mark.parametrize(
    "headers",
    [
        [b"__Host-session=mine"],
        [b"a=1; __Host-session=mine; b=2"],
        [b"a=1", b" __Host-session=mine"],
        [b"\xa0__Host-session=planted; __Host-session=mine"],
    ],
)
def test_the_cookie_is_found(headers: list[bytes]) -> None:
    assert find_cookie(connection_with(*headers), NAME) == "mine"


@pytest.mark.parametrize(
    "header",
    [
        b"__Host-session2=planted",
        b"__host-session=planted",
        b"__Host-session=mine; __Host-session=planted",
        b"\xa0__Host-session=planted",
        b"\x85__Host-session=planted",
    ],
)
def test_no_other_cookie_is_found(header: bytes) -> None:
    assert find_cookie(connection_with(header), NAME) is None


def test_control_starlette_finds_a_cookie_with_another_name() -> None:
    assert connection_with(b"\xa0__Host-session=planted").cookies == {NAME: "planted"}
