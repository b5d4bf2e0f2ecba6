"""The classes of Shop's routes, and the settings of their limits."""

from __future__ import annotations

import httpx
import pytest
from pydantic import ValidationError

from shop.identity.principals import Role
from shop.settings import Settings
from shop.web.rate_limits import build_rate_limits, classify
from shop_tests.support.http_service import create_service, http_client
from shop_tests.support.identity import sign_in


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/users/1", "read"),
        ("HEAD", "/transfers", "list"),
        ("GET", "/accounts/1/entries", "list"),
        ("PATCH", "/orders/status", "write"),
        ("POST", "/accounts", "write"),
        ("POST", "/transfers", "money"),
        ("POST", "/transfers/1/reverse", "money"),
        ("POST", "/orders/1/pay", "money"),
        ("POST", "/transfers/batch", "bulk"),
        ("POST", "/users/bulk", "bulk"),
        ("GET", "/orders/export", "bulk"),
        ("POST", "/auth/token", "sign-in"),
        ("POST", "/auth/password-reset", "sign-in"),
        ("POST", "/sign-in", "sign-in"),
        ("POST", "/sign-in/link", "sign-in"),
        ("POST", "/auth/refresh", "write"),
        ("POST", "/sign-in/refresh", "write"),
        ("GET", "/sign-in", "read"),
    ],
)
def test_each_route_has_a_class(method: str, path: str, expected: str) -> None:
    limits = build_rate_limits(Settings())
    assert limits is not None
    assert classify({"method": method, "path": path}) == expected
    assert classify({"method": method, "path": f"/shop{path}", "root_path": "/shop"}) == expected
    assert expected in limits.classes


def test_the_limits_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_RATE_LIMIT_READ", "5/10")
    limits = build_rate_limits(Settings())
    assert limits is not None
    assert str(limits.classes["read"]) == "5/10"
    monkeypatch.setenv("SHOP_RATE_LIMITS", "off")
    assert build_rate_limits(Settings()) is None
    monkeypatch.setenv("SHOP_RATE_LIMIT_READ", "none")
    with pytest.raises(ValidationError, match="rate_limit_read"):
        Settings()


@pytest.mark.parametrize(("customers", "staff", "expected"), [(20, 12, 5), (40, 8, 4), (8, 12, 2), (1, 1, 1)])
def test_a_principal_has_few_lists_in_progress_compared_with_either_pool(
    customers: int, staff: int, expected: int
) -> None:
    limits = build_rate_limits(Settings(pool_size=customers, staff_pool_size=staff))
    assert limits is not None
    assert limits.max_in_progress == {"list": expected}


async def test_a_principal_that_exceeds_a_limit_does_not_affect_another(committed_url: str) -> None:
    service = create_service(
        committed_url,
        rate_limits=True,
        rate_limit_list="2/60",
        trusted_proxies=["127.0.0.1"],
        rate_limit_address="9/60",
    )
    first, second = sign_in(Role.ADMIN), sign_in(Role.ADMIN)
    async with http_client(service, signs_in=False) as client:

        async def get(headers: dict[str, str], address: str) -> httpx.Response:
            return await client.get("/users", headers={**headers, "X-Forwarded-For": address})

        assert [(await get(first, "192.0.2.1")).status_code for _ in range(3)] == [200, 200, 429]
        assert (await get(first, "192.0.2.2")).status_code == 429  # another address doesn't help
        assert (await get(second, "192.0.2.1")).status_code == 200
        wrong = {"Authorization": "Bearer wrong"}
        assert [(await get(wrong, "192.0.2.1")).status_code for _ in range(6)] == [401] * 5 + [429]
        assert (await get(wrong, "192.0.2.3")).status_code == 401
