"""Verify API keys, with a cache. Keys that aren't in the cache are read in shared batches."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from hmac import compare_digest
from typing import Annotated, Final, TypeVar
from uuid import UUID

import structlog
from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah import Coalescer, Database, HowdahError, NotFound
from howdah.fastapi import Job, NotAuthenticated, Resource
from shop.identity.api_keys.formats import KeyParts, parse_key
from shop.identity.api_keys.models import ApiKey
from shop.identity.api_keys.repository import StoredKey, delete_old_keys, read_keys, write_last_used
from shop.identity.principals import Principal
from shop.identity.scopes import scopes_of_role
from shop.web.dependencies import SYSTEM_DATABASE

MAX_STALENESS_SECONDS: Final = 2.0
"""How long a process may accept a key that another process has revoked, or the old role of its user."""

_LAST_USE_INTERVAL: Final = timedelta(minutes=1)
_LAST_WRITE_SECONDS: Final = 2.0
"""The time for the last write at shutdown."""

_RETENTION: Final = timedelta(days=90)
"""How long a revoked or expired key is listed."""

# About 800 bytes each for a key, and 280 for a wrong one.
_MAX_KNOWN: Final = 10_000
_MAX_WRONG: Final = 10_000

# The coalescer has one worker, so any number of unknown keys uses one connection at most.
_MAX_BATCH_SIZE: Final = 500
_MAX_WAITING: Final = 2_000
_SUBMIT_TIMEOUT_SECONDS: Final = 5.0

_log = structlog.get_logger("shop.api_keys")

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class _Known:
    principal: Principal
    valid_until: float


class ApiKeyVerifier:
    """Verifies API keys, and caches the results for `MAX_STALENESS_SECONDS`.

    Wrong keys have a separate cache, so a client with many wrong keys can't evict valid ones. `forget` takes effect
    immediately in this process, also for keys that are being read.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._known: OrderedDict[KeyParts, _Known] = OrderedDict()
        self._wrong: OrderedDict[KeyParts, float] = OrderedDict()
        self._last_used: set[UUID] = set()
        # counts the calls of `forget`: a key that was read before a call isn't cached after it
        self._epoch = 0
        self.coalescer: Final[Coalescer[str, StoredKey]] = Coalescer(
            self._read,
            key=lambda prefix: prefix,
            max_batch_size=_MAX_BATCH_SIZE,
            max_waiting=_MAX_WAITING,
            submit_timeout=_SUBMIT_TIMEOUT_SECONDS,
        )

    async def verify(self, text: str) -> Principal:
        """The principal of the key. Raises `NotAuthenticated` for a wrong, expired or revoked one."""
        parts = parse_key(text)
        if parts is None:
            raise _rejection()
        now = self._clock()
        known = self._known.get(parts)
        if known is None or known.valid_until <= now:
            if self._wrong.get(parts, 0) > now:
                raise _rejection()
            known = await self._look_up(parts, now)
        assert known.principal.api_key_id is not None
        self._last_used.add(known.principal.api_key_id)
        return known.principal

    def forget(self, user_id: UUID) -> None:
        """Read the keys of this user again. Call it after the commit that revokes a key, or changes the user's role."""
        self._epoch += 1
        for parts in [parts for parts, known in self._known.items() if known.principal.user_id == user_id]:
            del self._known[parts]

    async def write_last_used(self) -> None:
        """Store the time of the last use for the keys that were used since the last call."""
        used, self._last_used = self._last_used, set()
        if used:
            try:
                await write_last_used(self._database, used)
            except BaseException:
                self._last_used |= used
                raise

    async def _look_up(self, parts: KeyParts, now: float) -> _Known:
        """Read the key in a shared batch, and cache the result. `now` is the time before the read."""
        epoch = self._epoch
        try:
            stored = await self.coalescer.submit(parts.prefix)
        except NotFound:
            stored = None
        # compare_digest takes the same time for every wrong secret
        if stored is None or not compare_digest(stored.secret_hash, parts.secret_hash):
            _add(self._wrong, parts, now + MAX_STALENESS_SECONDS, _MAX_WRONG)
            raise _rejection()
        scopes = frozenset(stored.scopes) & scopes_of_role(stored.role)
        known = _Known(
            Principal(stored.user_id, stored.role, scopes=scopes, api_key_id=stored.id),
            now + min(MAX_STALENESS_SECONDS, stored.seconds_left),
        )
        if epoch == self._epoch:
            _add(self._known, parts, known, _MAX_KNOWN)
        return known

    async def _read(self, prefixes: Sequence[str]) -> Sequence[StoredKey | Exception]:
        async def read(connection: AsyncConnection) -> dict[str, StoredKey]:
            return await read_keys(connection, prefixes)

        found = await self._database.read(read)
        return [found.get(prefix) or NotFound(ApiKey, [prefix]) for prefix in prefixes]


def _rejection() -> NotAuthenticated:
    return NotAuthenticated("the API key is wrong, expired or revoked")


def _add(cache: OrderedDict[KeyT, ValueT], key: KeyT, value: ValueT, limit: int) -> None:
    """Add the value as the newest one, and remove the oldest one if there are more than `limit`."""
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > limit:
        cache.popitem(last=False)


@asynccontextmanager
async def open_verifier(database: Database) -> AsyncIterator[ApiKeyVerifier]:
    """The verifier of an application. When it is closed, the last uses are written."""
    verifier = ApiKeyVerifier(database)
    async with verifier.coalescer:
        yield verifier
    try:
        async with asyncio.timeout(_LAST_WRITE_SECONDS):
            await verifier.write_last_used()
    except (HowdahError, TimeoutError) as error:
        _log.warning("the last uses of API keys were not written", error=type(error).__name__)


api_key_verifier: Final = Resource("api_key", open_verifier, database=SYSTEM_DATABASE)

CurrentVerifier = Annotated[ApiKeyVerifier, Depends(api_key_verifier)]

WRITE_LAST_USED: Final = Job(
    "write-last-used", every=_LAST_USE_INTERVAL, work=ApiKeyVerifier.write_last_used, resource=api_key_verifier
)

DELETE_OLD_KEYS: Final = Job(
    "delete-old-api-keys",
    every=timedelta(hours=1),
    work=lambda database: delete_old_keys(database, older_than=_RETENTION),
    database=SYSTEM_DATABASE,
)
