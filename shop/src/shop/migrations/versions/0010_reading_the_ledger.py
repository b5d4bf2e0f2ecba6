"""Indexes to list transfers by time, metadata, account and group."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_UNPOSTED = "state <> 'posted'"


def upgrade() -> None:
    op.create_index("ix_transfers_created_at", "transfers", ["created_at"], postgresql_using="brin")
    for table in ("transfers", "pending_transfers"):
        op.create_index(
            f"ix_{table}_metadata",
            table,
            ["metadata"],
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
            postgresql_where="metadata IS NOT NULL",
        )
    for column in ("from_account_id", "to_account_id"):
        op.create_index(
            f"ix_pending_transfers_{column}_id", "pending_transfers", [column, "id"], postgresql_where=_UNPOSTED
        )
    op.create_index(
        "ix_pending_transfers_group_id", "pending_transfers", ["group_id"], postgresql_where="group_id IS NOT NULL"
    )


def downgrade() -> None:
    op.drop_index("ix_pending_transfers_group_id", "pending_transfers")
    for column in ("to_account_id", "from_account_id"):
        op.drop_index(f"ix_pending_transfers_{column}_id", "pending_transfers")
    for table in ("pending_transfers", "transfers"):
        op.drop_index(f"ix_{table}_metadata", table)
    op.drop_index("ix_transfers_created_at", "transfers")
