"""Queries for transfers in any state: posted, pending or voided. Each query is one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    SQLColumnExpression,
    String,
    Subquery,
    Uuid,
    all_,
    and_,
    any_,
    case,
    cast,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, aliased, column_property, declared_attr, undefer

from howdah import AwareDateTime, Base
from shop.ledger.account_queries import posted_between
from shop.ledger.expiry import current_state, has_state
from shop.ledger.models import Account, Entry, IdempotencyKey, PendingTransfer, Transfer, TransferState
from shop.ledger.repository import balance_after, concerns_customer, held_amount, owner_of
from shop.ledger.requests import TransferRecord, chain_keys
from shop.web.fields import ListOrder

_Columns: TypeAlias = Mapping[str, Any]

# Literals, not parameters, so that PostgreSQL can skip a branch of a union if its constant contradicts a filter.
_POSTED_STATE: Final = literal_column("CAST('posted' AS varchar)", PendingTransfer.state.type)
_NO_TIME: Final = literal_column("CAST(NULL AS timestamptz)", AwareDateTime())
_NO_NUMBER: Final = literal_column("CAST(NULL AS bigint)", BigInteger())
# Both tables have the columns `_SHARED`. Only `transfers` has the columns `_ONLY_POSTED`: for holds they are NULL. The
# columns `effective_at` and `created_at` are in neither, because the queries compute them.
_SHARED: Final = tuple(
    name
    for name in Transfer.__mapper__.columns.keys()  # noqa: SIM118  # iteration would give the columns
    if name in PendingTransfer.__mapper__.columns and name not in {"effective_at", "created_at"}
)
_ONLY_POSTED: Final = {
    name: cast(null(), column.type)
    for name, column in Transfer.__mapper__.columns.items()
    if name not in PendingTransfer.__mapper__.columns
}
_IS_UNPOSTED: Final = PendingTransfer.state != literal_column("'posted'", PendingTransfer.state.type)


def _hold_columns(state: SQLColumnExpression[Any], expires_at: SQLColumnExpression[Any]) -> _Columns:
    """The current state and expiry of a hold, and the stored ones (`hold_…`)."""
    is_pending = has_state(TransferState.PENDING, state, expires_at)
    return {
        "state": current_state(state, expires_at),
        "expires_at": case((is_pending, expires_at), else_=null()),
        "hold_state": state,
        "hold_expires_at": expires_at,
    }


def _select_labeled(columns: _Columns) -> Select[Any]:
    """Select the columns in the order of their names, because all branches of a union need the same order."""
    return select(*(column.label(name) for name, column in sorted(columns.items())))


def _select_all_transfers() -> Subquery:
    """`transfers`, and the rows of `pending_transfers` that aren't posted.

    Each branch reads one table, so that PostgreSQL can merge the two in the order of their primary keys.
    """
    posted: _Columns = {
        **{name: getattr(Transfer, name) for name in (*_SHARED, *_ONLY_POSTED, "effective_at", "created_at")},
        **_hold_columns(_POSTED_STATE, _NO_TIME),
        "state": _POSTED_STATE,
        "expires_at": _NO_TIME,
    }
    unposted: _Columns = {
        **{name: getattr(PendingTransfer, name) for name in (*_SHARED, "created_at")},
        **_ONLY_POSTED,
        "effective_at": func.coalesce(PendingTransfer.effective_at, PendingTransfer.created_at),
        **_hold_columns(PendingTransfer.state, PendingTransfer.expires_at),
    }
    return union_all(_select_labeled(posted), _select_labeled(unposted).where(_IS_UNPOSTED)).subquery("transfer")


def _select_transfers_by_account() -> Subquery:
    """Two rows for each transfer, one for each of its accounts.

    The ids come from entries and holds. PostgreSQL sorts the ids before it reads the transfers, so it reads only the
    transfers of the page.
    """
    sides = union_all(
        select(
            Entry.account_id,
            Entry.transfer_id.label("id"),
            Entry.entry_number,
            (Entry.amount < literal_column("0")).label("is_debit"),
            true().label("is_posted"),
        ),
        *(
            select(account, PendingTransfer.id, _NO_NUMBER, is_debit, false()).where(_IS_UNPOSTED)
            for account, is_debit in (
                (PendingTransfer.from_account_id, true()),
                (PendingTransfer.to_account_id, false()),
            )
        ),
    ).subquery("side")
    posted, hold = aliased(Transfer), aliased(PendingTransfer)
    state = case((sides.c.is_posted, _POSTED_STATE), else_=hold.state)
    hold_columns = _hold_columns(state, hold.expires_at)
    columns: _Columns = {
        **{column.key: column for column in sides.c},
        **{name: func.coalesce(getattr(posted, name), getattr(hold, name)) for name in _SHARED if name != "id"},
        **{name: getattr(posted, name) for name in _ONLY_POSTED},
        "effective_at": func.coalesce(posted.effective_at, hold.effective_at, hold.created_at),
        "created_at": func.coalesce(posted.created_at, hold.created_at),
        **hold_columns,
    }
    return (
        _select_labeled(columns)
        .select_from(sides)
        .outerjoin(posted, sides.c.is_posted & (posted.id == sides.c.id))
        .outerjoin(hold, hold.id == sides.c.id)
        .subquery("transfer")
    )


_OWNERS: Final = ("from_user_id", "to_user_id")
_ALWAYS_LOADED: Final = tuple(name for name in TransferRecord._fields if name not in _OWNERS)


class _SnapshotColumns:
    """The columns of a `TransferRecord`. The owners of the accounts are read only for customers.

    Some values are scalar subqueries. PostgreSQL evaluates these after LIMIT, so only for the rows of the page.
    """

    __table__: ClassVar[Any]

    @declared_attr
    def from_balance(self) -> Mapped[int | None]:
        columns = self.__table__.c
        return column_property(balance_after(columns.from_account_id, columns.from_entry_number))

    @declared_attr
    def to_balance(self) -> Mapped[int | None]:
        columns = self.__table__.c
        return column_property(balance_after(columns.to_account_id, columns.to_entry_number))

    @declared_attr
    def held_amount(self) -> Mapped[int | None]:
        return column_property(held_amount(self.__table__.c.id))

    @declared_attr
    def reversed_amount(self) -> Mapped[int]:
        reversal = aliased(Transfer)
        total = func.coalesce(func.max(reversal.reversed_total), 0)
        return column_property(select(total).where(reversal.reverses_id == self.__table__.c.id).scalar_subquery())

    @declared_attr
    def from_user_id(self) -> Mapped[UUID | None]:
        return column_property(owner_of(self.__table__.c.from_account_id), deferred=True)

    @declared_attr
    def to_user_id(self) -> Mapped[UUID | None]:
        return column_property(owner_of(self.__table__.c.to_account_id), deferred=True)

    if TYPE_CHECKING:
        id: Mapped[UUID]
        from_account_id: Mapped[UUID]
        to_account_id: Mapped[UUID]
        details: Mapped[Any]
        effective_at: Mapped[datetime]
        reverses_id: Mapped[UUID | None]
        group_id: Mapped[UUID | None]
        created_at: Mapped[datetime]
        hold_state: Mapped[Any]
        hold_expires_at: Mapped[datetime]

    def as_record(self) -> TransferRecord:
        """The record that the routes serialize. It has owners only if the query was made for a customer."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _ALWAYS_LOADED}
        values |= {name: self.__dict__.get(name) for name in _OWNERS}  # `getattr` would query them
        return TransferRecord(**values)


