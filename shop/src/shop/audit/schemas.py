"""The responses of `/audit-events`, and the parameters of the list."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from howdah import Filter, Sort
from howdah.fastapi import PageParameters, RFC3339Datetime
from shop.audit.models import AuditAction, AuditEvent

_Text = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class AuditEventOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    at: datetime
    action: str = Field(description="What happened, such as `order.paid`. A later release may add actions")
    actor_user_id: UUID | None = Field(description="Null for the system, and for a request without a principal")
    actor_role: str | None = Field(description="The actor's role at that time")
    actor_session_id: UUID | None
    actor_api_key_id: UUID | None
    subject_type: str
    subject_id: str | None
    details: dict[str, Any]
    address: str | None = Field(description="The network address of the client")
    request_id: str | None = Field(description="The `X-Request-ID` of the request, which the log has, too")


class AuditEventPageParameters(PageParameters):
    actor_user_id: Annotated[UUID | None, Filter(AuditEvent.actor_user_id)] = None
    action: Annotated[AuditAction | None, Filter(AuditEvent.action)] = None
    subject_type: Annotated[_Text | None, Filter(AuditEvent.subject_type)] = None
    subject_id: Annotated[_Text | None, Filter(AuditEvent.subject_id)] = None
    at_from: Annotated[RFC3339Datetime | None, Filter(AuditEvent.at, ">=")] = None
    at_before: Annotated[RFC3339Datetime | None, Filter(AuditEvent.at, "<")] = None
    sort: Annotated[Literal["at", "-at"], Sort({"at": AuditEvent.at})] = "-at"
