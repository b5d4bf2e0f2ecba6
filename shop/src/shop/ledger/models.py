"""The tables of the ledger: accounts, entries, transfers, pending transfers and idempotency keys."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, FetchedValue, ForeignKey, Index, LargeBinary, String, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, UUIDv7PrimaryKey, text_enum
from howdah.tenancy import TableGrant
from shop.audit.models import AuditEvent
from shop.ledger.seal_models import Seal
from shop.ledger.triggers import create_triggers_with
from shop.policies import (
    OWN_ID,
    OWN_SCOPE,
    customers_delete,
    customers_insert,
    customers_read,
    customers_update,
    own_account,
    staff_and_system,
)
from shop.roles import CUSTOMER_ROLE, STAFF_ROLE, SYSTEM_ROLE
from shop.users.models import User


class AccountState(StrEnum):
    """Only an open account can be debited or credited. A frozen account can be opened again. A closed account is empty
    and stays closed."""

    OPEN = "open"
    FROZEN = "frozen"
    CLOSED = "closed"


class AccountPurpose(StrEnum):
    """The purpose of a system account. Money enters the ledger from a `cash_in` account, and leaves it to a `cash_out`
    account."""

    CASH_IN = "cash_in"
    CASH_OUT = "cash_out"
    FEES = "fees"


class EntryKind(StrEnum):
    """What created an entry: a transfer, the posting of a hold, or a reversal."""

    TRANSFER = "transfer"
    POSTED_HOLD = "posted_hold"
    REVERSAL = "reversal"


class Direction(StrEnum):
    """A debit takes from the account, a credit adds to it."""

    DEBIT = "debit"
    CREDIT = "credit"


class Account(UUIDv7PrimaryKey, Base):
    """An account in one currency. Amounts are in the currency's smallest unit.

    `entry_count` is the number of entries. A trigger on new transfers changes it and `balance`. `held` is the part of
    the balance that pending transfers reserve; `shop.ledger` changes it. The available balance is never below
    `-overdraft_limit`, unless the account has `allows_negative`. Money enters and leaves the ledger through such
    accounts. The balance never exceeds `balance_limit`. The balances of all accounts of a currency sum to zero. There
    is at most one account for each purpose and currency.

    `revision` is incremented by a trigger on every change that creates no entry. Other triggers reject a change of the
    balance without a transfer, a new account with a balance, deletion, and a change of owner or currency.

    `created_at` and `updated_at` are read from PostgreSQL's clock.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint(
            "balance - held >= -overdraft_limit OR allows_negative", name="available_within_overdraft_limit"
        ),
        CheckConstraint("balance <= balance_limit", name="balance_within_limit"),
        CheckConstraint("overdraft_limit >= 0", name="overdraft_limit_not_negative"),
        CheckConstraint("balance_limit >= 0", name="balance_limit_not_negative"),
        CheckConstraint("held >= 0", name="held_not_negative"),
        CheckConstraint("state <> 'closed' OR (balance = 0 AND held = 0)", name="closed_account_is_empty"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency_is_a_code"),
        CheckConstraint("entry_count >= 0", name="entry_count_not_negative"),
        Index(
            "uq_accounts_purpose_currency", "purpose", "currency", unique=True, postgresql_where="purpose IS NOT NULL"
        ),
        customers_read(f"user_id = {OWN_ID}"),
        customers_insert(
            f"user_id = {OWN_ID} AND purpose IS NULL AND NOT allows_negative AND overdraft_limit = 0 "
            "AND balance_limit IS NULL AND state = 'open'"
        ),
        customers_update(f"user_id = {OWN_ID}"),
        *staff_and_system(),
        # Balances and entry counts are written by the triggers only, which have the rights of the owner.
        TableGrant(CUSTOMER_ROLE, "SELECT", "INSERT"),
        TableGrant(CUSTOMER_ROLE, "UPDATE", columns=["name", "metadata", "updated_at"]),
        TableGrant(STAFF_ROLE, "SELECT", "INSERT"),
        TableGrant(
            STAFF_ROLE,
            "UPDATE",
            columns=["name", "metadata", "state", "overdraft_limit", "balance_limit", "updated_at"],
        ),
        TableGrant(SYSTEM_ROLE, "SELECT", "INSERT"),
        TableGrant(SYSTEM_ROLE, "UPDATE", columns=["held", "updated_at"]),
        # leaves room on the page for the next version of a row, because balances change often
        {"postgresql_with": {"fillfactor": 70}},
    )

    user_id: Mapped[UUID | None] = mapped_column(ForeignKey(User.id), index=True)
    name: Mapped[str] = mapped_column(String(100))
    currency: Mapped[str] = mapped_column(String(3))
    purpose: Mapped[AccountPurpose | None] = mapped_column(
        text_enum(AccountPurpose, name="purpose_is_known", length=10)
    )
    balance: Mapped[int] = mapped_column(BigInteger, default=0)
    held: Mapped[int] = mapped_column(BigInteger, default=0)
    allows_negative: Mapped[bool] = mapped_column(default=False)
    overdraft_limit: Mapped[int] = mapped_column(BigInteger, default=0)
    balance_limit: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[AccountState] = mapped_column(
        text_enum(AccountState, name="state_is_known", length=10), default=AccountState.OPEN
    )
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, default=dict)
    entry_count: Mapped[int] = mapped_column(BigInteger, default=0)
    revision: Mapped[int] = mapped_column(BigInteger, default=0, server_onupdate=FetchedValue())
    created_at: Mapped[datetime] = mapped_column(server_default=func.statement_timestamp())
    updated_at: Mapped[datetime] = mapped_column(
        server_default=func.statement_timestamp(), onupdate=func.statement_timestamp()
    )

    @property
    def available(self) -> int:
        """`balance - held`. `shop.ledger.account_queries.AccountSnapshot` also leaves out holds that have expired."""
        return self.balance - self.held


