"""The audit trail, sealed in the ledger's chain.

The .sql file in the folder `0006_audit` creates its functions and triggers.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from howdah.alembic import run_sql_files

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_FUNCTIONS = ("digest_of_audit_event", "set_time_of_audit_event", "seal_audit_events", "reject_audit_change")
_INDEXES = {
    "ix_audit_events_at_id": ["at", "id"],
    "ix_audit_events_actor_user_id_at_id": ["actor_user_id", "at", "id"],
    "ix_audit_events_subject_id_at_id": ["subject_id", "at", "id"],
    "ix_audit_events_action_at_id": ["action", "at", "id"],
}


def upgrade() -> None:
    op.create_table(
        "audit_events",
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("actor_user_id", sa.Uuid(), nullable=True),
        sa.Column("actor_role", sa.String(length=20), nullable=True),
        sa.Column("actor_session_id", sa.Uuid(), nullable=True),
        sa.Column("actor_api_key_id", sa.Uuid(), nullable=True),
        sa.Column("subject_type", sa.String(length=20), nullable=False),
        sa.Column("subject_id", sa.String(length=100), nullable=True),
        sa.Column("details", postgresql.JSONB(), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=True),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    for name, columns in _INDEXES.items():
        op.create_index(name, "audit_events", columns)
    run_sql_files(Path(__file__).with_suffix(""))


def downgrade() -> None:
    # The seals of the events stay, because the chain can't be shortened. After another upgrade, `shop check` reports that
    # sealed audit events are missing.
    for function in _FUNCTIONS:
        op.execute(f"DROP FUNCTION {function} CASCADE")
    op.drop_table("audit_events")
