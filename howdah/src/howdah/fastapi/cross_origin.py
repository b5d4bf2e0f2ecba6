"""Protect requests that are authenticated by a cookie against cross-site request forgery (CSRF).

async def authenticate(connection: HTTPConnection) -> CurrentUser | None:
    token = find_cookie(connection, "__Host-session")
    if token is None:
        return None
    check_same_origin(connection)
    return await verify(token)
"""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus
from typing import Final

from starlette.requests import HTTPConnection

from howdah.fastapi.problem import ProblemException

# These methods change nothing, and the browser doesn't let another site read the response.
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# `none`: the user typed the address, or used a bookmark. `same-site` isn't allowed: another subdomain may be hostile.
_ALLOWED_SITES: Final = frozenset({"same-origin", "none"})
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


class CrossOrigin(ProblemException):
    """A request with a cookie came from a page of another origin (403, `cross-origin`)."""

    def __init__(self, detail: str) -> None:
        super().__init__(HTTPStatus.FORBIDDEN, "cross-origin", detail)


def check_same_origin(connection: HTTPConnection, *, trusted_origins: Collection[str] = ()) -> None:
    """Raise `CrossOrigin` (403) if a page of another origin sent this request. Safe methods are always allowed.

    A browser adds the cookies of this application to requests that another site's page sends. So call this function
    for every request that is authenticated by a cookie, and before the principal is returned. A request with a token in
    the header `Authorization` doesn't need it, because a browser doesn't add that header by itself.

    The header `Sec-Fetch-Site` decides, and without it `Origin`, whose host must be that of the header `Host`. A page
    can't set these headers. Every browser sends at least one of the two. A request with neither is rejected, so a
    client that isn't a browser must send `Origin`. The opening of a WebSocket is checked, too, although its method is
    GET.

    `trusted_origins` are further origins whose pages may send requests, for example `https://app.example.com`.
    """
    if connection.scope["type"] == "http" and connection.scope["method"] in _SAFE_METHODS:
        return
    origins = connection.headers.getlist("origin")
    if len(origins) == 1 and origins[0] in trusted_origins:
        return
    sites = connection.headers.getlist("sec-fetch-site")
    if sites:
        if not _ALLOWED_SITES.issuperset(sites):
            raise CrossOrigin("a page of another origin sent this request with a cookie")
    elif not origins:
        raise CrossOrigin(
            "a request with a cookie needs the header Origin: send it, or send a token in Authorization instead"
        )
    elif not _is_own_origin(origins, connection.headers.getlist("host")):
        raise CrossOrigin("the header Origin of a request with a cookie must be the origin of this service")


def _is_own_origin(origins: list[str], hosts: list[str]) -> bool:
    """Whether there is one origin, with the host and port of the request.

    The schemes aren't compared, because a proxy may have removed TLS. The origin `null` has no host.
    """
    if len(origins) != 1 or len(hosts) != 1:
        return False
    scheme, separator, host = origins[0].lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    if not separator or not host or port is None:
        return False
    return host.removesuffix(port) == hosts[0].lower().removesuffix(port)
