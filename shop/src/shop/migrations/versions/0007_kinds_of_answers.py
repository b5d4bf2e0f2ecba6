"""Idempotency keys store the kind of their answer, and may belong to an account that was opened."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_KINDS = ("posted", "pending", "voided", "refused", "opened")

# A key has the time of its transaction, and so has the hold that this transaction created or settled. A hold can be
# created and settled at the same time, if the clock of the process that settled it was behind. Then the fingerprint
# decides: if it is the digest of a request to post or void this hold, the key settled it; otherwise the key created it.
_CLASSIFY = """
    UPDATE idempotency_keys key
    SET answer = CASE
        WHEN hold.created_at <> key.created_at OR key.fingerprint IN (
            sha256(convert_to(format(settling, 'null'), 'UTF8')), sha256(convert_to(format(settling, posted.amount), 'UTF8'))
        )
        THEN hold.state ELSE 'pending'
    END
    FROM pending_transfers hold
    LEFT JOIN transfers posted ON posted.id = hold.id
    CROSS JOIN LATERAL (
        SELECT format(
            '["%s","%s",%%s,null,null,null,{"%s":"%s"}]', hold.from_account_id, hold.to_account_id,
            CASE hold.state WHEN 'voided' THEN 'voids' ELSE 'posts' END, hold.id
        ) AS settling
    ) request
    WHERE hold.id = key.transfer_id
    """


def upgrade() -> None:
    kind = sa.Enum(*_KINDS, name="answer_is_known", native_enum=False, create_constraint=False, length=10)
    op.add_column("idempotency_keys", sa.Column("account_id", sa.Uuid(), nullable=True))
    # The default is only for existing rows. It rewrites none of them, and nearly all keys are of posted transfers.
    op.add_column("idempotency_keys", sa.Column("answer", kind, nullable=False, server_default="posted"))
    op.execute("UPDATE idempotency_keys SET answer = 'refused' WHERE refusal IS NOT NULL")
    op.execute(_CLASSIFY)
    op.alter_column("idempotency_keys", "answer", server_default=None)
    op.create_check_constraint(
        op.f("ck_idempotency_keys_answer_is_known"), "idempotency_keys", f"answer IN ({', '.join(map(repr, _KINDS))})"
    )
    op.drop_constraint(op.f("ck_idempotency_keys_one_outcome"), "idempotency_keys", type_="check")
    op.create_check_constraint(
        op.f("ck_idempotency_keys_one_outcome"),
        "idempotency_keys",
        "num_nonnulls(transfer_id, refusal, account_id) = 1 AND (refusal IS NOT NULL) = (answer = 'refused') "
        "AND (account_id IS NOT NULL) = (answer = 'opened')",
    )


def downgrade() -> None:
    """Delete the keys of accounts: the previous schema has no column for them."""
    op.execute("DELETE FROM idempotency_keys WHERE account_id IS NOT NULL")
    op.drop_constraint(op.f("ck_idempotency_keys_one_outcome"), "idempotency_keys", type_="check")
    op.create_check_constraint(
        op.f("ck_idempotency_keys_one_outcome"), "idempotency_keys", "(transfer_id IS NULL) <> (refusal IS NULL)"
    )
    op.drop_constraint(op.f("ck_idempotency_keys_answer_is_known"), "idempotency_keys", type_="check")
    op.drop_column("idempotency_keys", "answer")
    op.drop_column("idempotency_keys", "account_id")
