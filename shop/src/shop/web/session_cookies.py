"""The cookies of a person who has signed in with a browser.

Both have the prefix `__Host-`: the browser accepts them only over TLS (or from this machine), and only from the host
itself, so no other subdomain can set them. Scripts can't read them. Requests from pages of other sites don't send them.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import HTTPConnection
from starlette.responses import Response

from howdah.fastapi import find_cookie

_ACCESS_COOKIE: Final = "__Host-shop-access"
_REFRESH_COOKIE: Final = "__Host-shop-refresh"


def find_access_token(connection: HTTPConnection) -> str | None:
    return find_cookie(connection, _ACCESS_COOKIE)


def find_refresh_token(connection: HTTPConnection) -> str | None:
    return find_cookie(connection, _REFRESH_COOKIE)


def set_session_cookies(response: Response, *, access_token: str, refresh_token: str, expires_in: int) -> None:
    """Set both. The first one expires with its token, after `expires_in` seconds, the second one with the browser."""
    _set(response, _ACCESS_COOKIE, access_token, max_age=expires_in)
    _set(response, _REFRESH_COOKIE, refresh_token, max_age=None)


def delete_session_cookies(response: Response) -> None:
    for name in (_ACCESS_COOKIE, _REFRESH_COOKIE):
        _set(response, name, "", max_age=0)


def _set(response: Response, name: str, value: str, *, max_age: int | None) -> None:
    response.set_cookie(name, value, max_age=max_age, path="/", secure=True, httponly=True, samesite="strict")