class Entry(Base):
    """One side of a transfer. `amount` is positive for a credit, negative for a debit. Entries are never changed or
    deleted.

    `entry_number` numbers the entries of an account from 1 without gaps. No entry is older than the one before it.
    `balance_after` is the balance of the account after the entry. There are no foreign keys: a trigger creates the
    entries of new transfers, and another trigger rejects all other inserts.
    """

    __tablename__ = "entries"
    __table_args__ = (
        CheckConstraint("amount <> 0", name="amount_not_zero"),
        CheckConstraint("entry_number > 0", name="entry_number_positive"),
        customers_read(own_account("account_id")),
        *staff_and_system(),
        # only the trigger `post_transfers` inserts
        TableGrant(CUSTOMER_ROLE, "SELECT"),
        TableGrant(STAFF_ROLE, "SELECT"),
        TableGrant(SYSTEM_ROLE, "SELECT"),
    )

    account_id: Mapped[UUID] = mapped_column(primary_key=True)
    entry_number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    transfer_id: Mapped[UUID]
    amount: Mapped[int] = mapped_column(BigInteger)
    balance_after: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class TransferState(StrEnum):
    """A pending transfer becomes posted or voided. Then its state never changes again."""

    PENDING = "pending"
    POSTED = "posted"
    VOIDED = "voided"


