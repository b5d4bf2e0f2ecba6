"""Argon2id in threads. The number of threads is bounded, because each hash takes memory, and so is the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from secrets import token_urlsafe
from threading import BoundedSemaphore
from typing import Final, TypeVar

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from shop.identity.errors import HashingBusy
from shop.identity.passwords import normalize_password

ResultT = TypeVar("ResultT")

# The queue is emptied in about a second with the default parameters.
_QUEUE_PER_THREAD: Final = 50


class PasswordHashing:
    """Hashes and verifies passwords. The event loop isn't blocked: argon2-cffi releases the GIL.

    `memory_kib` is the memory of one hash, so `threads` hashes take `threads` times as much. If the queue is full,
    `HashingBusy` is raised at once.
    """

    def __init__(self, *, memory_kib: int, iterations: int, threads: int) -> None:
        self._hasher = PasswordHash([Argon2Hasher(time_cost=iterations, memory_cost=memory_kib, parallelism=1)])
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="password")
        self._slots = BoundedSemaphore(threads * (1 + _QUEUE_PER_THREAD))
        # The password of an unknown user is compared with this hash of a random password.
        self._decoy = self._hasher.hash(token_urlsafe())
        self.verified = 0
        """The number of comparisons, also those for unknown users."""

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """The hash of a password that `check_new_password` has normalized."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, stored: str | None) -> tuple[bool, str | None]:
        """Whether the password is right, and its new hash if the parameters have changed since it was stored.

        Without a stored hash, the password is compared with the hash of a random one, so that the work is the same.
        """
        normalized = normalize_password(password)
        self.verified += 1
        is_right, new_hash = await self._run(
            lambda: self._hasher.verify_and_update(normalized, self._decoy if stored is None else stored)
        )
        return (is_right, new_hash) if stored is not None else (False, None)

    async def _run(self, work: Callable[[], ResultT]) -> ResultT:
        if not self._slots.acquire(blocking=False):
            raise HashingBusy
        try:
            future = self._threads.submit(work)
        except BaseException:
            self._slots.release()
            raise
        # If the client disconnects, a waiting hash is cancelled, but a running one isn't: it keeps its slot until its
        # end.
        future.add_done_callback(lambda _: self._slots.release())
        return await asyncio.wrap_future(future)