class TransferSnapshot(_SnapshotColumns, Base):
    """A transfer in any state."""

    __table__ = _select_all_transfers()
    __mapper_args__ = {"primary_key": [__table__.c.id]}  # noqa: RUF012


class AccountTransferSnapshot(_SnapshotColumns, Base):
    """A transfer in any state, with one of its accounts (`account_id`) and the side of that account (`is_debit`)."""

    __table__ = _select_transfers_by_account()
    __mapper_args__ = {"primary_key": [__table__.c.id]}  # noqa: RUF012

    if TYPE_CHECKING:
        account_id: Mapped[UUID]
        entry_number: Mapped[int]
        is_debit: Mapped[bool]
        is_posted: Mapped[bool]


def select_transfer(transfer_id: UUID, *, customer: UUID | None = None) -> Select[Any]:
    """The transfer with this id, in any state. With `customer`, only if it is from or to an account of this customer.
    Then the records have the owners of their accounts."""
    model = TransferSnapshot
    query = select(model).where(model.id == transfer_id).execution_options(populate_existing=True)
    if customer is None:
        return query
    query = query.where(concerns_customer(customer, model.from_account_id, model.to_account_id))
    return query.options(undefer(model.from_user_id), undefer(model.to_user_id))


def select_transfers(
    *,
    scope: str,
    customer: UUID | None = None,
    order: ListOrder = "oldest",
    account_id: UUID | None = None,
    from_account_id: UUID | None = None,
    to_account_id: UUID | None = None,
    created_from: datetime | None = None,
    created_before: datetime | None = None,
    effective_from: datetime | None = None,
    effective_before: datetime | None = None,
    state: TransferState | None = None,
    metadata: Mapping[str, str] | None = None,
    idempotency_key: str | None = None,
    reverses_id: UUID | None = None,
    group_id: UUID | None = None,
) -> Select[Any]:
    """Transfers in any state in the order of their ids. A filter that is None is not applied.

    A transfer keeps its id, and so its place in the list, when it is posted or voided. `idempotency_key` is a key of
    the client `scope`. With `account_id`, each page sorts the ids of all entries of the account. `created_from` and
    `created_before` limit these entries.

    With `customer`, the list has only the transfers from or to accounts of this customer, and the records have the
    owners of their accounts. Each page sorts the ids of all entries of these accounts. If accounts are named, at least
    one of them must be the customer's own; otherwise the list is empty, as if the accounts didn't exist.
    """
    model: Any = TransferSnapshot
    conditions: list[Any] = []
    if customer is not None or account_id or from_account_id or to_account_id:
        model = AccountTransferSnapshot
        conditions += _select_sides(
            customer=customer,
            account_id=account_id,
            from_account_id=from_account_id,
            to_account_id=to_account_id,
            created_from=created_from,
            created_before=created_before,
        )
        if state is not None:  # redundant, but lets PostgreSQL skip the entries or the holds
            conditions.append(model.is_posted if state is TransferState.POSTED else ~model.is_posted)
    for column, value in (
        (model.from_account_id, from_account_id),
        (model.to_account_id, to_account_id),
        (model.reverses_id, reverses_id),
        (model.group_id, group_id),
    ):
        if value is not None:
            conditions.append(column == value)
    for column, start, end in (
        (model.created_at, created_from, created_before),
        (model.effective_at, effective_from, effective_before),
    ):
        if start is not None:
            conditions.append(column >= start)
        if end is not None:
            conditions.append(column < end)
    if state is not None:
        conditions.append(has_state(state, model.hold_state, model.hold_expires_at))
    if metadata:
        conditions.append(model.details.contains(dict(metadata)))
    if idempotency_key is not None:
        conditions.append(model.id == any_(_select_transfer_ids(scope, idempotency_key)))
    query = select(model).where(*conditions).execution_options(populate_existing=True)
    if customer is not None:
        query = query.options(undefer(model.from_user_id), undefer(model.to_user_id))
    return query.order_by(model.id.desc() if order == "newest" else model.id)


