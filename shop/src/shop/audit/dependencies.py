"""FastAPI dependencies of the audit trail, for the routes of every feature."""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of local names as texts.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from howdah import JsonViewReader
from howdah.fastapi import Resource, find_principal
from shop.audit.models import AuditAction, AuditEvent
from shop.audit.service import AUDIT_EVENT_VIEW, NO_DETAILS, record
from shop.identity.principals import Principal
from shop.web.dependencies import principal_reader

audit_event_reader: Final = Resource("audit_event_list", AUDIT_EVENT_VIEW.open)

AuditEventReader = Annotated[JsonViewReader[AuditEvent], principal_reader(audit_event_reader)]


@dataclass(frozen=True, slots=True)
class AuditTrail:
    """Records the events of one request, with its principal and its address."""

    actor: Principal | None
    address: str | None

    async def record(
        self,
        session: AsyncSession,
        action: AuditAction,
        *,
        subject_type: str,
        subject_id: object = None,
        details: Mapping[str, Any] = NO_DETAILS,
    ) -> None:
        """Add an event to the session's transaction."""
        await record(
            session,
            action,
            actor=self.actor,
            subject_type=subject_type,
            subject_id=subject_id,
            details=details,
            address=self.address,
        )


async def get_audit_trail(connection: HTTPConnection) -> AuditTrail:
    """The audit trail with the actor and the address of this request."""
    client = connection.client
    return AuditTrail(find_principal(connection), None if client is None else client.host)


CurrentAuditTrail = Annotated[AuditTrail, Depends(get_audit_trail)]
