"""Access tokens: what is verified, how keys rotate, and what the cache keeps."""

from __future__ import annotations

import base64
import json
import time
import warnings
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
from jwt.warnings import InsecureKeyLengthWarning
from pydantic import SecretStr

from howdah.fastapi import NotAuthenticated
from shop.identity.principals import Principal, Role
from shop.identity.tokens import LEEWAY_SECONDS, LIFETIME, TokenSigner
from shop.keyrings import new_key, parse_keyring
from shop_tests.support.http_service import client_of, create_service, http_client
from shop_tests.support.identity import SIGNING_KEYS, TEST_SIGNER, sign_in
from shop_tests.support.problems import assert_problem

[(KEY_ID, KEY)] = parse_keyring(SIGNING_KEYS).items()
HEADER = {"kid": KEY_ID, "typ": "at+jwt"}


def build_claims(**changes: Any) -> dict[str, Any]:
    """The claims of a valid token. Built when it is sent, because a run can take longer than a token is valid."""
    now = int(time.time())
    claims = {
        "iss": "shop",
        "aud": "shop-api",
        "sub": str(uuid4()),
        "role": "admin",
        "sid": str(uuid4()),
        "iat": now,
        "exp": now + 600,
    }
    return claims | changes


def encode(
    claims: Mapping[str, Any] | None = None,
    *,
    key: str = KEY,
    algorithm: str = "HS256",
    headers: Mapping[str, Any] = HEADER,
) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)  # the key is too short for HS512
        return jwt.encode(dict(claims or build_claims()), key, algorithm, headers=dict(headers))


def without(claim: str) -> dict[str, Any]:
    return {name: value for name, value in build_claims().items() if name != claim}


def unsigned(header: Mapping[str, Any]) -> str:
    """A token without a signature, whose header says so."""
    parts = [json.dumps(each).encode() for each in (header, build_claims())]
    return ".".join([*(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in parts), ""])


def flip(token: str, part: int) -> str:
    """The token with another character in the middle of one of its three parts."""
    parts = token.split(".")
    middle = len(parts[part]) // 2
    other = "A" if parts[part][middle] != "A" else "B"
    parts[part] = parts[part][:middle] + other + parts[part][middle + 1 :]
    return ".".join(parts)


def build_wrong_tokens() -> dict[str, str]:
    now = int(time.time())
    return {
        "expired": encode(build_claims(iat=now - 700, exp=now - 100)),
        "issued in the future": encode(build_claims(iat=now + 100, exp=now + 700)),
        "wrong audience": encode(build_claims(aud="shop-mail")),
        "several audiences": encode(build_claims(aud=["shop-api", "shop-mail"])),
        "wrong issuer": encode(build_claims(iss="other")),
        "unknown role": encode(build_claims(role="root")),
        "user that is no UUID": encode(build_claims(sub="1")),
        "times that are no integers": encode(build_claims(exp=str(now + 600))),
        "infinite time": encode(build_claims(exp=1e400)),
        **{f"no {claim}": encode(without(claim)) for claim in build_claims()},
        "no algorithm": unsigned({**HEADER, "alg": "none"}),
        "no signature": encode().rpartition(".")[0] + ".",
        "other algorithm": encode(algorithm="HS512"),
        "other type": encode(headers=HEADER | {"typ": "JWT"}),
        "no type": encode(headers=HEADER | {"typ": None}),
        "unknown key id": encode(headers=HEADER | {"kid": "other"}),
        "no key id": encode(headers={"typ": "at+jwt"}),
        "key id that is a path": encode(headers=HEADER | {"kid": "../../dev/null"}),
        "key in the header": encode(headers=HEADER | {"jwk": {"kty": "oct", "k": "AAAA"}}),
        "critical extension": encode(headers=HEADER | {"crit": ["b64"], "b64": False}),
        "other key": encode(key="another-key-of-at-least-32-bytes"),
        "changed header": flip(encode(), 0),
        "changed claims": flip(encode(), 1),
        "changed signature": flip(encode(), 2),
        "too long": encode(build_claims(more="x" * 2000)),
        "not a token": "abc",
        "a dot": ".",
        "dots": "...",
        "not ASCII": encode() + "é",
    }


@pytest.fixture
def token_client(service: str) -> httpx.AsyncClient:
    """A client that isn't signed in."""
    return client_of(service, signs_in=False)


async def get_users(client: httpx.AsyncClient, authorization: str | None) -> httpx.Response:
    headers = [] if authorization is None else [(b"Authorization", authorization.encode("latin-1"))]
    return await client.get("/users", headers=headers)


async def test_a_valid_token_is_accepted(token_client: httpx.AsyncClient) -> None:
    async with token_client as client:
        assert (await get_users(client, f"Bearer {encode()}")).status_code == 200
        assert (await get_users(client, f"bearer {encode()}")).status_code == 200