def _select_sides(
    *,
    customer: UUID | None,
    account_id: UUID | None,
    from_account_id: UUID | None,
    to_account_id: UUID | None,
    created_from: datetime | None,
    created_before: datetime | None,
) -> list[ColumnElement[bool]]:
    """Conditions on `AccountTransferSnapshot` that keep one row for each transfer of the list."""
    model = AccountTransferSnapshot
    named_accounts = [each for each in (account_id, from_account_id, to_account_id) if each is not None]
    conditions: list[Any] = []
    if customer is not None:
        conditions += _select_own_sides(customer, named_accounts)
        if account_id is not None:
            conditions.append(or_(model.from_account_id == account_id, model.to_account_id == account_id))
    else:
        conditions.append(model.account_id == named_accounts[0])
        if account_id is None:
            conditions.append(model.is_debit if from_account_id is not None else ~model.is_debit)
    if customer is None or len(named_accounts) == 1:
        entry_conditions = posted_between(model.entry_number, named_accounts[0], created_from, created_before)
        if entry_conditions:  # holds have no entry number; `select_transfers` compares their `created_at`
            conditions.append(or_(~model.is_posted, and_(*entry_conditions)))
    return conditions


def _select_own_sides(customer: UUID, named_accounts: Sequence[UUID]) -> list[ColumnElement[bool]]:
    """Conditions for the sides of the customer's accounts: of those that are named, or else of all.

    PostgreSQL computes the array once. A transfer between two of these accounts has two sides; the debit is kept.
    """
    own = select(Account.id).where(Account.user_id == customer)
    if named_accounts:
        own = own.where(Account.id.in_(named_accounts))
    own_ids: ColumnElement[Any] = func.array(own.scalar_subquery(), type_=ARRAY(Uuid()))
    conditions = [AccountTransferSnapshot.account_id == any_(own_ids)]
    if len(named_accounts) != 1:
        conditions.append(
            or_(AccountTransferSnapshot.is_debit, AccountTransferSnapshot.from_account_id != all_(own_ids))
        )
    return conditions


def _select_transfer_ids(scope: str, key: str) -> ColumnElement[Any]:
    """An array of the ids of the transfers that were posted or held under this key, alone or as a chain.

    PostgreSQL computes the array once, and finds its transfers by their primary keys. A join would read all transfers.
    """
    transfer_ids = select(IdempotencyKey.transfer_id).where(
        IdempotencyKey.scope == scope,
        IdempotencyKey.key == any_(type_coerce(chain_keys(key), ARRAY(String()))),
        IdempotencyKey.transfer_id.is_not(None),
    )
    return func.array(transfer_ids.scalar_subquery(), type_=ARRAY(Uuid()))