class Transfer(UUIDv7PrimaryKey, Base):
    """A posted transfer between two accounts, in the smallest unit of their currency. It is never changed or deleted.

    A trigger creates its two entries: in `from_account_id` with the number `from_entry_number`, and in `to_account_id`
    with the number `to_entry_number`. Both numbers must continue the entries of the account. `effective_at` is when the
    transfer takes effect, which may differ from `created_at`, when it was posted. The transfers of a linked chain share
    a `group_id`.

    A reversal returns a part or all of the transfer `reverses_id`. `reversed_total` is a running total: the amount
    returned by this reversal and all earlier ones of that transfer. A unique index prevents two concurrent reversals
    from returning the same money.

    `posted_by` is the customer on whose behalf the transfer was posted; NULL for operators and the system. A trigger
    ensures that it is the owner of `from_account_id`. For a posted hold it is the owner of `to_account_id`.
    """

    __tablename__ = "transfers"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount_positive"),
        CheckConstraint("from_account_id <> to_account_id", name="accounts_differ"),
        CheckConstraint("(reverses_id IS NULL) = (reversed_total IS NULL)", name="reversal_has_reversed_total"),
        CheckConstraint("reversed_total >= amount", name="reversed_total_includes_amount"),
        # partial, because few transfers are reversals
        Index(
            "uq_transfers_reverses_id_reversed_total",
            "reverses_id",
            "reversed_total",
            unique=True,
            postgresql_where="reverses_id IS NOT NULL",
        ),
        Index("ix_transfers_group_id", "group_id", postgresql_where="group_id IS NOT NULL"),
        # times only increase, so a BRIN index is small and costs a transfer almost nothing
        Index("ix_transfers_created_at", "created_at", postgresql_using="brin"),
        Index(
            "ix_transfers_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
            postgresql_where="metadata IS NOT NULL",
        ),
        customers_read(own_account("from_account_id", "to_account_id")),
        *staff_and_system(),
        TableGrant(CUSTOMER_ROLE, "SELECT"),
        TableGrant(STAFF_ROLE, "SELECT"),
        TableGrant(SYSTEM_ROLE, "SELECT", "INSERT"),
    )

    from_account_id: Mapped[UUID]
    from_entry_number: Mapped[int] = mapped_column(BigInteger)
    to_account_id: Mapped[UUID]
    to_entry_number: Mapped[int] = mapped_column(BigInteger)
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    description: Mapped[str | None] = mapped_column(String(500))
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB(none_as_null=True))
    effective_at: Mapped[datetime] = mapped_column(server_default=func.statement_timestamp())
    reverses_id: Mapped[UUID | None] = mapped_column(ForeignKey("transfers.id"))
    reversed_total: Mapped[int | None] = mapped_column(BigInteger)
    group_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.statement_timestamp())
    # no foreign key: PostgreSQL would queue a check for every new row, and the trigger checks the value anyway
    posted_by: Mapped[UUID | None]


_UNPOSTED: Final = "state <> 'posted'"


class PendingTransfer(UUIDv7PrimaryKey, Base):
    """A hold on `from_account_id`. The amount is still part of that account's balance, but not of its available
    balance, and not yet part of the other account's balance.

    It is either voided, or posted as a `Transfer` with the same id and the same or a smaller amount. The account
    `from_account_id` is locked while the state changes. A trigger ensures that the state changes only once.

    `posted_by` is the customer who created the hold, and `settled_by` the customer who posted or voided it. Both are
    NULL for operators and the system. Triggers ensure that `posted_by` is the owner of `from_account_id`, and
    `settled_by` the owner of `to_account_id`.

    It expires at `expires_at`, by the database's clock. From then on it can't be posted, reserves nothing and is shown
    as voided. The stored state stays `pending` until a transaction locks the account, or `shop.ledger.maintenance`
    voids the transfer (see `shop.ledger.expiry`).
    """

    __tablename__ = "pending_transfers"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount_positive"),
        CheckConstraint("from_account_id <> to_account_id", name="accounts_differ"),
        CheckConstraint("(state = 'pending') = (settled_at IS NULL)", name="settled_has_settled_at"),
        Index("ix_pending_transfers_expires_at", "expires_at", postgresql_where="state = 'pending'"),
        # Each transaction that locks an account looks for its expired holds. With `expires_at` in the index, PostgreSQL
        # doesn't read the other holds.
        Index(
            "ix_pending_transfers_from_account_id_expires_at",
            "from_account_id",
            "expires_at",
            postgresql_where="state = 'pending'",
        ),
        # for lists of transfers; posted holds are left out, because the lists read them from `transfers`
        Index("ix_pending_transfers_from_account_id_id", "from_account_id", "id", postgresql_where=_UNPOSTED),
        Index("ix_pending_transfers_to_account_id_id", "to_account_id", "id", postgresql_where=_UNPOSTED),
        Index("ix_pending_transfers_group_id", "group_id", postgresql_where="group_id IS NOT NULL"),
        Index(
            "ix_pending_transfers_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
            postgresql_where="metadata IS NOT NULL",
        ),
        customers_read(own_account("from_account_id", "to_account_id")),
        *staff_and_system(),
        TableGrant(CUSTOMER_ROLE, "SELECT"),
        TableGrant(STAFF_ROLE, "SELECT"),
        TableGrant(SYSTEM_ROLE, "SELECT", "INSERT"),
        TableGrant(SYSTEM_ROLE, "UPDATE", columns=["state", "settled_at", "settled_by"]),
    )

    from_account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    to_account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    description: Mapped[str | None] = mapped_column(String(500))
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB(none_as_null=True))
    effective_at: Mapped[datetime | None]
    group_id: Mapped[UUID | None]
    state: Mapped[TransferState] = mapped_column(text_enum(TransferState, name="state_is_known", length=10))
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime]
    settled_at: Mapped[datetime | None]
    posted_by: Mapped[UUID | None]
    settled_by: Mapped[UUID | None]


