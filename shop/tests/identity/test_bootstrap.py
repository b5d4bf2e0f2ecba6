"""The first admin, and admins who can't sign in any more."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from typer.testing import CliRunner

from howdah import Database
from shop.cli import app, print_first_sign_in
from shop.identity.bootstrap import FIRST_ADMIN, create_admin, create_first_admin
from shop.postgres import as_service_login
from shop_tests.support.people import PASSWORD, Mailbox, bearer, new_address, post, sign_up


async def test_a_one_time_token_signs_an_admin_in_once(anonymous: httpx.AsyncClient, stored: Database) -> None:
    token = await create_admin(stored, new_address())
    answers = await asyncio.gather(*(anonymous.post("/auth/one-time", json={"token": token}) for _ in range(5)))
    assert sorted(each.status_code for each in answers) == [200, 400, 400, 400, 400]
    [tokens] = [each.json() for each in answers if each.status_code == 200]
    assert tokens["role"] == "admin"
    assert (await anonymous.get("/users", headers=bearer(tokens))).status_code == 200


async def test_a_customer_who_becomes_an_admin_signs_in_again(
    anonymous: httpx.AsyncClient, stored: Database, mailbox: Mailbox
) -> None:
    email = new_address()
    customer = await sign_up(anonymous, mailbox, email)
    admin = await post(anonymous, "/auth/one-time", token=await create_admin(stored, email.upper()))
    assert (admin["user_id"], admin["role"]) == (customer["user_id"], "admin")
    refreshed = await anonymous.post("/auth/refresh", json={"refresh_token": customer["refresh_token"]})
    assert refreshed.status_code == 401


def test_the_command_prints_a_line_of_curl(committed_url: str) -> None:
    environment = {"SHOP_DATABASE_URL": as_service_login(committed_url), "SHOP_OWNER_DATABASE_URL": committed_url}
    result = CliRunner().invoke(app, ["create-admin", "Grace@Example.com"], env=environment, catch_exceptions=False)
    assert result.exit_code == 0
    assert "grace@example.com is an admin" in result.stdout
    assert re.search(
        r"^  curl -s http://localhost:8000/auth/one-time -H 'Content-Type: application/json' "
        r"-d '\{\"token\": \"[\w-]{43}\"\}'$",
        result.stdout,
        re.MULTILINE,
    )


@pytest.mark.parametrize("address", ["nobody", "admin@localhost"])
def test_the_command_refuses_a_text_that_is_no_address(address: str) -> None:
    result = CliRunner().invoke(app, ["create-admin", address], env={"SHOP_DATABASE_URL": "postgresql://nowhere/shop"})
    assert (result.exit_code, "EMAIL" in result.output) == (2, True)


def test_the_first_start_prints_a_token_until_an_admin_has_a_password(
    database_url: str, mailing_service: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        print_first_sign_in(database_url, mailing_service)
        shown = capsys.readouterr()
        token = re.search(r'"token": "([\w-]{43})"', shown.out)
        assert token is not None
        assert (shown.err, FIRST_ADMIN in shown.out) == ("", True)
        tokens = httpx.post(f"{mailing_service}/auth/one-time", json={"token": token[1]}).json()
        assert create_first_admin(database_url) is not None
        changed = httpx.put(f"{mailing_service}/auth/password", json={"new_password": PASSWORD}, headers=bearer(tokens))
        assert changed.status_code == 204
        assert create_first_admin(database_url) is None
    finally:
        asyncio.run(_empty(database_url))


async def _empty(url: str) -> None:
    from shop_tests.support.trigger_bypass import empty_tables

    async with Database(url) as database, database.begin() as session:
        await empty_tables(session)
