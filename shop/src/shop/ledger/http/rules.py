"""Who may do what with accounts and transfers.

A customer opens, reads and changes only their own accounts, reads the transfers that touch them, and moves money only
from them. Operators read everything, open accounts of every kind, and set limits and states. Admins also move money
between all accounts. `shop.ledger.ownership` decides which transfer, hold or reversal a customer may post; the triggers
of the database compare it with the owners once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from howdah.fastapi import NotAllowed, allow
from shop.identity.principals import Principal, Role
from shop.ledger.models import Account
from shop.ledger.requests import TransferRecord
from shop.users.models import User
from shop.web.access import OwnRows, everyone

READ_ACCOUNTS: Final = everyone("accounts:read")
OPEN_ACCOUNTS: Final = everyone("accounts:write")
CHANGE_ACCOUNTS: Final = everyone("accounts:write")
READ_TRANSFERS: Final = everyone("transfers:read")
# Operators may not: they set states and limits, but move no money.
POST_TRANSFERS: Final = allow(Role.CUSTOMER, Role.ADMIN, scope="transfers:write")


class OwnTransfers:
    """The transfers from or to the accounts of a customer. Every other transfer is `NotFound` for the customer."""

    def find_customer(self, principal: Principal) -> UUID | None:
        """The customer whose transfers the principal reads, or None if it reads all transfers."""
        return None if principal.is_staff else principal.user_id


class OwnBalances:
    """A customer sees the balance and the entry number of a transfer only on the side of their own account."""

    def find_customer(self, principal: Principal) -> UUID | None:
        """The customer whose balances the principal sees, or None if it sees all balances."""
        return None if principal.is_staff else principal.user_id

    def hide(self, transfer: TransferRecord, principal: Principal) -> TransferRecord:
        """The transfer without these values on the sides of other users' accounts."""
        customer = self.find_customer(principal)
        if customer is None:
            return transfer
        if transfer.from_user_id != customer:
            transfer = transfer._replace(from_balance=None, from_entry_number=None)
        if transfer.to_user_id != customer:
            transfer = transfer._replace(to_balance=None, to_entry_number=None)
        return transfer


class CustomerFields:
    """The fields of a body that customers may send. The others belong to operators."""

    def __init__(self, *names: str) -> None:
        self.names = frozenset(names)

    def find_excluded(self, principal: Principal, names: Iterable[str]) -> list[str]:
        """The fields among these that the principal may not send."""
        return [] if principal.is_staff else [name for name in names if name not in self.names]

    def check(self, principal: Principal, names: Iterable[str]) -> None:
        """Raise `NotAllowed` if the principal may not send one of the fields."""
        if excluded := self.find_excluded(principal, names):
            raise NotAllowed(f"only operators may set {', '.join(excluded)}: leave it out")


OWN_ACCOUNTS: Final = OwnRows(Account.user_id)
# A customer opens accounts only for themselves. Another user is refused like one that doesn't exist.
OWN_USER: Final = OwnRows(User.id)
OPENING_FIELDS: Final = CustomerFields("name", "currency", "user_id", "metadata")
# Only operators close accounts: a customer could otherwise close an account that an operator has frozen.
CHANGE_FIELDS: Final = CustomerFields("name", "metadata")
OWN_TRANSFERS: Final = OwnTransfers()
OWN_BALANCES: Final = OwnBalances()
