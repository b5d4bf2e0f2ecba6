"""Security headers of all responses, and CORS, which is closed by default."""

from __future__ import annotations

from collections.abc import Callable

import fastapi
import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah import Database
from howdah.fastapi import RateLimit, RateLimits, configure_app
from howdah_tests.support.fastapi_apps import http_client

ORIGIN = "https://app.example.com"
API_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def build_app(*origins: str, rate_limits: RateLimits | None = None) -> FastAPI:
    app = FastAPI()
    configure_app(
        app,
        database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"),
        trusted_proxies=["127.0.0.1"],
        cors_origins=[*origins],
        allowed_hosts=["127.0.0.1"],
        rate_limits=rate_limits,
    )

    @app.get("/items")
    async def list_items() -> list[int]:
        return []

    @app.put("/items")
    async def put_item() -> None: ...

    @app.get("/broken")
    async def fail() -> None:
        raise RuntimeError

    @app.get("/page")
    async def page() -> HTMLResponse:
        return HTMLResponse("<p>", headers={"Content-Security-Policy": "default-src 'self'"})

    return app


Request = Callable[[httpx.AsyncClient], httpx.Request]
REQUESTS: dict[str, tuple[Request, int]] = {
    "a result": (lambda client: client.build_request("GET", "/items"), 200),
    "an unknown path": (lambda client: client.build_request("GET", "/nothing"), 404),
    "a wrong method": (lambda client: client.build_request("DELETE", "/items"), 405),
    "an unexpected error": (lambda client: client.build_request("GET", "/broken"), 500),
    "a wrong host": (lambda client: client.build_request("GET", "/items", headers={"Host": "evil"}), 421),
    "OPTIONS": (lambda client: client.build_request("OPTIONS", "/items"), 204),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_every_response_has_the_headers(name: str) -> None:
    build, status = REQUESTS[name]
    async with http_client(build_app()) as client:
        response = await client.send(build(client))
    assert response.status_code == status
    assert response.headers["content-security-policy"] == API_POLICY
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert response.headers["referrer-policy"] == "same-origin"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert "strict-transport-security" not in response.headers
    assert "permissions-policy" not in response.headers


async def test_a_page_keeps_its_own_policy_and_has_the_headers_of_documents() -> None:
    async with http_client(build_app()) as client:
        page = await client.get("/page")
    assert page.headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
    assert "camera=()" in page.headers["permissions-policy"]


async def test_strict_transport_security_only_over_tls() -> None:
    async with http_client(build_app()) as client:
        response = await client.get("/items", headers={"X-Forwarded-Proto": "https"})
        assert response.headers["strict-transport-security"] == "max-age=31536000"


async def test_cors_is_closed_by_default() -> None:
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"}
    async with http_client(build_app()) as client:
        for response in (
            await client.options("/items", headers=preflight),
            await client.get("/items", headers={"Origin": ORIGIN}),
        ):
            assert not [name for name in response.headers if name.startswith("access-control")]


async def test_a_named_origin_may_send_requests_and_read_the_responses() -> None:
    limits = RateLimits(classes={"read": RateLimit(2, 60)})
    async with http_client(build_app(ORIGIN, rate_limits=limits)) as client:
        preflight = await client.options(
            "/items",
            headers={
                "Origin": ORIGIN,
                "Access-Control-Request-Method": "PUT",
                "Access-Control-Request-Headers": "authorization, idempotency-key, if-match, content-type",
            },
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "PUT" in preflight.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in preflight.headers  # no cookies
        responses = [await client.get(path, headers={"Origin": ORIGIN}) for path in ("/items", "/broken", "/items")]
        assert [each.status_code for each in responses] == [200, 500, 429]
        for response in responses:
            assert response.headers["access-control-allow-origin"] == ORIGIN
            assert "RateLimit" in response.headers["access-control-expose-headers"]
            assert "Origin" in response.headers["vary"]
        foreign = await client.options(
            "/items", headers={"Origin": "https://evil.example.com", "Access-Control-Request-Method": "PUT"}
        )
        assert foreign.status_code == 400
        assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize("origin", ["*", "null", "https://a.example/", "app.example.com", "https://A.example"])
def test_an_origin_that_is_none_is_rejected(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        build_app(origin)


async def test_the_scheme_is_that_of_the_connection_and_not_that_of_inner_middleware() -> None:
    app = FastAPI()

    class SetScheme:
        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope["scheme"] = "https"
            await self._app(scope, receive, send)

    app.add_middleware(SetScheme)  # inside of the layers of `configure_app`, because it is added before them
    configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"))

    @app.get("/scheme")
    async def read_scheme(request: fastapi.Request) -> str:
        return request.url.scheme

    async with http_client(app) as client:
        response = await client.get("/scheme")
        assert response.json() == "https"  # the control
        assert "strict-transport-security" not in response.headers
