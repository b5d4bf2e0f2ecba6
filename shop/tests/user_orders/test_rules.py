"""Which API keys may read users with their orders."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest

from shop.identity.principals import Principal, Role
from shop.identity.tokens import TokenSigner
from shop_tests.support.factories import make_order, make_user
from shop_tests.support.problems import assert_problem


@pytest.mark.parametrize("path", ["/users/{}", "/users/{}/order-summary"])
async def test_an_api_key_needs_the_scopes_of_users_and_of_orders(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    user = await make_user(client)
    await make_order(client, user["id"])
    for scopes, status in (
        ({"users:read"}, 403),
        ({"orders:read"}, 403),
        (set[str](), 403),
        ({"users:write", "orders:write"}, 403),
        ({"users:read", "orders:read"}, 200),
    ):
        principal = Principal(uuid4(), Role.OPERATOR, scopes=frozenset(scopes), api_key_id=uuid4())
        with monkeypatch.context() as patch:
            patch.setattr(TokenSigner, "verify", lambda _self, _token, principal=principal: principal)
            answer = await client.get(path.format(user["id"]))
        if status == 403:
            assert_problem(answer, 403, "not-allowed")
        else:
            assert answer.status_code == 200
