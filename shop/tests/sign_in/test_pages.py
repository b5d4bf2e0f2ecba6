"""The pages for signing in, over HTTP: cookies, forged requests, redirects, and one-time links."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator
from http.cookies import Morsel, SimpleCookie
from typing import Any, Final

import httpx
import pyotp
import pytest
import pytest_asyncio

from howdah import Database
from shop.identity.bootstrap import create_admin
from shop.identity.principals import Role
from shop_tests.support.accounts import PASSWORD, create_person
from shop_tests.support.http_service import client_of, create_service, http_client

ACCESS: Final = "__Host-shop-access"
REFRESH: Final = "__Host-shop-refresh"


@pytest_asyncio.fixture
async def browser(service: str, stored: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends the headers of a browser on a page of the service."""
    async with client_of(service, signs_in=False) as client:
        client.headers["Origin"] = service
        client.headers["Sec-Fetch-Site"] = "same-origin"
        yield client


def read_cookies(response: httpx.Response) -> dict[str, Morsel[str]]:
    parsed: SimpleCookie = SimpleCookie()
    for header in response.headers.get_list("set-cookie"):
        parsed.load(header)
    return dict(parsed)


def send_cookies(response: httpx.Response) -> dict[str, str]:
    """The header of the next request. httpx doesn't send these cookies itself, because they need TLS."""
    return {"Cookie": "; ".join(f"{name}={each.value}" for name, each in read_cookies(response).items())}


async def sign_in(client: httpx.AsyncClient, **fields: str) -> httpx.Response:
    return await client.post("/sign-in", data={"email": "person@example.com", "password": PASSWORD, **fields})


async def is_signed_in(client: httpx.AsyncClient, headers: dict[str, str]) -> bool:
    status = (await client.get("/auth/me", headers=headers)).status_code
    assert status in {200, 401}
    return status == 200


async def test_the_cookies_are_for_this_host_and_no_script(browser: httpx.AsyncClient, stored: Database) -> None:
    person = await create_person(stored)
    response = await sign_in(browser, next="/docs?x=1#part")
    assert (response.status_code, response.headers["location"]) == (303, "/docs?x=1#part")
    cookies = read_cookies(response)
    assert cookies.keys() == {ACCESS, REFRESH}
    for cookie in cookies.values():
        assert cookie["secure"]
        assert cookie["httponly"]
        assert (cookie["samesite"], cookie["path"], cookie["domain"]) == ("strict", "/", "")
    assert cookies[ACCESS]["max-age"] == "600"
    assert cookies[REFRESH]["max-age"] == ""
    assert response.headers["cache-control"] == "no-store"
    me = await browser.get("/auth/me", headers=send_cookies(response))
    assert me.json()["user_id"] == str(person.user_id)


async def test_a_page_has_a_strict_policy_and_names_its_fields(browser: httpx.AsyncClient) -> None:
    page = await browser.get("/sign-in")
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "same-origin"
    fields = re.findall(r'<input id="(\w+)"', page.text)
    assert fields == re.findall(r'<label for="(\w+)"', page.text)
    assert 'autocomplete="current-password"' in page.text
    assert "<style" not in page.text
    assert "style=" not in page.text


@pytest.mark.parametrize("fields", [{"password": "wrong"}, {"email": "nobody@example.com"}, {"password": ""}])
async def test_every_wrong_sign_in_gets_the_same_page(
    browser: httpx.AsyncClient, stored: Database, fields: dict[str, str]
) -> None:
    await create_person(stored)
    response = await sign_in(browser, **fields)
    assert response.status_code == 401
    assert not read_cookies(response)
    assert '<p role="alert">the address, the password or the code is wrong</p>' in response.text
    assert PASSWORD not in response.text


async def test_an_operator_needs_the_code(browser: httpx.AsyncClient, stored: Database) -> None:
    person = await create_person(stored, role=Role.OPERATOR, has_app=True)
    assert person.totp is not None
    assert (await sign_in(browser)).status_code == 401
    code = person.totp.now()
    assert (await sign_in(browser, code=f"{code[:3]} {code[3:]}")).status_code == 303


async def test_an_operator_without_an_app_sets_one_up(browser: httpx.AsyncClient, stored: Database) -> None:
    await create_person(stored, role=Role.OPERATOR)
    page = await sign_in(browser)
    assert not read_cookies(page)
    token = find_value(page, "token")
    secret_page = await browser.post("/sign-in/authenticator", data={"token": token})
    found = re.search(r'<code id="secret">(\w+)</code>', secret_page.text)
    assert found is not None
    totp = pyotp.TOTP(found[1])
    wrong = await browser.post("/sign-in/authenticator/code", data={"token": token, "code": "1"})
    assert (wrong.status_code, find_value(wrong, "token")) == (401, token)
    assert found[1] not in wrong.text
    confirmed = await browser.post("/sign-in/authenticator/code", data={"token": token, "code": totp.now()})
    assert confirmed.text.count("<li>") == 10
    assert await is_signed_in(browser, send_cookies(confirmed))


