"""few-rows: from how many rows on COPY pays. What `howdah._writes.copying.MIN_COPY_ROWS` was chosen by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final
from unittest import mock

from howdah._writes.copying import MIN_COPY_ROWS

from benchmarks import contents
from benchmarks.comparison import Comparison, Contender, Goal
from benchmarks.tables import User
from howdah import AsyncRepository

ROWS: Final = (1, 5, 10, 20, 50, 200, 1000)


class FewRows(Comparison):
    name = "few-rows"
    work = "{size} transactions, each of which creates so many users by create_many"
    unit = "transactions"
    size = 50

    async def set_up(self) -> None:
        self.rows = contents.people(self.count * max(ROWS))

    def contenders(self) -> list[Contender]:
        ways: list[tuple[str, Callable[[int], Awaitable[int]]]] = [("COPY", self.copy), ("INSERT", self.insert)]
        return [
            Contender(f"{way} of {count:,}", "howdah", partial(work, count), self.count)
            for count in ROWS
            for way, work in ways
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal(f"COPY of {count:,}", "of the time", 1, f"INSERT of {count:,}")
            for count in ROWS
            if count >= MIN_COPY_ROWS
        ]

    async def reset(self, contender: Contender) -> None:
        await contents.empty(self.connections.driver)

    async def copy(self, count: int) -> int:
        with mock.patch("howdah.bulk.MIN_COPY_ROWS", 1):
            return await self._create(count)

    async def insert(self, count: int) -> int:
        with mock.patch("howdah.bulk.MIN_COPY_ROWS", count + 1):
            return await self._create(count)

    async def _create(self, count: int) -> int:
        for first in range(0, self.count * count, count):
            async with self.connections.database.begin() as session:
                await AsyncRepository(session, User).create_many(self.rows[first : first + count])
        return self.count * count

    async def verify(self, contender: Contender, returned: Any) -> None:
        await contents.check_new_users(self.connections.driver, returned)
