"""Pending transfers whose time is over: they count as voided, whether they have been voided yet or not."""

from __future__ import annotations

from typing import Any, TypeAlias, assert_never

from sqlalchemy import ColumnElement, SQLColumnExpression, case, func, literal_column, not_

from shop.transfers.models import TransferState

_Column: TypeAlias = SQLColumnExpression[Any]


def has_expired(stored: _Column, expires_at: _Column) -> ColumnElement[bool]:
    """Whether a hold that is stored in this state has expired and isn't voided yet."""
    return _is_stored_as(TransferState.PENDING, stored) & (expires_at <= func.statement_timestamp())


def has_state(state: TransferState, stored: _Column, expires_at: _Column) -> ColumnElement[bool]:
    """Whether readers see a hold in this state: an expired one counts as voided, even before it is."""
    is_stored = _is_stored_as(state, stored)
    match state:
        case TransferState.PENDING:
            return is_stored & (expires_at > func.statement_timestamp())
        case TransferState.POSTED:
            return is_stored
        case TransferState.VOIDED:
            return is_stored | has_expired(stored, expires_at)
        case _:
            assert_never(state)


def shown_state(stored: _Column, expires_at: _Column) -> ColumnElement[Any]:
    """The state that readers see; see `has_state`."""
    voided: ColumnElement[Any] = literal_column(f"CAST('{TransferState.VOIDED}' AS varchar)")
    return case((not_(has_expired(stored, expires_at)), stored), else_=voided)


def _is_stored_as(state: TransferState, stored: _Column) -> ColumnElement[bool]:
    return stored == literal_column(f"'{state.value}'")  # no parameter: partial indexes apply
