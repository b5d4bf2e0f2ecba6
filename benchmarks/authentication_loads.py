"""The contenders of `authentication` that are measured in CPU time. Each runs in a new process:
`python -m benchmarks.authentication_loads URL CONTENDER COUNT`."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from starlette.requests import HTTPConnection

import shop.tables  # noqa: F401 (tables refer to each other)
from benchmarks.identity import CACHED, FIRST, KEY, NOTHING, SIGNING_KEYS
from howdah import Database
from howdah.fastapi.resources import OPENED_KEY, Opened
from shop.identity.api_keys.service import create_key
from shop.identity.api_keys.verification import api_key_verifier, open_verifier
from shop.identity.authenticating import build_authenticate
from shop.identity.principals import Principal, Role
from shop.identity.revocation import open_revocations, revocations
from shop.identity.scopes import Scope
from shop.identity.tokens import TokenSigner
from shop.keyrings import parse_keyring

# The headers that a browser sends with each request.
_HEADERS: Final = [
    (b"host", b"shop.example.com"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"accept-language", b"en"),
    (b"connection", b"keep-alive"),
]


async def measure(url: str, contender: str, count: int) -> float:
    """The CPU seconds to authenticate `count` requests, with the parsing of their headers."""
    signer = TokenSigner(parse_keyring(SIGNING_KEYS))
    authenticate = build_authenticate(signer)
    async with (
        Database(url, pool_size=2) as database,
        open_revocations(database) as ended,
        open_verifier(database) as verifier,
    ):
        values = {revocations.key: ended, api_key_verifier.key: verifier}
        state = {OPENED_KEY: Opened({}, values, {}, [])}
        credentials = await _make_credentials(contender, database, signer, count)
        scopes = [
            {"type": "http", "headers": [*_HEADERS, *credentials[number % len(credentials)]], "state": state}
            for number in range(count)
        ]
        if contender != FIRST:
            await _authenticate(authenticate, scopes[: count // 10])
        gc.collect()
        gc.freeze()
        started = time.process_time()
        found = await _authenticate(authenticate, scopes)
        seconds = time.process_time() - started
    if found != (0 if contender == NOTHING else count):
        raise AssertionError(f"{found:,} of {count:,} requests were authenticated")
    return seconds


async def _authenticate(authenticate: Any, scopes: list[dict[str, Any]]) -> int:
    found = 0
    for scope in scopes:
        if await authenticate(HTTPConnection(scope)) is not None:
            found += 1
    return found


async def _make_credentials(
    contender: str, database: Database, signer: TokenSigner, count: int
) -> list[list[tuple[bytes, bytes]]]:
    """The headers of the requests with credentials."""
    principals = [Principal(UUID(int=n), Role.OPERATOR, session_id=uuid4()) for n in range(count)]
    match contender:
        case _ if contender == NOTHING:
            return [[]]
        case _ if contender == KEY:
            return [[(b"x-api-key", (await _make_key(database)).encode())]]
        case _ if contender == CACHED:
            principals = principals[:1000]
    return [[(b"authorization", f"Bearer {signer.sign(each)}".encode())] for each in principals]


async def _make_key(database: Database) -> str:
    """A key of the first user."""
    owner = Principal(UUID("00000000-0000-7000-9000-000000000001"), Role.OPERATOR)
    async with database.begin() as session:
        key, _ = await create_key(
            session, owner, name=uuid4().hex, scopes={Scope.READ_USERS}, expires_in=timedelta(days=1)
        )
    return key


def main() -> None:
    """Run the command."""
    url, contender, count = sys.argv[1:]
    print(json.dumps({"seconds": asyncio.run(measure(url, contender, int(count)))}))


if __name__ == "__main__":
    main()
