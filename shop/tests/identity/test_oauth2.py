"""The form of OAuth 2.0, which Swagger UI and generated clients send."""

from __future__ import annotations

import httpx
import pytest
from starlette.requests import HTTPConnection

from howdah import Database
from howdah.fastapi import NotAuthenticated
from shop.identity.authenticating import build_authenticate
from shop_tests.support.identity import TEST_SIGNER
from shop_tests.support.people import OTHER_PASSWORD, PASSWORD, Mailbox, bearer, new_address, sign_in_as_admin, sign_up

_FORM = "application/x-www-form-urlencoded"


async def test_a_customer_signs_in_and_refreshes_with_a_form(anonymous: httpx.AsyncClient, mailbox: Mailbox) -> None:
    email = new_address()
    await sign_up(anonymous, mailbox, email)
    form = {"grant_type": "password", "username": email, "password": PASSWORD, "scope": "", "client_id": "docs"}
    # Swagger UI sends its client id, also an empty one, as a user of HTTP Basic
    response = await anonymous.post("/auth/token", data=form, auth=("", ""))
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    tokens = response.json()
    assert (await anonymous.get("/auth/me", headers=bearer(tokens))).status_code == 200
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    assert (await anonymous.post("/auth/token", data=form)).json()["refresh_token"] != tokens["refresh_token"]


@pytest.mark.parametrize(("path", "is_ignored"), [("/auth/token", True), ("/auth/refresh", False), ("/users", False)])
@pytest.mark.parametrize("root_path", ["", "/shop"])
async def test_only_the_token_route_ignores_http_basic(path: str, root_path: str, is_ignored: bool) -> None:
    headers = [(b"authorization", b"Basic Og==")]
    scope = {"type": "http", "path": root_path + path, "root_path": root_path, "headers": headers}
    authenticate = build_authenticate(TEST_SIGNER)
    if is_ignored:
        assert await authenticate(HTTPConnection(scope)) is None
    else:
        with pytest.raises(NotAuthenticated):
            await authenticate(HTTPConnection(scope))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("grant_type=password&username=ada%40example.com&password=open-sesame-12", "invalid_grant"),
        ("grant_type=password&username=ada%00&password=open-sesame-12", "invalid_grant"),
        ("grant_type=password&username=ada%40example.com&password=" + "open-sesame-12" * 100, "invalid_grant"),
        ("grant_type=refresh_token&refresh_token=open-sesame-12", "invalid_grant"),
        ("grant_type=password&username=ada%40example.com", "invalid_request"),
        ("grant_type=password&password=a&password=open-sesame-12", "invalid_request"),
        ("grant_type=password;open-sesame-12", "unsupported_grant_type"),
        ("username=%ff&password=open-sesame-12", "invalid_request"),
        ("grant_type=client_credentials", "unsupported_grant_type"),
        ("", "invalid_request"),
    ],
)
async def test_errors_have_the_shape_of_rfc_6749(anonymous: httpx.AsyncClient, content: str, error: str) -> None:
    response = await anonymous.post("/auth/token", content=content, headers={"Content-Type": _FORM})
    assert (response.status_code, response.json()["error"]) == (400, error)
    assert "sesame" not in response.text


async def test_the_body_must_be_a_form(anonymous: httpx.AsyncClient) -> None:
    response = await anonymous.post("/auth/token", json={"grant_type": "password"})
    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")


async def test_an_admin_needs_the_route_with_a_code(anonymous: httpx.AsyncClient, stored: Database) -> None:
    email = new_address()
    tokens = await sign_in_as_admin(anonymous, stored, email)
    await anonymous.put("/auth/password", json={"new_password": OTHER_PASSWORD}, headers=bearer(tokens))
    form = {"grant_type": "password", "username": email, "password": OTHER_PASSWORD}
    response = await anonymous.post("/auth/token", data=form)
    assert (response.status_code, response.json()["error"]) == (400, "invalid_grant")
    assert "enrolment" not in response.text


async def test_guesses_are_throttled(anonymous: httpx.AsyncClient) -> None:
    form = {"grant_type": "password", "username": new_address(), "password": OTHER_PASSWORD}
    statuses = [(await anonymous.post("/auth/token", data=form)).status_code for _ in range(6)]
    assert statuses == [400, 400, 400, 400, 400, 429]
