"""States, limits and metadata of accounts; transfers can be reversed in parts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATES = ("open", "frozen", "closed")


def upgrade() -> None:
    op.add_column("accounts", sa.Column("overdraft_limit", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("accounts", sa.Column("balance_limit", sa.BigInteger(), nullable=True))
    state = sa.Enum(*_STATES, name="state_is_known", native_enum=False, create_constraint=False, length=10)
    op.add_column("accounts", sa.Column("state", state, nullable=False, server_default="open"))
    op.add_column(
        "accounts",
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=False, server_default="{}"),
    )
    for column in ("overdraft_limit", "state", "metadata"):  # those were for the rows that are there
        op.alter_column("accounts", column, server_default=None)
    op.drop_constraint(op.f("ck_accounts_balance_covered"), "accounts", type_="check")
    op.create_check_constraint(
        op.f("ck_accounts_balance_covered"), "accounts", "balance >= -overdraft_limit OR allows_negative"
    )
    op.create_check_constraint(op.f("ck_accounts_balance_within_limit"), "accounts", "balance <= balance_limit")
    op.create_check_constraint(op.f("ck_accounts_overdraft_limit_not_negative"), "accounts", "overdraft_limit >= 0")
    op.create_check_constraint(op.f("ck_accounts_balance_limit_not_negative"), "accounts", "balance_limit >= 0")
    op.create_check_constraint(op.f("ck_accounts_closed_is_empty"), "accounts", "state <> 'closed' OR balance = 0")
    op.create_check_constraint(
        op.f("ck_accounts_state_is_known"), "accounts", f"state IN ({', '.join(map(repr, _STATES))})"
    )

    op.add_column("transfers", sa.Column("reversed_total", sa.BigInteger(), nullable=True))
    op.execute("ALTER TABLE transfers DISABLE TRIGGER only_grows")
    op.execute("UPDATE transfers SET reversed_total = amount WHERE reverses_id IS NOT NULL")
    op.execute("ALTER TABLE transfers ENABLE TRIGGER only_grows")
    op.drop_constraint(op.f("uq_transfers_reverses_id"), "transfers", type_="unique")
    op.create_unique_constraint(
        op.f("uq_transfers_reverses_id_reversed_total"), "transfers", ["reverses_id", "reversed_total"]
    )
    op.create_check_constraint(
        op.f("ck_transfers_reversal_is_told"), "transfers", "(reverses_id IS NULL) = (reversed_total IS NULL)"
    )
    op.create_check_constraint(op.f("ck_transfers_reversed_total_is_running"), "transfers", "reversed_total >= amount")


def downgrade() -> None:
    """Fails if a transfer has been reversed in parts, or an account is below zero by its limit: before, neither could
    be."""
    op.drop_constraint(op.f("ck_transfers_reversed_total_is_running"), "transfers", type_="check")
    op.drop_constraint(op.f("ck_transfers_reversal_is_told"), "transfers", type_="check")
    op.drop_constraint(op.f("uq_transfers_reverses_id_reversed_total"), "transfers", type_="unique")
    op.create_unique_constraint(op.f("uq_transfers_reverses_id"), "transfers", ["reverses_id"])
    op.drop_column("transfers", "reversed_total")
    for name in (
        "state_is_known",
        "closed_is_empty",
        "balance_limit_not_negative",
        "overdraft_limit_not_negative",
        "balance_within_limit",
        "balance_covered",
    ):
        op.drop_constraint(op.f(f"ck_accounts_{name}"), "accounts", type_="check")
    op.create_check_constraint(op.f("ck_accounts_balance_covered"), "accounts", "balance >= 0 OR allows_negative")
    for column in ("metadata", "state", "balance_limit", "overdraft_limit"):
        op.drop_column("accounts", column)
