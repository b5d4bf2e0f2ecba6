"""Pending, linked and dated transfers, system accounts; the books are proven once a statement instead of row by row."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Without statistics of a table that has only just been filled, or of what a statement has added, every plan but the one
# by the primary keys can be slow beyond measure.
_OTHER_PLANS = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")

FUNCTIONS = {
    # each entry is one of the two that its transfer names
    "prove_entries": """
        CREATE OR REPLACE FUNCTION prove_entries() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (
                SELECT FROM added
                LEFT JOIN transfers t ON t.id = added.transfer_id
                WHERE (added.account_id, added.entry_number, added.amount)
                        IS DISTINCT FROM (t.from_account_id, t.from_entry_number, -t.amount)
                    AND (added.account_id, added.entry_number, added.amount)
                        IS DISTINCT FROM (t.to_account_id, t.to_entry_number, t.amount)
            ) THEN
                RAISE EXCEPTION 'an entry belongs to no transfer that says the same'
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'entry_of_a_transfer', TABLE = 'entries';
            END IF;
            IF EXISTS (
                SELECT FROM (
                    SELECT *, lag(entry_number) OVER w AS number_before, lag(balance_after) OVER w AS balance_before,
                        lead(entry_number) OVER w AS version_after
                    FROM added WINDOW w AS (PARTITION BY account_id ORDER BY entry_number)
                ) e
                LEFT JOIN entries before ON e.number_before IS NULL
                    AND before.account_id = e.account_id AND before.entry_number = e.entry_number - 1
                LEFT JOIN accounts a ON e.version_after IS NULL AND a.id = e.account_id
                WHERE e.entry_number - 1 <> coalesce(e.number_before, before.entry_number, 0)
                    OR e.balance_after <> coalesce(e.balance_before, before.balance_after, 0)::numeric + e.amount
                    OR before.created_at > e.created_at
                    OR e.version_after IS NULL
                        AND (a.entry_count, a.balance) IS DISTINCT FROM (e.entry_number, e.balance_after)
            ) THEN
                RAISE EXCEPTION 'an entry does not follow from the one before, or lead to the balance of its account'
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'entry_follows', TABLE = 'entries';
            END IF;
            RETURN NULL;
        END
        $$
        """,
    # and both are there
    "prove_transfers": """
        CREATE OR REPLACE FUNCTION prove_transfers() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (
                SELECT FROM added t
                LEFT JOIN entries debit ON debit.account_id = t.from_account_id AND debit.entry_number = t.from_entry_number
                LEFT JOIN entries credit ON credit.account_id = t.to_account_id AND credit.entry_number = t.to_entry_number
                WHERE debit.transfer_id IS DISTINCT FROM t.id OR credit.transfer_id IS DISTINCT FROM t.id
            ) THEN
                RAISE EXCEPTION 'a transfer lacks one of its two entries'
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_balances', TABLE = 'transfers';
            END IF;
            RETURN NULL;
        END
        $$
        """,
    "count_revision": """
        CREATE OR REPLACE FUNCTION count_revision() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.revision := OLD.revision + 1;
            RETURN NEW;
        END
        $$
        """,
    "refuse_on_accounts": """
        CREATE OR REPLACE FUNCTION refuse_on_accounts() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'accounts are never deleted, and keep their id and their currency: close the account'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
        $$
        """,
    "settle_once": """
        CREATE OR REPLACE FUNCTION settle_once() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'UPDATE' AND OLD.state = 'pending' AND NEW.state <> 'pending'
                AND (to_jsonb(NEW) - 'state' - 'settled_at') = (to_jsonb(OLD) - 'state' - 'settled_at')
            THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION 'a pending transfer is posted or voided, once, and nothing else'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
        $$
        """,
}
_PROVEN = ("entries", "transfers")
REVISED = """
    CREATE TRIGGER revised BEFORE UPDATE OF state, allows_negative, overdraft_limit, balance_limit, held ON accounts
    FOR EACH ROW EXECUTE FUNCTION count_revision()
    """
_TRIGGERS = {
    "accounts": """
        CREATE TRIGGER kept BEFORE DELETE OR TRUNCATE OR UPDATE OF id, currency ON accounts
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_on_accounts()
        """,
    "pending_transfers": """
        CREATE TRIGGER settled_once BEFORE UPDATE OR DELETE ON pending_transfers
        FOR EACH ROW EXECUTE FUNCTION settle_once();
        CREATE TRIGGER kept BEFORE TRUNCATE ON pending_transfers
        FOR EACH STATEMENT EXECUTE FUNCTION settle_once()
        """,
}


def upgrade() -> None:
    _accounts()
    _transfers()
    _pending_transfers()
    _entries()
    _idempotency_keys()
    for name in ("count_revision", "refuse_on_accounts", "settle_once"):
        op.execute(FUNCTIONS[name])
    for trigger in (REVISED, *_TRIGGERS.values()):
        for statement in trigger.split(";"):
            op.execute(statement)
    prove_by_the_statement()


def prove_by_the_statement() -> None:
    for table in _PROVEN:
        op.execute(FUNCTIONS[f"prove_{table}"])
        for way in _OTHER_PLANS:
            op.execute(f"ALTER FUNCTION prove_{table} SET {way} = off")
        op.execute(f"""
            CREATE TRIGGER proven AFTER INSERT ON {table} REFERENCING NEW TABLE AS added
            FOR EACH STATEMENT EXECUTE FUNCTION prove_{table}()
            """)


def _accounts() -> None:
    op.add_column(
        "accounts",
        sa.Column(
            "purpose",
            sa.Enum(
                "cash_in",
                "cash_out",
                "fees",
                name="purpose_is_known",
                native_enum=False,
                create_constraint=False,
                length=10,
            ),
            nullable=True,
        ),
    )
    for name in ("held", "revision"):
        op.add_column("accounts", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
        op.alter_column("accounts", name, server_default=None)
    op.create_check_constraint(
        op.f("ck_accounts_purpose_is_known"), "accounts", "purpose IN ('cash_in', 'cash_out', 'fees')"
    )
    op.create_index(
        "uq_accounts_purpose_currency",
        "accounts",
        ["purpose", "currency"],
        unique=True,
        postgresql_where="purpose IS NOT NULL",
    )
    for name, condition in (
        ("balance_covered", "balance - held >= -overdraft_limit OR allows_negative"),
        ("closed_is_empty", "state <> 'closed' OR (balance = 0 AND held = 0)"),
    ):
        op.drop_constraint(op.f(f"ck_accounts_{name}"), "accounts", type_="check")
        op.create_check_constraint(op.f(f"ck_accounts_{name}"), "accounts", condition)
    op.create_check_constraint(op.f("ck_accounts_held_not_negative"), "accounts", "held >= 0")
    op.execute("ALTER TABLE accounts SET (fillfactor = 70)")


def _transfers() -> None:
    for name, kind in (
        ("from_entry_number", sa.BigInteger()),
        ("to_entry_number", sa.BigInteger()),
        ("metadata", postgresql.JSONB(astext_type=sa.Text())),
        ("effective_at", sa.DateTime(timezone=True)),
        ("group_id", sa.Uuid()),
    ):
        op.add_column("transfers", sa.Column(name, kind, nullable=True))
    op.execute("ALTER TABLE transfers DISABLE TRIGGER only_grows")
    op.execute("""
        UPDATE transfers t
        SET from_entry_number = debit.entry_number, to_entry_number = credit.entry_number, effective_at = t.created_at
        FROM entries debit, entries credit
        WHERE debit.transfer_id = t.id AND debit.account_id = t.from_account_id
            AND credit.transfer_id = t.id AND credit.account_id = t.to_account_id
        """)
    op.execute("ALTER TABLE transfers ENABLE TRIGGER only_grows")
    for name in ("from_entry_number", "to_entry_number", "effective_at"):
        op.alter_column("transfers", name, nullable=False)
    op.drop_constraint(op.f("uq_transfers_reverses_id_reversed_total"), "transfers", type_="unique")
    op.create_index(
        "uq_transfers_reverses_id_reversed_total",
        "transfers",
        ["reverses_id", "reversed_total"],
        unique=True,
        postgresql_where="reverses_id IS NOT NULL",
    )
    op.create_index("ix_transfers_group_id", "transfers", ["group_id"], postgresql_where="group_id IS NOT NULL")


def _pending_transfers() -> None:
    op.create_table(
        "pending_transfers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("from_account_id", sa.Uuid(), nullable=False),
        sa.Column("to_account_id", sa.Uuid(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("description", sa.String(length=500), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
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
        sa.CheckConstraint("amount > 0", name=op.f("ck_pending_transfers_amount_positive")),
        sa.CheckConstraint("from_account_id <> to_account_id", name=op.f("ck_pending_transfers_accounts_differ")),
        sa.CheckConstraint(
            "(state = 'pending') = (settled_at IS NULL)", name=op.f("ck_pending_transfers_settled_is_told")
        ),
        sa.ForeignKeyConstraint(
            ["from_account_id"], ["accounts.id"], name=op.f("fk_pending_transfers_from_account_id")
        ),
        sa.ForeignKeyConstraint(["to_account_id"], ["accounts.id"], name=op.f("fk_pending_transfers_to_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pending_transfers")),
    )
    for column in ("expires_at", "from_account_id"):
        op.create_index(
            f"ix_pending_transfers_{column}", "pending_transfers", [column], postgresql_where="state = 'pending'"
        )


def _entries() -> None:
    op.drop_index("ix_entries_transfer_id", table_name="entries")
    op.drop_index("ix_entries_account_id_created_at", table_name="entries")
    op.drop_constraint(op.f("fk_entries_transfer_id"), "entries", type_="foreignkey")
    op.drop_constraint(op.f("fk_entries_account_id"), "entries", type_="foreignkey")


def _idempotency_keys() -> None:
    op.drop_constraint(op.f("fk_idempotency_keys_transfer_id"), "idempotency_keys", type_="foreignkey")
    op.drop_index("ix_idempotency_keys_created_at", table_name="idempotency_keys")
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], postgresql_using="brin")
    op.alter_column("idempotency_keys", "key", type_=sa.String(length=260))
    op.drop_constraint(op.f("ck_idempotency_keys_one_outcome"), "idempotency_keys", type_="check")
    op.create_check_constraint(
        op.f("ck_idempotency_keys_one_outcome"), "idempotency_keys", "(transfer_id IS NULL) <> (refusal IS NULL)"
    )


def downgrade() -> None:
    """What is pending is voided; fails if the key of a linked transfer is too long for before."""
    for table in _PROVEN:
        op.execute(f"DROP TRIGGER proven ON {table}")
    for name in ("revised", "kept"):
        op.execute(f"DROP TRIGGER {name} ON accounts")

    op.drop_constraint(op.f("ck_idempotency_keys_one_outcome"), "idempotency_keys", type_="check")
    op.create_check_constraint(
        op.f("ck_idempotency_keys_one_outcome"), "idempotency_keys", "transfer_id IS NULL OR refusal IS NULL"
    )
    op.alter_column("idempotency_keys", "key", type_=sa.String(length=255))
    op.drop_index("ix_idempotency_keys_created_at", table_name="idempotency_keys", postgresql_using="brin")
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    op.execute("""
        DELETE FROM idempotency_keys k USING pending_transfers p
        WHERE p.id = k.transfer_id AND p.state <> 'posted'
        """)
    op.create_foreign_key(
        op.f("fk_idempotency_keys_transfer_id"), "idempotency_keys", "transfers", ["transfer_id"], ["id"]
    )

    op.create_foreign_key(op.f("fk_entries_account_id"), "entries", "accounts", ["account_id"], ["id"])
    op.create_foreign_key(op.f("fk_entries_transfer_id"), "entries", "transfers", ["transfer_id"], ["id"])
    op.create_index("ix_entries_account_id_created_at", "entries", ["account_id", "created_at"])
    op.create_index("ix_entries_transfer_id", "entries", ["transfer_id"])

    op.drop_table("pending_transfers")

    op.drop_index("ix_transfers_group_id", table_name="transfers", postgresql_where="group_id IS NOT NULL")
    op.drop_index(
        "uq_transfers_reverses_id_reversed_total", table_name="transfers", postgresql_where="reverses_id IS NOT NULL"
    )
    op.create_unique_constraint(
        op.f("uq_transfers_reverses_id_reversed_total"), "transfers", ["reverses_id", "reversed_total"]
    )
    for name in ("group_id", "effective_at", "metadata", "to_entry_number", "from_entry_number"):
        op.drop_column("transfers", name)

    op.execute("ALTER TABLE accounts RESET (fillfactor)")
    op.drop_constraint(op.f("ck_accounts_held_not_negative"), "accounts", type_="check")
    for name, condition in (
        ("closed_is_empty", "state <> 'closed' OR balance = 0"),
        ("balance_covered", "balance >= -overdraft_limit OR allows_negative"),
    ):
        op.drop_constraint(op.f(f"ck_accounts_{name}"), "accounts", type_="check")
        op.create_check_constraint(op.f(f"ck_accounts_{name}"), "accounts", condition)
    op.drop_index("uq_accounts_purpose_currency", table_name="accounts", postgresql_where="purpose IS NOT NULL")
    op.drop_constraint(op.f("ck_accounts_purpose_is_known"), "accounts", type_="check")
    for name in ("revision", "held", "purpose"):
        op.drop_column("accounts", name)
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}")
