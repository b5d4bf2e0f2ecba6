"""A real browser signs in, and sends requests from `/docs`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from howdah import Database
from shop_tests.support.accounts import PASSWORD, create_link, create_person
from shop_tests.support.browser import Page, needs_chromium, open_browser

pytestmark = needs_chromium


@pytest_asyncio.fixture
async def page(tmp_path: Path, stored: Database) -> AsyncIterator[Page]:
    async with open_browser(tmp_path) as page:
        yield page


async def try_operation(page: Page, path: str) -> str:
    """Expand GET of the path in `/docs`, send its request, and return the status of the response."""
    operation = await page.wait(
        f"[...document.querySelectorAll('.opblock-get')].find(e => e.querySelector('[data-path=\"{path}\"]'))?.id"
    )
    await page.click(f"#{operation} .opblock-summary-control")
    await page.click(f"#{operation} .try-out__btn")
    await page.click(f"#{operation} .execute")
    return str(
        await page.wait(
            f"document.querySelector('#{operation} .live-responses-table td.response-col_status')?.innerText"
        )
    )


async def test_a_one_time_link_leads_to_the_docs_where_requests_are_signed_in(
    page: Page, service: str, stored: Database
) -> None:
    await page.go(await create_link(stored, service))
    await page.wait("location.hash === '' && document.querySelector('#token').value.length > 20")
    await page.click("button")
    await page.wait("location.pathname === '/docs'")
    await page.wait("document.querySelector('#sign-in')?.innerText === 'Signed in as admin'")
    assert await try_operation(page, "/auth/me") == "200"
    assert await page.run("document.cookie") == ""
    assert page.errors == []
