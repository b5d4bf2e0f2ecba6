"""Where a request comes from."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

_MAX_USER_AGENT = 200
_IPV6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class Client:
    """The address and the program of a client. Both are shown to the owner of a session."""

    address: str | None = None
    user_agent: str | None = None

    @property
    def network(self) -> str:
        """What counts as one client: an IPv4 address, or the /64 network of an IPv6 address, which one client owns."""
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
    def shown_user_agent(self) -> str | None:
        if self.user_agent is None:
            return None
        return "".join(each if each.isprintable() else "?" for each in self.user_agent[:_MAX_USER_AGENT])
