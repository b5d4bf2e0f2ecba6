"""The table of audit events."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Index, String, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, UUIDv7PrimaryKey
from howdah.tenancy import TableGrant
from shop.policies import OWN_ID, customers_insert, staff_and_system
from shop.roles import CUSTOMER_ROLE, STAFF_ROLE, SYSTEM_ROLE

MAX_ADDRESS: Final = 45


class AuditAction(StrEnum):
    """The kind of an event. The names are part of the API and don't change.

    The subject of an event about signing in (`session.…`, `credential.…`) is the user, so that one filter finds all of
    them.
    """

    USER_CREATED = "user.created"
    USERS_CREATED = "user.created_many"
    USER_CHANGED = "user.changed"
    USER_DELETED = "user.deleted"
    ROLE_CHANGED = "user.role_changed"

    ORDER_PAID = "order.paid"
    ORDER_STATUSES_SET = "order.statuses_set"

    ACCOUNTS_OPENED = "account.opened"
    ACCOUNT_CHANGED = "account.changed"

    SIGN_UP_REQUESTED = "session.sign_up_requested"
    SIGNED_UP = "session.signed_up"
    SIGNED_IN = "session.signed_in"
    SIGN_IN_REFUSED = "session.sign_in_refused"
    SIGN_IN_THROTTLED = "session.sign_in_throttled"
    SIGNED_OUT = "session.signed_out"
    SESSIONS_REVOKED = "session.revoked"
    REFRESH_TOKEN_REUSED = "session.refresh_token_reused"  # noqa: S105  # the name of an action

    PASSWORD_REFUSED = "credential.password_refused"  # noqa: S105
    PASSWORD_CHANGED = "credential.password_changed"  # noqa: S105
    PASSWORD_RESET_REQUESTED = "credential.password_reset_requested"  # noqa: S105
    PASSWORD_RESET = "credential.password_reset"  # noqa: S105
    EMAIL_CHANGE_REQUESTED = "credential.email_change_requested"
    EMAIL_CHANGED = "credential.email_changed"
    INVITED = "credential.invited"
    INVITATION_ACCEPTED = "credential.invitation_accepted"
    TOTP_ENABLED = "credential.totp_enabled"
    TOTP_DISABLED = "credential.totp_disabled"
    RECOVERY_CODE_USED = "credential.recovery_code_used"
    SIGN_IN_LINK_CREATED = "credential.sign_in_link_created"

    API_KEY_CREATED = "api_key.created"
    API_KEY_REVOKED = "api_key.revoked"


class AuditEvent(UUIDv7PrimaryKey, Base):
    """An event of the audit trail.

    The actor is the principal: the user with the role at that time, and the session or the API key. It is NULL for the
    system, and for a request without a principal, such as a refused sign-in. No column is a foreign key, because events
    are kept after their subjects were deleted.

    A trigger sets `at` by the database's clock. Other triggers seal each event, and reject every change.
    """

    __tablename__ = "audit_events"
    __table_args__ = (
        Index("ix_audit_events_at_id", "at", "id"),
        Index("ix_audit_events_actor_user_id_at_id", "actor_user_id", "at", "id"),
        Index("ix_audit_events_subject_id_at_id", "subject_id", "at", "id"),
        Index("ix_audit_events_action_at_id", "action", "at", "id"),
        # customers add events about themselves, and read none
        customers_insert(f"actor_user_id = {OWN_ID} AND actor_role = 'customer'"),
        *staff_and_system(),
        TableGrant(CUSTOMER_ROLE, "INSERT"),
        TableGrant(STAFF_ROLE, "SELECT", "INSERT"),
        TableGrant(SYSTEM_ROLE, "SELECT", "INSERT"),
    )

    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    action: Mapped[str] = mapped_column(String(40))
    actor_user_id: Mapped[UUID | None]
    actor_role: Mapped[str | None] = mapped_column(String(20))
    actor_session_id: Mapped[UUID | None]
    actor_api_key_id: Mapped[UUID | None]
    subject_type: Mapped[str] = mapped_column(String(20))
    subject_id: Mapped[str | None] = mapped_column(String(100))
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    address: Mapped[str | None] = mapped_column(String(MAX_ADDRESS))
    request_id: Mapped[str | None] = mapped_column(String(128))
