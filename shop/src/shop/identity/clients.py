"""Where a request comes from."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

# The lengths of the columns.
_MAX_ADDRESS: Final = 45
_MAX_USER_AGENT: Final = 200
_IPV6_PREFIX: Final = 64


@dataclass(frozen=True, slots=True)
class Client:
    """The address and the program of a client. Both are shown to the owner of a session."""

    address: str | None = None
    user_agent: str | None = None

    @property
    def network(self) -> str:
        """The IPv4 address, or the /64 network of an IPv6 address: one customer of a provider usually has all of it."""
        try:
            address = ip_address(self.address or "")
        except ValueError:
            return "unknown"
        if isinstance(address, IPv6Address):
            if address.ipv4_mapped is not None:
                return str(address.ipv4_mapped)
            return str(ip_network(f"{address.compressed.partition('%')[0]}/{_IPV6_PREFIX}", strict=False))
        return str(address)

    @property
    def shown_address(self) -> str | None:
        return None if self.address is None else self.address[:_MAX_ADDRESS]

    @property
    def shown_user_agent(self) -> str | None:
        if self.user_agent is None:
            return None
        return "".join(each if each.isprintable() else "?" for each in self.user_agent[:_MAX_USER_AGENT])