def find_value(page: httpx.Response, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page.text)
    assert found is not None
    return found[1]


FOREIGN: Final[list[dict[str, str]]] = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example.com"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
]


POSTS: Final = ("/sign-in", "/sign-in/link", "/sign-in/refresh", "/sign-in/authenticator", "/sign-out")


async def test_another_site_can_sign_nobody_in_or_out(browser: httpx.AsyncClient, stored: Database) -> None:
    await create_person(stored)
    cookies = send_cookies(await sign_in(browser))
    fields = {"email": "person@example.com", "password": PASSWORD}
    for path, foreign, credentials in itertools.product(POSTS, FOREIGN, ({}, cookies)):
        response = await browser.post(path, headers={**foreign, **credentials}, data=fields)
        assert response.status_code == 403, (path, foreign)
        assert response.json()["type"] == "urn:howdah:problem:cross-origin"
        assert not read_cookies(response)
    assert await is_signed_in(browser, cookies)


async def test_a_request_of_another_site_with_the_cookie_changes_nothing(
    browser: httpx.AsyncClient, stored: Database
) -> None:
    await create_person(stored)
    cookies = send_cookies(await sign_in(browser))
    foreign = await browser.post("/orders", headers={**cookies, **FOREIGN[0]}, json={})
    assert foreign.json()["type"] == "urn:howdah:problem:cross-origin"
    own = await browser.post("/orders", headers=cookies, json={})
    assert own.status_code == 422


FOREIGN_TARGETS: Final = (
    "https://evil.example.com/",
    "//evil.example.com/",
    "/\\evil.example.com",
    "/\t/evil.example.com",
    "\\\\evil.example.com",
    "javascript:alert(1)",
    "docs",
    "",
    "/a\r\nSet-Cookie: a=b",
    "/é",
    "/" + "a" * 600,
)


async def test_the_sign_in_leads_to_no_other_site(browser: httpx.AsyncClient, stored: Database) -> None:
    await create_person(stored)
    for target in FOREIGN_TARGETS:
        page = await browser.get("/sign-in", params={"next": target})
        assert find_value(page, "next") == "/docs", target
        assert (await sign_in(browser, next=target)).headers["location"] == "/docs", target


async def test_a_value_of_the_form_is_escaped(browser: httpx.AsyncClient) -> None:
    response = await browser.post("/sign-in", data={"email": '"><script>alert(1)</script>', "password": "x"})
    assert "<script" not in response.text
    assert "&lt;script&gt;" in response.text


FORM: Final = "application/x-www-form-urlencoded"
BODIES: Final[list[tuple[str, bytes, int]]] = [
    ("application/json", b"{}", 415),
    ("multipart/form-data; boundary=a", b"--a--", 415),
    (FORM, b"email=%ff&password=x", 400),
    (FORM, b"a=1&" * 20, 400),
    (FORM, b"email=%00&password=x", 401),
    (FORM, b"email=a&password=" + b"x" * 10_000, 401),
]


async def test_a_body_that_is_no_form_is_rejected(browser: httpx.AsyncClient) -> None:
    for media_type, content, status in BODIES:
        response = await browser.post("/sign-in", headers={"Content-Type": media_type}, content=content)
        assert response.status_code == status, content


@pytest.mark.parametrize("prefix", [b"\xa0", b"\x85", b"\xc2\xa0"], ids=["no-break space", "next line", "in UTF-8"])
async def test_another_subdomain_cannot_set_the_cookie_with_a_space_in_front_of_its_name(
    browser: httpx.AsyncClient, stored: Database, prefix: bytes
) -> None:
    """A browser protects only names that begin with `__Host-`. Here the name begins with a space of Latin-1."""
    await create_person(stored)
    own = send_cookies(await sign_in(browser))["Cookie"].encode()
    foreign = own.replace(b"__Host-", prefix + b"__Host-")
    assert (await browser.get("/auth/me", headers={b"Cookie": own})).status_code == 200
    assert (await browser.get("/auth/me", headers={b"Cookie": foreign})).status_code == 401
    refreshed = await browser.post("/sign-in/refresh", headers={b"Cookie": foreign})
    assert refreshed.json() == {"is_signed_in": False}
    tossed = own + b"; " + prefix + f"{ACCESS}=x".encode()
    assert (await browser.get("/auth/me", headers={b"Cookie": tossed})).status_code == 200


