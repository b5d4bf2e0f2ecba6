"""The contenders of `sign_in`. Each runs in a new process: `python -m benchmarks.sign_in_loads URL CONTENDER COUNT`."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from pydantic import SecretStr
from sqlalchemy import text

import shop.tables  # noqa: F401 (tables refer to each other)
from benchmarks.identity import SIGNING_KEYS
from benchmarks.sign_in import PAIRS
from howdah import Database
from shop import migrations
from shop.identity import password_changes, registration, service
from shop.identity.clients import Client
from shop.identity.context import Identity, open_identity
from shop.identity.errors import SignInFailed
from shop.identity.mail import Mail
from shop.identity.tokens import TokenSigner
from shop.keyrings import new_key, parse_keyring
from shop.settings import Settings

_PASSWORD: Final = "kettle-drum-harbour-moss"  # noqa: S105

_SIGN_IN, _RESET, _SIGN_UP = PAIRS

_FILL: Final = """
    WITH new AS (
        INSERT INTO users (id, email, name, created_at, updated_at, version)
        SELECT gen_random_uuid(), 'user' || n || '@example.com', 'User', now(), now(), 1
        FROM generate_series(0, :last) n
        RETURNING id
    )
    INSERT INTO credentials (user_id, role, password_hash) SELECT id, 'customer', :hash FROM new
    """


class _NoMailer:
    async def send(self, mail: Mail) -> None:
        pass


async def measure(url: str, contender: str, count: int) -> dict[str, float]:
    """The seconds for `count` requests of both contenders of the pair: their medians, so that no pause counts."""
    async with Database(url, pool_size=5) as database:
        settings = Settings(encryption_keys=SecretStr(new_key()))
        signer = TokenSigner(parse_keyring(SIGNING_KEYS))
        async with open_identity(database, settings=settings, signer=signer, mailer=_NoMailer()) as identity:
            if contender == "fill":
                parameters = {"last": count, "hash": await identity.hashing.hash(_PASSWORD)}
                async with database.begin() as session:
                    await session.execute(text(_FILL), parameters)
                return {"seconds": 0.0}
            async with database.begin() as session:
                await session.execute(text("DELETE FROM sign_in_throttles"))
            times = await _alternate(_choose_request(contender, identity), count)
            [(known, unknown)] = [pair for pair in PAIRS if contender in pair]
            return {name: statistics.median(times[name == known]) * count for name in (known, unknown)}


async def _alternate(request: Callable[[str, Client], Awaitable[None]], count: int) -> dict[bool, list[float]]:
    """The seconds of each request, by whether a user has its address.

    They alternate in one process, so that both have the same load of the machine, the same caches and the same memory.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(count + 1):
        for is_known in random.sample((True, False), 2):
            email = f"user{number}@example.{'com' if is_known else 'org'}"
            started = time.perf_counter()
            await request(email, Client(f"10.{int(is_known)}.{number // 250}.{number % 250}"))
            if number:  # the first one opens connections and prepares statements
                times[is_known].append(time.perf_counter() - started)
    return times


def _choose_request(contender: str, identity: Identity) -> Callable[[str, Client], Awaitable[None]]:
    async def sign_in(email: str, client: Client) -> None:
        with suppress(SignInFailed):
            await service.sign_in(identity, email=email, password="violet-engine-pepper-lake", client=client)  # noqa: S106
            raise AssertionError("the password is wrong")

    async def reset(email: str, client: Client) -> None:
        await password_changes.request_reset(identity, email=email, client=client)

    async def sign_up(email: str, client: Client) -> None:
        await registration.request_sign_up(identity, email=email, name="User", client=client)

    if contender in _SIGN_IN:
        return sign_in
    return reset if contender in _RESET else sign_up


def main() -> None:
    """Run the command."""
    url, contender, count = sys.argv[1:]
    if contender == "fill":
        migrations.upgrade(url)
    print(json.dumps(asyncio.run(measure(url, contender, int(count)))))


if __name__ == "__main__":
    main()
