"""The matrix test: every route × role × own, foreign or missing object × credentials, against the real service."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
import pytest
from fastapi import FastAPI

from howdah import Database
from howdah.testing.access import AccessMatrix
from shop.app import create_app
from shop.identity.api_keys import service as api_keys
from shop.postgres import as_service_login
from shop_tests.support.access_requests import create_matrix
from shop_tests.support.access_table import EXPECTED
from shop_tests.support.access_world import World, create_world
from shop_tests.support.http_service import http_client
from shop_tests.support.identity import TEST_SETTINGS
from shop_tests.support.people import Mailbox


@dataclass(frozen=True)
class Service:
    app: FastAPI
    client: httpx.AsyncClient
    world: World
    matrix: AccessMatrix


@pytest.fixture
async def service(committed_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """The service, which logs in as `shop_service`. Its client has no credentials, and keeps no cookies."""
    monkeypatch.setattr(api_keys, "MAX_KEYS", 1_000)  # the matrix has many keys of each role
    app = create_app(as_service_login(committed_url), TEST_SETTINGS, mailer=Mailbox())
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    async with Database(committed_url, pool_size=2) as database:
        world = await create_world(database)
        async with http_client(app, signs_in=False, cookies=no_cookies) as client:
            yield Service(app, client, world, create_matrix(app, world, EXPECTED))


async def test_the_matrix_has_no_gap(service: Service) -> None:
    started = time.perf_counter()
    try:
        await service.matrix.check(service.client)
    finally:
        print(time.perf_counter() - started)