async def test_two_cookies_with_the_same_name_sign_nobody_in(browser: httpx.AsyncClient, stored: Database) -> None:
    await create_person(stored)
    own = send_cookies(await sign_in(browser))["Cookie"]
    assert not await is_signed_in(browser, {"Cookie": f"{own}; {own}"})


async def test_signing_out_ends_the_session(browser: httpx.AsyncClient, stored: Database) -> None:
    await create_person(stored)
    cookies = send_cookies(await sign_in(browser))
    response = await browser.post("/sign-out", headers=cookies)
    assert {name: each["max-age"] for name, each in read_cookies(response).items()} == {ACCESS: "0", REFRESH: "0"}
    assert response.headers["clear-site-data"] == '"storage"'
    assert not await is_signed_in(browser, cookies)
    assert (await browser.post("/sign-in/refresh", headers=cookies)).json() == {"is_signed_in": False}
    # a browser that still has the cookie can open the page to sign in again
    assert (await browser.get("/sign-in", headers=cookies)).status_code == 200


async def test_signing_out_works_after_the_access_token_has_expired(
    browser: httpx.AsyncClient, stored: Database
) -> None:
    await create_person(stored)
    signed_in = await sign_in(browser)
    refresh = {"Cookie": f"{REFRESH}={read_cookies(signed_in)[REFRESH].value}"}
    await browser.post("/sign-out", headers=refresh)
    assert (await browser.post("/sign-in/refresh", headers=refresh)).json() == {"is_signed_in": False}
    assert not await is_signed_in(browser, send_cookies(signed_in))


async def test_a_new_sign_in_ends_the_session_of_before(browser: httpx.AsyncClient, stored: Database) -> None:
    """An attacker who has planted a session, or read its cookies, gains nothing from the sign-in."""
    await create_person(stored)
    before = send_cookies(await sign_in(browser))
    response = await browser.post(
        "/sign-in", headers=before, data={"email": "person@example.com", "password": PASSWORD}
    )
    after = send_cookies(response)
    assert {ACCESS, REFRESH} == read_cookies(response).keys()
    assert not set(before["Cookie"].split("; ")) & set(after["Cookie"].split("; "))
    assert not await is_signed_in(browser, before)
    assert await is_signed_in(browser, after)


async def test_a_new_sign_in_ends_a_session_whose_access_token_has_expired(
    browser: httpx.AsyncClient, stored: Database
) -> None:
    await create_person(stored)
    refresh = {"Cookie": f"{REFRESH}={read_cookies(await sign_in(browser))[REFRESH].value}"}
    fields = {"email": "person@example.com", "password": PASSWORD}
    response = await browser.post("/sign-in", headers=refresh, data=fields)
    assert await is_signed_in(browser, send_cookies(response))
    assert (await browser.post("/sign-in/refresh", headers=refresh)).json() == {"is_signed_in": False}


async def test_the_refresh_renews_both_cookies(browser: httpx.AsyncClient, stored: Database) -> None:
    await create_person(stored)
    before = await sign_in(browser)
    response = await browser.post("/sign-in/refresh", headers=send_cookies(before))
    assert response.json() == {"is_signed_in": True, "role": "customer", "expires_in": 600}
    assert read_cookies(response)[REFRESH].value != read_cookies(before)[REFRESH].value
    assert await is_signed_in(browser, send_cookies(response))
    assert (await browser.post("/sign-in/refresh")).json() == {"is_signed_in": False}


async def test_a_one_time_link_is_used_by_its_button_only(browser: httpx.AsyncClient, stored: Database) -> None:
    token = await create_admin(stored, "admin@example.com")
    for method in ("GET", "HEAD", "GET"):
        page = await browser.request(method, "/sign-in/link", params={"token": token})
        assert page.status_code == 200
        assert not read_cookies(page)
        assert token not in page.text
    response = await browser.post("/sign-in/link", data={"token": token})
    assert (response.status_code, response.headers["location"]) == (303, "/docs")
    me = await browser.get("/auth/me", headers=send_cookies(response))
    assert me.json()["role"] == "admin"
    again = await browser.post("/sign-in/link", data={"token": token})
    assert again.status_code == 400
    assert "was used before" in again.text
    assert not read_cookies(again)


async def test_the_sign_in_does_not_lead_to_docs_that_are_on_the_internal_port(committed_url: str) -> None:
    async with http_client(create_service(committed_url, internal_port=1), signs_in=False) as client:
        assert (await client.get("/docs")).status_code == 404
        assert find_value(await client.get("/sign-in"), "next") == "/sign-in"


async def test_the_pages_are_not_in_the_description(browser: httpx.AsyncClient) -> None:
    description: dict[str, Any] = (await browser.get("/openapi.json")).json()
    assert not [path for path in description["paths"] if path.startswith(("/sign-in", "/sign-out"))]
