"""A real browser signs in, and sends requests from `/docs`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from howdah import Database
from shop.identity.principals import Role
from shop_tests.support.accounts import PASSWORD, create_link, create_person
from shop_tests.support.browser import Page, needs_chromium, open_browser
from shop_tests.support.http_service import client_of
from shop_tests.support.identity import sign_in

pytestmark = needs_chromium

_LOG_OUT: Final = "[...document.querySelectorAll('.auth-container button')].find(e => e.innerText === 'Logout')"


@pytest_asyncio.fixture
async def page(tmp_path: Path, stored: Database) -> AsyncIterator[Page]:
    async with open_browser(tmp_path) as page:
        yield page


async def try_operation(page: Page, path: str) -> str:
    """Expand GET of the path in `/docs` and send its request, and return the status of the response."""
    operation = await page.wait(
        f"[...document.querySelectorAll('.opblock-get')].find(e => e.querySelector('[data-path=\"{path}\"]'))?.id"
    )
    if not await page.run(f"document.querySelector('#{operation} .execute') !== null"):
        await page.click(f"#{operation} .opblock-summary-control")
        await page.click(f"#{operation} .try-out__btn")
    else:
        await page.click(f"#{operation} .btn-clear")
        await page.wait(f"document.querySelector('#{operation} .live-responses-table') === null")
    await page.click(f"#{operation} .execute")
    status = f"document.querySelector('#{operation} .live-responses-table .response .response-col_status')?.innerText"
    return str(await page.wait(status)).split()[0]


async def authorize(page: Page, fields: dict[str, str]) -> None:
    """Fill one part of the dialog, submit it, and close the dialog."""
    await page.click(".auth-wrapper .authorize")
    for selector, text in fields.items():
        await page.fill(selector, text)
    await page.run(
        f"document.querySelector('{selector}').closest('.auth-container').querySelector('.authorize').click()"
    )
    await page.wait(_LOG_OUT)
    await _close_dialog(page)


async def log_out(page: Page) -> None:
    await page.click(".auth-wrapper .authorize")
    await page.wait(_LOG_OUT)
    await page.run(f"{_LOG_OUT}.click()")
    await _close_dialog(page)


async def _close_dialog(page: Page) -> None:
    await page.run("document.querySelector('.close-modal').click()")
    await page.wait("document.querySelector('.dialog-ux') === null")


async def test_a_person_signs_in_and_out_and_tries_requests_in_between(
    page: Page, service: str, stored: Database
) -> None:
    await page.go(await create_link(stored, service))
    await page.wait("location.hash === '' && document.querySelector('#token').value.length > 20")
    await page.click("button")
    await page.wait("document.querySelector('#sign-in')?.innerText === 'Signed in as admin'")
    assert await page.run("location.pathname") == "/docs"
    assert await try_operation(page, "/auth/me") == "200"
    assert await page.run("document.cookie") == ""
    assert page.errors == []

    await page.click("#sign-in")
    await page.click("button")
    await page.wait("document.querySelector('h1')?.innerText === 'Signed out'")
    assert await page.list_cookies() == {}
    # the button back shows nothing of the session, because no page is stored
    await page.run("history.back()")
    await page.wait("document.querySelector('#email') !== null")

    await create_person(stored)
    await page.go(f"{service}/sign-in?next=/auth/me")
    await page.fill("#email", "person@example.com")
    await page.fill("#password", "wrong")
    await page.press_enter()
    await page.wait("document.querySelector('[role=alert]') !== null")
    await page.fill("#password", PASSWORD)
    await page.press_enter()
    await page.wait("location.pathname === '/auth/me' && document.body.innerText.includes('person@example.com')")


@pytest.mark.slow
async def test_a_password_in_the_dialog_of_the_docs_authorizes_requests(
    page: Page, service: str, stored: Database
) -> None:
    person = await create_person(stored)
    await page.go(f"{service}/docs")
    assert await try_operation(page, "/orders") == "401"
    await authorize(page, {"#oauth_username": person.email, "#oauth_password": PASSWORD})
    assert await try_operation(page, "/orders") == "200"


@pytest.mark.slow
async def test_a_token_and_a_key_in_the_dialog_of_the_docs_authorize_requests(
    page: Page, service: str, stored: Database
) -> None:
    person = await create_person(stored)
    token = sign_in(Role.CUSTOMER, person.user_id)
    async with client_of(service, principal=token) as client:
        key = await client.post("/auth/api-keys", json={"name": "test", "scopes": ["orders:read"]})
    await page.go(f"{service}/docs")
    for fields in (
        {"#auth-bearer-value": token["Authorization"].removeprefix("Bearer ")},
        {"#api_key_value": key.json()["key"]},
    ):
        await authorize(page, fields)
        assert await try_operation(page, "/orders") == "200"
        await log_out(page)
        assert await try_operation(page, "/orders") == "401"
