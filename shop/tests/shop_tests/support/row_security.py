"""Tests of the rules in Python, without the second line of defence."""

from __future__ import annotations

import pytest

from shop.identity.principals import Principal
from shop.roles import STAFF_ROLE
from shop.web import dependencies


def disable_row_security(monkeypatch: pytest.MonkeyPatch) -> None:
    """Customers read and write as the staff does, and transfers are posted without `posted_by`.

    So the policies and triggers of the database protect nothing, and a missing rule is seen.
    """
    monkeypatch.setattr(dependencies, "CUSTOMER_ROLE", STAFF_ROLE)
    monkeypatch.setattr(Principal, "customer_id", None)
