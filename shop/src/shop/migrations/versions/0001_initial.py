"""Users, orders, accounts, transfers, pending transfers, entries, idempotency keys and seals.

The .sql files in the folder `0001_initial` create the functions and triggers.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from howdah.alembic import run_sql_files

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_FUNCTIONS = (
    "check_new_accounts",
    "reject_identity_change",
    "increment_revision",
    "digest_of_transfer",
    "digest_of_pending_transfer",
    "digest_of_idempotency_key",
    "digest_of_account",
    "hash_of_seal",
    "reject_change",
    "reject_key_change",
    "check_new_pending_transfers",
    "allow_only_settling",
    "post_transfers",
    "reject_direct_write",
    "seal_transfers",
    "seal_idempotency_keys",
    "seal_pending_transfers",
    "seal_settled_transfers",
    "seal_accounts",
    "seal_changed_account",
    "link_seals",
    "reject_seal_change",
)
_TABLES = (
    "pending_transfers",
    "order_items",
    "orders",
    "accounts",
    "users",
    "transfers",
    "seals",
    "idempotency_keys",
    "entries",
)


def upgrade() -> None:
    op.create_table(
        "entries",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("entry_number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("transfer_id", sa.Uuid(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("balance_after", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount <> 0", name=op.f("ck_entries_amount_not_zero")),
        sa.CheckConstraint("entry_number > 0", name=op.f("ck_entries_entry_number_positive")),
        sa.PrimaryKeyConstraint("account_id", "entry_number", name=op.f("pk_entries")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("scope", sa.String(length=100), nullable=False),
        sa.Column("key", sa.String(length=260), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("transfer_id", sa.Uuid(), nullable=True),
        sa.Column("refusal", sa.String(length=40), nullable=True),
        sa.Column("account_id", sa.Uuid(), nullable=True),
        sa.Column(
            "answer",
            sa.Enum(
                "posted",
                "pending",
                "voided",
                "refused",
                "opened",
                name="answer_is_known",
                native_enum=False,
                create_constraint=True,
                length=10,
            ),
            nullable=False,
        ),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("statement_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "num_nonnulls(transfer_id, refusal, account_id) = 1 AND (refusal IS NOT NULL) = (answer = 'refused') AND (account_id IS NOT NULL) = (answer = 'opened')",
            name=op.f("ck_idempotency_keys_exactly_one_result"),
        ),
        sa.PrimaryKeyConstraint("scope", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(
        "ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False, postgresql_using="brin"
    )
    op.create_table(
        "seals",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("subject", sa.String(length=20), nullable=False),
        sa.Column("ids", sa.ARRAY(sa.Uuid()), nullable=True),
        sa.Column("revisions", sa.ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("digests", sa.ARRAY(sa.LargeBinary()), nullable=False),
        sa.Column("previous_digests", sa.ARRAY(sa.LargeBinary()), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("hash", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("(position IS NULL) = (hash IS NULL)", name=op.f("ck_seals_linked_has_hash")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_seals")),
        sa.UniqueConstraint("position", name=op.f("uq_seals_position")),
    )
    op.create_table(
        "transfers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("from_account_id", sa.Uuid(), nullable=False),
        sa.Column("from_entry_number", sa.BigInteger(), nullable=False),
        sa.Column("to_account_id", sa.Uuid(), nullable=False),
        sa.Column("to_entry_number", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("description", sa.String(length=500), nullable=True),
        sa.Column("metadata", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column(
            "effective_at", sa.DateTime(timezone=True), server_default=sa.text("statement_timestamp()"), nullable=False
        ),
        sa.Column("reverses_id", sa.Uuid(), nullable=True),
        sa.Column("reversed_total", sa.BigInteger(), nullable=True),
        sa.Column("group_id", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("statement_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "(reverses_id IS NULL) = (reversed_total IS NULL)", name=op.f("ck_transfers_reversal_has_reversed_total")
        ),
        sa.CheckConstraint("amount > 0", name=op.f("ck_transfers_amount_positive")),
        sa.CheckConstraint("from_account_id <> to_account_id", name=op.f("ck_transfers_accounts_differ")),
        sa.CheckConstraint("reversed_total >= amount", name=op.f("ck_transfers_reversed_total_includes_amount")),
        sa.ForeignKeyConstraint(["reverses_id"], ["transfers.id"], name=op.f("fk_transfers_reverses_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transfers")),
    )
    op.create_index("ix_transfers_created_at", "transfers", ["created_at"], unique=False, postgresql_using="brin")
    op.create_index(
        "ix_transfers_group_id", "transfers", ["group_id"], unique=False, postgresql_where="group_id IS NOT NULL"
    )
    op.create_index(
        "ix_transfers_metadata",
        "transfers",
        ["metadata"],
        unique=False,
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where="metadata IS NOT NULL",
    )
    op.create_index(
        "uq_transfers_reverses_id_reversed_total",
        "transfers",
        ["reverses_id", "reversed_total"],
        unique=True,
        postgresql_where="reverses_id IS NOT NULL",
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("country", sa.String(length=100), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("email = lower(email)", name=op.f("ck_users_email_is_lower_case")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_index("ix_users_country_id", "users", ["country", "id"], unique=False)
    op.create_index("ix_users_created_at", "users", ["created_at"], unique=False)
    op.create_index(
        "ix_users_email_prefix", "users", ["email"], unique=False, postgresql_ops={"email": "text_pattern_ops"}
    )
    op.create_table(
        "accounts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column(
            "purpose",
            sa.Enum(
                "cash_in",
                "cash_out",
                "fees",
                name="purpose_is_known",
                native_enum=False,
                create_constraint=True,
                length=10,
            ),
            nullable=True,
        ),
        sa.Column("balance", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("allows_negative", sa.Boolean(), nullable=False),
        sa.Column("overdraft_limit", sa.BigInteger(), nullable=False),
        sa.Column("balance_limit", sa.BigInteger(), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "open", "frozen", "closed", name="state_is_known", native_enum=False, create_constraint=True, length=10
            ),
            nullable=False,
        ),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("entry_count", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("statement_timestamp()"), nullable=False
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("statement_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_accounts_currency_is_a_code")),
        sa.CheckConstraint(
            "state <> 'closed' OR (balance = 0 AND held = 0)", name=op.f("ck_accounts_closed_account_is_empty")
        ),
        sa.CheckConstraint(
            "balance - held >= -overdraft_limit OR allows_negative",
            name=op.f("ck_accounts_available_within_overdraft_limit"),
        ),
        sa.CheckConstraint("balance <= balance_limit", name=op.f("ck_accounts_balance_within_limit")),
        sa.CheckConstraint("balance_limit >= 0", name=op.f("ck_accounts_balance_limit_not_negative")),
        sa.CheckConstraint("entry_count >= 0", name=op.f("ck_accounts_entry_count_not_negative")),
        sa.CheckConstraint("held >= 0", name=op.f("ck_accounts_held_not_negative")),
        sa.CheckConstraint("overdraft_limit >= 0", name=op.f("ck_accounts_overdraft_limit_not_negative")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_accounts_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(op.f("ix_accounts_user_id"), "accounts", ["user_id"], unique=False)
    op.create_index(
        "uq_accounts_purpose_currency",
        "accounts",
        ["purpose", "currency"],
        unique=True,
        postgresql_where="purpose IS NOT NULL",
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("reference", sa.String(length=64), nullable=True),
        sa.Column(
            "status",
            sa.Enum(
                "pending",
                "paid",
                "shipped",
                "delivered",
                "cancelled",
                "refunded",
                name="status_is_known",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("total_cents", sa.BigInteger(), nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cancels_id", sa.Uuid(), nullable=True),
        sa.Column("transfer_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_orders_currency_is_a_code")),
        sa.CheckConstraint("total_cents >= 0", name=op.f("ck_orders_total_not_negative")),
        sa.ForeignKeyConstraint(["cancels_id"], ["orders.id"], name=op.f("fk_orders_cancels_id")),
        sa.ForeignKeyConstraint(["transfer_id"], ["transfers.id"], name=op.f("fk_orders_transfer_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_orders_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_orders")),
        sa.UniqueConstraint("reference", name=op.f("uq_orders_reference")),
        sa.UniqueConstraint("transfer_id", name=op.f("uq_orders_transfer_id")),
    )
    op.create_index(op.f("ix_orders_cancels_id"), "orders", ["cancels_id"], unique=False)
    op.create_index("ix_orders_placed_at_id", "orders", ["placed_at", "id"], unique=False)
    op.create_index("ix_orders_status_placed_at_id", "orders", ["status", "placed_at", "id"], unique=False)
    op.create_index("ix_orders_total_cents", "orders", ["total_cents"], unique=False)
    op.create_index(
        "ix_orders_user_id_placed_at_id",
        "orders",
        ["user_id", "placed_at", "id"],
        unique=False,
        postgresql_include=["status", "total_cents"],
    )
    op.create_table(
        "order_items",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.Column("line_no", sa.Integer(), nullable=False),
        sa.Column("sku", sa.String(length=64), nullable=False),
        sa.Column("description", sa.String(length=500), nullable=True),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("unit_price_cents", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("quantity > 0", name=op.f("ck_order_items_quantity_positive")),
        sa.CheckConstraint("unit_price_cents >= 0", name=op.f("ck_order_items_unit_price_not_negative")),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name=op.f("fk_order_items_order_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_order_items")),
        sa.UniqueConstraint("order_id", "line_no", name=op.f("uq_order_items_order_id_line_no")),
    )
    op.create_table(
        "pending_transfers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("from_account_id", sa.Uuid(), nullable=False),
        sa.Column("to_account_id", sa.Uuid(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("description", sa.String(length=500), nullable=True),
        sa.Column("metadata", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("effective_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("group_id", sa.Uuid(), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "pending",
                "posted",
                "voided",
                name="state_is_known",
                native_enum=False,
                create_constraint=True,
                length=10,
            ),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'pending') = (settled_at IS NULL)", name=op.f("ck_pending_transfers_settled_has_settled_at")
        ),
        sa.CheckConstraint("amount > 0", name=op.f("ck_pending_transfers_amount_positive")),
        sa.CheckConstraint("from_account_id <> to_account_id", name=op.f("ck_pending_transfers_accounts_differ")),
        sa.ForeignKeyConstraint(
            ["from_account_id"], ["accounts.id"], name=op.f("fk_pending_transfers_from_account_id")
        ),
        sa.ForeignKeyConstraint(["to_account_id"], ["accounts.id"], name=op.f("fk_pending_transfers_to_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pending_transfers")),
    )
    op.create_index(
        "ix_pending_transfers_expires_at",
        "pending_transfers",
        ["expires_at"],
        unique=False,
        postgresql_where="state = 'pending'",
    )
    op.create_index(
        "ix_pending_transfers_from_account_id_expires_at",
        "pending_transfers",
        ["from_account_id", "expires_at"],
        unique=False,
        postgresql_where="state = 'pending'",
    )
    op.create_index(
        "ix_pending_transfers_from_account_id_id",
        "pending_transfers",
        ["from_account_id", "id"],
        unique=False,
        postgresql_where="state <> 'posted'",
    )
    op.create_index(
        "ix_pending_transfers_group_id",
        "pending_transfers",
        ["group_id"],
        unique=False,
        postgresql_where="group_id IS NOT NULL",
    )
    op.create_index(
        "ix_pending_transfers_metadata",
        "pending_transfers",
        ["metadata"],
        unique=False,
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where="metadata IS NOT NULL",
    )
    op.create_index(
        "ix_pending_transfers_to_account_id_id",
        "pending_transfers",
        ["to_account_id", "id"],
        unique=False,
        postgresql_where="state <> 'posted'",
    )
    run_sql_files(Path(__file__).with_suffix(""))


def downgrade() -> None:
    # Before the tables, because some functions have a parameter of a table's row type. CASCADE drops the triggers.
    for function in _FUNCTIONS:
        op.execute(f"DROP FUNCTION {function} CASCADE")
    for table in _TABLES:
        op.drop_table(table)
