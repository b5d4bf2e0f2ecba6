"""Where a request comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from howdah.fastapi import find_client_network

# The lengths of the columns.
_MAX_ADDRESS: Final = 45
_MAX_USER_AGENT: Final = 200


@dataclass(frozen=True, slots=True)
class Client:
    """The address and the program of a client. Both are shown to the owner of a session."""

    address: str | None = None
    user_agent: str | None = None

    @property
    def network(self) -> str:
        """The IPv4 address, or the /64 network of an IPv6 address: one customer of a provider usually has all of it."""
        return find_client_network(self.shown_address or "") or "unknown"

    @property
    def shown_address(self) -> str | None:
        return None if self.address is None else self.address[:_MAX_ADDRESS]

    @property
    def shown_user_agent(self) -> str | None:
        if self.user_agent is None:
            return None
        return "".join(each if each.isprintable() else "?" for each in self.user_agent[:_MAX_USER_AGENT])
