"""sign-in: whether the time of an answer tells if a user has the address."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from sqlalchemy import make_url

from benchmarks.comparison import Comparison, Contender, Goal, Measured
from benchmarks.processes import run_module, run_process

if TYPE_CHECKING:
    from typing import Any

    from benchmarks.postgres import Connections

PAIRS: Final = (
    ("sign in, wrong password", "sign in, unknown user"),
    ("reset of a user's password", "reset, unknown user"),
    ("sign up, the address of a user", "sign up, unknown address"),
)
"""In each pair the first contender has the address of a user, and the second one an address that no user has."""

_MAX_DIFFERENCE: Final = 1.1


class SignIn(Comparison):
    name = "sign-in"
    description = (
        "the median of {size} requests, each for another address, as the service handles them: with Argon2id of 19 MiB "
        "and two iterations. The requests of a pair alternate. The first one of a pair has the addresses of users"
    )
    unit = "requests"
    size = 200
    quick_size = 20
    has_warm_up = False

    def __init__(self, connections: Connections, size: int, *, rounds: int = 5, is_quick: bool = False) -> None:
        super().__init__(connections, size, rounds=rounds, is_quick=is_quick)
        url = make_url(connections.url)
        self._measured: dict[str, float] = {}
        self.database = f"{url.database}_sign_in"
        self.url = url.set(database=self.database).render_as_string(hide_password=False)

    async def set_up(self) -> None:
        await self._drop_database()
        await self.connections.driver.execute(f'CREATE DATABASE "{self.database}"')
        await run_module("benchmarks.sign_in_loads", self.url, "fill", str(self.count))

    async def tear_down(self) -> None:
        await self._drop_database()

    async def _drop_database(self) -> None:
        await self.connections.driver.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')

    def contenders(self) -> list[Contender]:
        return [
            contender
            for known, unknown in PAIRS
            for contender in (
                Contender(known, "howdah", self._run(known), self.count),
                Contender(unknown, "baseline", self._run(unknown), self.count),
            )
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal(one, "of the time", _MAX_DIFFERENCE, other)
            for known, unknown in PAIRS
            for one, other in ((known, unknown), (unknown, known))
        ]

    async def reset(self, contender: Contender) -> None:
        """The loads delete the throttles first."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        """The loads raise an error if an answer is not the expected one."""

    def _run(self, name: str) -> Callable[[], Awaitable[Measured]]:
        async def run() -> Measured:
            """Both contenders of a pair are measured in one process. The second one gets its figure from that run."""
            if name not in self._measured:
                command = (sys.executable, "-m", "benchmarks.sign_in_loads", self.url, name, str(self.count))
                output = await run_process("benchmarks.sign_in_loads", *command)
                self._measured |= json.loads(output.splitlines()[-1])
            return Measured(self._measured.pop(name))

        return run
