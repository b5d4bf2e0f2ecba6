"""Record events, each in the transaction of its change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import structlog
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import JsonView
from shop.audit.models import MAX_ADDRESS, AuditAction, AuditEvent
from shop.audit.schemas import AuditEventOut
from shop.identity.principals import Principal

AUDIT_EVENT_VIEW: Final = JsonView(AuditEvent, AuditEventOut)

NO_DETAILS: Final[Mapping[str, Any]] = MappingProxyType({})

# An event can't be deleted, so operators could read a secret in it for ever.
_SECRET: Final = re.compile(r"password|secret|token|hash|authorization|cookie|\bcode\b", re.IGNORECASE)


async def record(
    session: AsyncSession,
    action: AuditAction,
    *,
    actor: Principal | None,
    subject_type: str,
    subject_id: object = None,
    details: Mapping[str, Any] = NO_DETAILS,
    address: str | None = None,
) -> None:
    """Add an event to the session's transaction, so that it exists if and only if the change is committed.

    `actor` is None for the system, and for a request without a principal. `details` become JSON: no secrets, no names
    of persons and no e-mail addresses. Raises `ValueError` for a detail whose name is that of a secret. The id of the
    request comes from the log context.
    """
    _reject_secrets(details)
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    await session.execute(
        insert(AuditEvent).values(
            action=action,
            actor_user_id=None if actor is None else actor.user_id,
            actor_role=None if actor is None else str(actor.role),
            actor_session_id=None if actor is None else actor.session_id,
            actor_api_key_id=None if actor is None else actor.api_key_id,
            subject_type=subject_type,
            subject_id=None if subject_id is None else str(subject_id),
            details=dict(details),
            # an IPv6 address with the name of an interface may be longer
            address=None if address is None else address[:MAX_ADDRESS],
            request_id=request_id,
        )
    )


def _reject_secrets(details: Mapping[str, Any]) -> None:
    for name, value in details.items():
        if _SECRET.search(name):
            raise ValueError(f"the detail {name!r} has the name of a secret: leave it out of the audit trail")
        if isinstance(value, Mapping):
            _reject_secrets(value)
