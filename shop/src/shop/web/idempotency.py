"""Idempotent routes that don't move money. A route runs once for each `Idempotency-Key`."""

from __future__ import annotations

from typing import Any, Final

from howdah.fastapi import IdempotentRoute, StrictJSONRoute, idempotency_key, require_principal_key
from shop.web.dependencies import principal_session
from shop.web.models import IdempotentRequest


class StrictIdempotentRoute(IdempotentRoute, StrictJSONRoute):
    """A route that can be idempotent and that has a strict JSON body."""


request_key: Final[Any] = idempotency_key(IdempotentRequest, scope=require_principal_key, session=principal_session)
"""Add it to `dependencies` of a route that creates something: a retry with its key gets the first response again."""
