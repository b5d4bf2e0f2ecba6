"""Tests of the rules in Python, without the second line of defence."""

from __future__ import annotations

import pytest

from shop.identity.principals import Principal
from shop.roles import STAFF_ROLE
from shop.web import dependencies


def disable_row_security(monkeypatch: pytest.MonkeyPatch) -> None:
    """Customers read and write with the role of the staff, so the policies protect no other customer."""
    monkeypatch.setattr(dependencies, "CUSTOMER_ROLE", STAFF_ROLE)


def disable_posted_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Customers post transfers as the staff does, so neither the ledger nor its trigger protects other accounts."""
    monkeypatch.setattr(Principal, "customer_id", None)
