"""`uuid7`: increasing keys, in Python and in PostgreSQL."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import uuid7
from howdah_tests.support.sample_models import User


class TestUuid7:
    def test_has_the_version_the_variant_and_the_time_of_rfc_9562(self) -> None:
        before = time.time_ns() // 1_000_000
        key = uuid7()
        after = time.time_ns() // 1_000_000
        assert isinstance(key, UUID)
        assert key.version == 7
        assert key.int >> 62 & 0b11 == 0b10
        assert before <= key.int >> 80 <= after

    def test_increases_with_every_call(self) -> None:
        keys = [uuid7() for _ in range(100_000)]
        assert all(one < other for one, other in pairwise(keys))
        assert {(key.version, key.int >> 62 & 0b11) for key in keys} == {(7, 0b10)}

    def test_increases_in_every_thread_and_is_unique(self) -> None:
        lists: list[list[UUID]] = [[] for _ in range(4)]

        def generate(keys: list[UUID]) -> None:
            keys += [uuid7() for _ in range(25_000)]

        threads = [threading.Thread(target=generate, args=(keys,)) for keys in lists]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for keys in lists:
            assert all(one < other for one, other in pairwise(keys))
        assert len({key for keys in lists for key in keys}) == 100_000

    async def test_has_the_same_order_on_the_server(self, session: AsyncSession) -> None:
        keys = [uuid7() for _ in range(100)]
        at_random = literal(sorted(keys, key=lambda key: key.int & 0xFFFF), ARRAY(Uuid))
        shuffled = select(func.unnest(at_random).label("key")).subquery()
        assert list(await session.scalars(select(shuffled.c.key).order_by(shuffled.c.key))) == keys

    async def test_is_set_by_the_flush_or_by_the_constructor(self, session: AsyncSession) -> None:
        key = uuid7()
        one, other = User(email="a", name="a"), User(id=key, email="b", name="b")
        session.add_all([one, other])
        await session.flush()
        assert one.id.version == 7
        assert other.id == key
