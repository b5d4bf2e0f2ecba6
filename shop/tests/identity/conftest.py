"""A service whose mails are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import httpx
import pytest
import pytest_asyncio

from howdah import Database
from shop.app import create_app
from shop.identity import throttles
from shop.identity.context import Identity, open_identity
from shop_tests.support.http_service import client_of, serve_in_thread
from shop_tests.support.identity import TEST_SETTINGS, TEST_SIGNER
from shop_tests.support.openapi import assert_matches_openapi
from shop_tests.support.people import Mailbox


@pytest.fixture(scope="session")
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture(scope="session")
def mailing_service(service_url: str, mailbox: Mailbox) -> Iterator[str]:
    with serve_in_thread(create_app(service_url, TEST_SETTINGS, mailer=mailbox)) as address:
        yield address


@pytest_asyncio.fixture
async def anonymous(mailing_service: str, stored: Database, mailbox: Mailbox) -> AsyncIterator[httpx.AsyncClient]:
    """A client without credentials. It compares each response with the OpenAPI description."""
    mailbox.mails.clear()
    async with client_of(mailing_service, signs_in=False, event_hooks={"response": [assert_matches_openapi]}) as client:
        yield client


@pytest_asyncio.fixture
async def identity(stored: Database, mailbox: Mailbox) -> AsyncIterator[Identity]:
    """What the service works with, as in another process: own connections, threads and memory."""
    async with open_identity(stored, settings=TEST_SETTINGS, signer=TEST_SIGNER, mailer=mailbox) as opened:
        yield opened


@pytest.fixture
def long_first_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of throttled attempts begin with a minute instead of a second, so none ends during a test."""
    for name in ("PER_ACCOUNT", "PER_ADDRESS", "MAILS_PER_ACCOUNT", "MAILS_PER_ADDRESS"):
        limit = getattr(throttles, name)
        assert limit.first_wait == 1
        monkeypatch.setattr(throttles, name, replace(limit, first_wait=60))
