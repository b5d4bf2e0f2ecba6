"""few-rows: measure from which number of rows COPY is faster than INSERT. `MIN_COPY_ROWS` is set from this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final
from unittest import mock

from benchmarks import table_data
from benchmarks.comparison import Comparison, Contender, Goal
from benchmarks.tables import User
from howdah import AsyncRepository
from howdah._writes.copying import MIN_COPY_ROWS

ROWS: Final = (1, 5, 10, 20, 50, 200, 1000)


def _name(method: str, count: int) -> str:
    return f"{method}, {count:,} row{'' if count == 1 else 's'}"


class FewRows(Comparison):
    name = "few-rows"
    description = "{size} transactions, each of which inserts the given number of users with create_many"
    unit = "transactions"
    size = 50
    quick_size = 5

    async def set_up(self) -> None:
        self.rows = table_data.user_rows(self.count * max(ROWS))

    def contenders(self) -> list[Contender]:
        methods: list[tuple[str, Callable[[int], Awaitable[int]]]] = [
            ("COPY", self.run_copy),
            ("INSERT", self.run_insert),
        ]
        return [
            Contender(_name(method, count), "howdah", partial(run, count), self.count)
            for count in ROWS
            for method, run in methods
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal(_name("COPY", count), "of the time", 1, _name("INSERT", count))
            for count in ROWS
            if count >= MIN_COPY_ROWS
        ]

    async def reset(self, contender: Contender) -> None:
        await table_data.empty_tables(self.connections.driver)

    async def run_copy(self, count: int) -> int:
        with mock.patch("howdah.bulk.MIN_COPY_ROWS", 1):
            return await self._create(count)

    async def run_insert(self, count: int) -> int:
        with mock.patch("howdah.bulk.MIN_COPY_ROWS", count + 1):
            return await self._create(count)

    async def _create(self, count: int) -> int:
        for first in range(0, self.count * count, count):
            async with self.connections.database.begin() as session:
                await AsyncRepository(session, User).create_many(self.rows[first : first + count])
        return self.count * count

    async def verify(self, contender: Contender, returned: Any) -> None:
        await table_data.check_new_users(self.connections.driver, returned)
