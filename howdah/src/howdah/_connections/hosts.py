"""Several servers in one URL: each connection goes to the first one that is reachable and has the right role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import asyncpg

# The values of `target_session_attrs` for a database that isn't written to.
_REPLICA_ATTRIBUTES: Final = frozenset({"standby", "prefer-standby", "read-only"})


def is_replica(options: Mapping[str, Any], *, read_only: bool) -> bool:
    """Whether the database of these options of a connection isn't written to."""
    return read_only or options.get("target_session_attrs") in _REPLICA_ATTRIBUTES


class Hosts:
    """Connects to one of several hosts, first to the one that was chosen last.

    `asyncpg.connect` has one timeout for all hosts. If the first host didn't answer, for example because its machine is
    off, the second one would never be tried.
    """

    def __init__(self) -> None:
        self._chosen = 0

    async def connect(
        self, *, host: Sequence[str], port: Sequence[int], target_session_attrs: str, **arguments: Any
    ) -> Any:
        """Called by SQLAlchemy with the arguments of `asyncpg.connect`. `timeout` limits the attempt at each host."""
        failed: Exception | None = None
        roles = ["standby", "any"] if target_session_attrs == "prefer-standby" else [target_session_attrs]
        for role in roles:
            for position in self._order(len(host)):
                try:
                    connection = await asyncpg.connect(
                        host=host[position], port=port[position], target_session_attrs=role, **arguments
                    )
                except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as error:
                    failed = error
                else:
                    self._chosen = position
                    return connection
        assert failed is not None
        raise failed

    def _order(self, number: int) -> Iterator[int]:
        yield from ((self._chosen + offset) % number for offset in range(number))
