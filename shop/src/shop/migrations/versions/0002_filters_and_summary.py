"""Indexes for filtering listings, and for a user's summary. Writes wait while they are built."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_users_country_id", "users", ["country", "id"], unique=False)
    op.create_index("ix_users_created_at", "users", ["created_at"], unique=False)
    op.create_index("ix_orders_total_cents", "orders", ["total_cents"], unique=False)
    op.drop_index("ix_orders_user_id_placed_at_id", table_name="orders")
    op.create_index(
        "ix_orders_user_id_placed_at_id",
        "orders",
        ["user_id", "placed_at", "id"],
        unique=False,
        postgresql_include=["status", "total_cents"],
    )


def downgrade() -> None:
    op.drop_index("ix_orders_user_id_placed_at_id", table_name="orders")
    op.create_index("ix_orders_user_id_placed_at_id", "orders", ["user_id", "placed_at", "id"], unique=False)
    op.drop_index("ix_orders_total_cents", table_name="orders")
    op.drop_index("ix_users_created_at", table_name="users")
    op.drop_index("ix_users_country_id", table_name="users")