@pytest.mark.parametrize("fault", build_wrong_tokens())
async def test_a_wrong_token_is_rejected(token_client: httpx.AsyncClient, fault: str) -> None:
    async with token_client as client:
        answer = await get_users(client, f"Bearer {build_wrong_tokens()[fault]}")
    assert_problem(answer, 401, "not-authenticated")
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert "shop-api" not in answer.text


async def test_a_request_without_credentials_gets_a_challenge_without_an_error(token_client: httpx.AsyncClient) -> None:
    async with token_client as client:
        answer = await get_users(client, None)
    assert_problem(answer, 401, "not-authenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_another_scheme_is_rejected(token_client: httpx.AsyncClient) -> None:
    async with token_client as client:
        for authorization in ("Basic YTpi", encode(), "Token x", f"Bearer  {encode()}"):
            assert_problem(await get_users(client, authorization), 401, "not-authenticated")


async def test_two_credentials_are_rejected(token_client: httpx.AsyncClient) -> None:
    token, key = ("Authorization", f"Bearer {encode()}"), ("X-API-Key", f"shop_{'0' * 12}_{'A' * 43}")
    async with token_client as client:
        for headers in ([token, token], [token, key], [key, key]):
            answer = await client.get("/users", headers=headers)
            assert_problem(answer, 400, "several-credentials")
            assert answer.headers["www-authenticate"] == 'Bearer error="invalid_request"'


async def test_keys_rotate_over_two_services_without_signing_anyone_out(committed_url: str) -> None:
    old, new = new_key(), new_key()

    def sign(keys: str) -> str:
        return TokenSigner(parse_keyring(keys)).sign(Principal(uuid4(), Role.ADMIN, session_id=uuid4()))

    async def accepts(client: httpx.AsyncClient, token: str) -> bool:
        return (await get_users(client, f"Bearer {token}")).status_code == 200

    def serve(keys: str) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        return http_client(create_service(committed_url, signing_keys=SecretStr(keys)), signs_in=False)

    # Each step is deployed to one service after the other: old; old,new; new,old; new. Each service accepts the tokens
    # of its own step, and of the steps before and after it.
    async with serve(f"{old},{new}") as second, serve(f"{new},{old}") as third:
        for keys in (old, f"{old},{new}", f"{new},{old}"):
            assert await accepts(second, sign(keys))
        for keys in (f"{old},{new}", f"{new},{old}", new):
            assert await accepts(third, sign(keys))
    fourth = TokenSigner(parse_keyring(new))
    fourth.verify(sign(f"{new},{old}"))
    with pytest.raises(NotAuthenticated):  # a removed key is no longer accepted
        fourth.verify(sign(old))


class _Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_cached_token_is_not_valid_for_longer_than_another_one() -> None:
    clock = _Clock()
    cached, uncached = (TokenSigner({KEY_ID: KEY}, clock=clock, max_cached=n) for n in (10, 0))
    token = cached.sign(Principal(uuid4(), Role.CUSTOMER, session_id=uuid4()))
    start = clock.now
    end = start + LIFETIME.total_seconds() + LEEWAY_SECONDS
    for moment, is_valid in ((start - 6, False), (start, True), (end - 0.001, True), (end, False), (end + 1e6, False)):
        clock.now = moment
        for signer in (cached, uncached, cached):
            if is_valid:
                signer.verify(token)
            else:
                with pytest.raises(NotAuthenticated):
                    signer.verify(token)
    assert not uncached._cache


def test_only_verified_tokens_enter_the_cache_and_their_number_is_limited() -> None:
    signer = TokenSigner({KEY_ID: KEY}, max_cached=3)
    for token in build_wrong_tokens().values():
        with pytest.raises(NotAuthenticated):
            signer.verify(token)
    assert not signer._cache
    principals = [Principal(uuid4(), Role.CUSTOMER, session_id=uuid4()) for _ in range(5)]
    tokens = [signer.sign(each) for each in principals]
    for _ in range(2):
        assert [signer.verify(each) for each in tokens] == principals
        assert len(signer._cache) == 3


def test_a_token_that_was_changed_is_not_found_in_the_cache() -> None:
    token = TEST_SIGNER.sign(Principal(uuid4(), Role.CUSTOMER, session_id=uuid4()))
    TEST_SIGNER.verify(token)
    for part in range(3):
        with pytest.raises(NotAuthenticated):
            TEST_SIGNER.verify(flip(token, part))


def test_a_token_has_the_principal_of_its_session() -> None:
    principal = Principal(uuid4(), Role.OPERATOR, session_id=uuid4())
    assert TEST_SIGNER.verify(TEST_SIGNER.sign(principal)) == principal
    assert sign_in()["Authorization"].startswith("Bearer ey")
    past = TEST_SIGNER.sign(principal, now=datetime.now(UTC) - LIFETIME - timedelta(seconds=LEEWAY_SECONDS))
    with pytest.raises(NotAuthenticated, match="expired"):
        TEST_SIGNER.verify(past)


def test_a_principal_without_a_session_gets_no_token() -> None:
    with pytest.raises(ValueError, match="belongs to a session"):
        TEST_SIGNER.sign(Principal(uuid4(), Role.CUSTOMER))
