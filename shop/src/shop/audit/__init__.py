"""The audit trail: who did what, and when. Events are never changed or deleted, and the ledger's seals cover them."""

from __future__ import annotations

from shop.audit.models import AuditAction, AuditEvent
from shop.audit.service import record

__all__ = ["AuditAction", "AuditEvent", "record"]
