"""`/audit-events`: read the audit trail."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from howdah.fastapi import PageOut, list_response
from shop.audit.dependencies import AuditEventReader
from shop.audit.rules import READ_AUDIT
from shop.audit.schemas import AuditEventOut, AuditEventPageParameters

router = APIRouter(prefix="/audit-events", tags=["audit trail"])


@router.get("", response_model=PageOut[AuditEventOut], dependencies=[READ_AUDIT])
async def list_audit_events(
    parameters: Annotated[AuditEventPageParameters, Query()], events: AuditEventReader
) -> Response:
    """Security events and changes of users, orders and accounts, newest first."""
    return await list_response(events, parameters)
