"""The parameters of the list of accounts. They need `AccountSnapshot`, so they aren't in `account_schemas`."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from howdah import Filter
from howdah.fastapi import PageParameters
from shop.ledger.account_queries import AccountSnapshot
from shop.ledger.models import AccountPurpose
from shop.web.fields import Currency


class AccountPageParameters(PageParameters):
    """Page and filters. An account must match all filters."""

    user_id: Annotated[UUID | None, Filter(AccountSnapshot.user_id)] = None
    currency: Annotated[Currency | None, Filter(AccountSnapshot.currency)] = None
    purpose: Annotated[AccountPurpose | None, Filter(AccountSnapshot.purpose)] = None