class AnswerKind(StrEnum):
    """The kind of answer that is stored with an idempotency key: the state of the transfer in that answer, a refusal,
    or a new account."""

    POSTED = "posted"
    PENDING = "pending"
    VOIDED = "voided"
    REFUSED = "refused"
    OPENED = "opened"


class IdempotencyKey(Base):
    """The answer to the first request under a key: a transfer, a refusal, or an account.

    The key is written in the transaction of the transfer or account, so neither is committed without the other.
    `answer` is stored because the row of the transfer has only its current state. A replay of a request that created a
    hold is answered with `pending`, even if another request has posted the hold. `fingerprint` is a digest of the
    request. A different request with the same key is refused. `shop.ledger.maintenance` deletes old keys.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint(
            "num_nonnulls(transfer_id, refusal, account_id) = 1 AND (refusal IS NOT NULL) = (answer = 'refused') "
            "AND (account_id IS NOT NULL) = (answer = 'opened')",
            name="exactly_one_result",
        ),
        # This index is for the deletion of old keys. Keys are stored in the order of time, so a BRIN index works. It
        # has 1 % of the size of a B-tree.
        Index("ix_idempotency_keys_created_at", "created_at", postgresql_using="brin"),
        customers_read(f"scope = {OWN_SCOPE}"),
        # the keys of a customer's transfers are written by the system
        customers_insert(f"scope = {OWN_SCOPE} AND answer = 'opened'"),
        customers_delete(f"scope = {OWN_SCOPE} AND answer = 'opened'"),
        *staff_and_system(),
        TableGrant(CUSTOMER_ROLE, "SELECT", "INSERT", "DELETE"),
        TableGrant(STAFF_ROLE, "SELECT", "INSERT", "DELETE"),
        TableGrant(SYSTEM_ROLE, "SELECT", "INSERT", "DELETE"),
        # `FOR UPDATE` needs it; a trigger rejects every change
        TableGrant(SYSTEM_ROLE, "UPDATE", columns=["created_at"]),
    )

    scope: Mapped[str] = mapped_column(String(100), primary_key=True)
    key: Mapped[str] = mapped_column(String(260), primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    transfer_id: Mapped[UUID | None]
    refusal: Mapped[str | None] = mapped_column(String(40))
    account_id: Mapped[UUID | None]  # no foreign key: PostgreSQL would queue a check for every new row
    answer: Mapped[AnswerKind] = mapped_column(text_enum(AnswerKind, name="answer_is_known", length=10))
    created_at: Mapped[datetime] = mapped_column(server_default=func.statement_timestamp())


# The policies of these tables read `accounts`, so `create_all` must create `accounts` first. They have no foreign keys.
for _name in (Entry.__tablename__, Transfer.__tablename__):
    Base.metadata.tables[_name].add_is_dependent_on(Base.metadata.tables[Account.__tablename__])

LEDGER_TABLES: Final = frozenset(
    each.__tablename__ for each in (Account, AuditEvent, Entry, IdempotencyKey, PendingTransfer, Seal, Transfer)
)
"""The tables that `catalog.txt` describes: those of the ledger, and the audit trail, which is sealed with it."""

create_triggers_with(Base.metadata, LEDGER_TABLES)
