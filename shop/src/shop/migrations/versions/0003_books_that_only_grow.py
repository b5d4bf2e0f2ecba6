"""Transfers and entries are never changed or deleted; foreign keys and indexes that others make superfluous go."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TABLES = ("transfers", "entries")


def upgrade() -> None:
    op.drop_constraint("fk_transfers_from_account_id", "transfers", type_="foreignkey")
    op.drop_constraint("fk_transfers_to_account_id", "transfers", type_="foreignkey")
    op.drop_index("ix_transfers_from_account_id", table_name="transfers")
    op.drop_index("ix_transfers_to_account_id", table_name="transfers")
    op.drop_index("ix_idempotency_keys_transfer_id", table_name="idempotency_keys")
    op.execute("""
        CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% are never changed or deleted: make a transfer that takes another one back', TG_TABLE_NAME
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
        $$
        """)
    for table in _TABLES:
        op.execute(f"""
            CREATE TRIGGER only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
            """)


def downgrade() -> None:
    for table in _TABLES:
        op.execute(f"DROP TRIGGER only_grows ON {table}")
    op.execute("DROP FUNCTION refuse_change()")
    op.create_index("ix_idempotency_keys_transfer_id", "idempotency_keys", ["transfer_id"], unique=False)
    op.create_index("ix_transfers_to_account_id", "transfers", ["to_account_id"], unique=False)
    op.create_index("ix_transfers_from_account_id", "transfers", ["from_account_id"], unique=False)
    op.create_foreign_key("fk_transfers_to_account_id", "transfers", "accounts", ["to_account_id"], ["id"])
    op.create_foreign_key("fk_transfers_from_account_id", "transfers", "accounts", ["from_account_id"], ["id"])
