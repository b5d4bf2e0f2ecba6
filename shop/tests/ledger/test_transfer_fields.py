"""A field of transfers reaches every place that lists the fields by hand. A place without the field would lose it
silently."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from sqlalchemy import BigInteger, Boolean, Column, DateTime, LargeBinary, String, Table, TypeDecorator, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Base
from shop.identity.principals import Principal, Role
from shop.ledger.check import _CHECKS
from shop.ledger.http.transfer_bodies import build_request
from shop.ledger.models import Account, IdempotencyKey, PendingTransfer, Transfer
from shop.ledger.requests import NamedTransfer, TransferRequest
from shop.ledger.transfer_schemas import AnyTransferIn, PostingIn, ReversalIn, TransferIn, VoidingIn
from shop_tests.support.identity import ADMIN

_NAMED: Final = NamedTransfer(uuid4(), uuid4(), uuid4())

_BODIES: Final[list[tuple[type[AnyTransferIn], dict[str, Any]]]] = [
    (
        TransferIn,
        {
            "from_account_id": uuid4(),
            "to_account_id": uuid4(),
            "amount": 7,
            "description": "rent",
            "metadata": {"a": "b"},
            "effective_at": datetime(2024, 1, 2, tzinfo=UTC),
            "pending_seconds": 9,
        },
    ),
    (PostingIn, {"amount": 7, "posts": _NAMED.id}),
    (VoidingIn, {"voids": _NAMED.id}),
    (
        ReversalIn,
        {
            "amount": 7,
            "description": "refund",
            "effective_at": datetime(2024, 1, 2, tzinfo=UTC),
            "reverses": _NAMED.id,
        },
    ),
]
"""Each kind of body, with a value for each of its fields that is not the default."""

_NOT_IN_A_BODY: Final = {"key", "scope", "posted_by", "linked", "currency"}
"""The key, its owner, the customer and the links are no part of the body. A client names accounts, which have a
currency."""


@pytest.mark.parametrize(("kind", "values"), _BODIES, ids=[kind.__name__ for kind, _ in _BODIES])
def test_every_field_of_a_body_reaches_the_request(kind: type[AnyTransferIn], values: dict[str, Any]) -> None:
    assert set(values) == set(kind.model_fields), "give each field of the body a value here"
    customer = Principal(uuid4(), Role.CUSTOMER)
    request = build_request(kind(**values), {_NAMED.id: _NAMED}, customer, key="k")
    assert {name: getattr(request, name) for name in values} == values
    assert (request.key, request.scope, request.posted_by) == ("k", customer.key, customer.user_id)
    assert build_request(kind(**values), {_NAMED.id: _NAMED}, ADMIN, key="k").posted_by is None


def test_every_field_of_a_request_is_a_field_of_a_body() -> None:
    in_bodies = {name for kind, _ in _BODIES for name in kind.model_fields}
    assert set(TransferRequest._fields) - in_bodies == _NOT_IN_A_BODY
    assert in_bodies - set(TransferRequest._fields) == set()


# Two different values for each type of column, as JSON. The second number is larger and the second time is earlier,
# because a posted transfer may be smaller and later than its hold.
_VALUES: Final[list[tuple[type[Any], Any, Any]]] = [
    (Uuid, str(UUID(int=1)), str(UUID(int=2))),
    (BigInteger, 1, 2),
    (Boolean, False, True),
    (String, "a", "b"),
    (LargeBinary, "\\x01", "\\x02"),
    (JSONB, {"a": "1"}, {"a": "2"}),
    (DateTime, "2024-01-02T00:00:00Z", "2024-01-01T00:00:00Z"),
]


def two_values(column: Column[Any]) -> tuple[Any, Any]:
    column_type = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    for type_, first, second in _VALUES:
        if isinstance(column_type, type_):
            return first, second
    raise AssertionError(f"add two values of the type {column.type!r} to _VALUES")


def table_of(model: type[Base]) -> Table:
    assert isinstance(model.__table__, Table)
    return model.__table__


def first_row(table: Table) -> dict[str, Any]:
    return {column.name: two_values(column)[0] for column in table.columns}


async def digest(session: AsyncSession, table: Table, row: dict[str, Any]) -> bytes:
    """The digest of a row that is not in the table."""
    function = f"digest_of_{table.name.removesuffix('s')}"
    record = f"jsonb_populate_record(NULL::{table.name}, CAST(CAST(:row AS text) AS jsonb))"
    found: bytes = (await session.execute(text(f"SELECT {function}({record})"), {"row": json.dumps(row)})).scalar_one()
    return found


@pytest.mark.parametrize(
    ("model", "not_in_digest"),
    [
        (Transfer, set()),
        (PendingTransfer, set()),
        (IdempotencyKey, set()),
        # A seal has the revision in a column of its own. `shop check` compares the others with entries and holds.
        (Account, {"balance", "held", "entry_count", "updated_at", "revision"}),
    ],
    ids=["transfers", "pending transfers", "idempotency keys", "accounts"],
)
async def test_every_column_of_a_sealed_table_changes_the_digest(
    session: AsyncSession, model: type[Base], not_in_digest: set[str]
) -> None:
    table = table_of(model)
    row = first_row(table)
    unchanged = await digest(session, table, row)
    missing = set()
    for column in table.columns:
        changed = [await digest(session, table, row | {column.name: value}) for value in (two_values(column)[1], None)]
        if len({unchanged, *changed}) < 3:
            missing.add(column.name)
    assert missing == not_in_digest


async def find_differences(session: AsyncSession, transfer: dict[str, Any], hold: dict[str, Any]) -> set[str]:
    """The faults of `shop check` for a transfer and its hold, which are not in the tables."""
    # the query reads the CTEs instead of the tables, because they have the same names
    query = f"""
        WITH transfers AS (
            SELECT * FROM jsonb_populate_record(NULL::transfers, CAST(CAST(:transfer AS text) AS jsonb))
        ), pending_transfers AS (
            SELECT * FROM jsonb_populate_record(NULL::pending_transfers, CAST(CAST(:hold AS text) AS jsonb))
        )
        {_CHECKS["pending transfers"]}
        """
    rows = await session.execute(text(query), {"transfer": json.dumps(transfer), "hold": json.dumps(hold)})
    return {row.fault for row in rows}


async def test_every_shared_column_of_a_posted_transfer_is_compared_with_its_hold(session: AsyncSession) -> None:
    transfers, holds = table_of(Transfer), table_of(PendingTransfer)
    transfer, hold = first_row(transfers), first_row(holds) | {"state": "posted"}
    assert await find_differences(session, transfer, hold) == set()
    not_compared = set()
    for column in transfers.columns:
        if column.name not in holds.columns:
            continue
        for value in [two_values(column)[1], None] if column.nullable else [two_values(column)[1]]:
            found = await find_differences(session, transfer | {column.name: value}, hold)
            if "posted transfers differ from their hold" not in found:
                not_compared.add(column.name)
    assert not_compared == {"id", "posted_by"}  # the rows are joined by `id`, and have different customers
