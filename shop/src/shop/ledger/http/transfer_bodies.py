"""Convert the body of an HTTP request, or one element or line of it, to a `TransferRequest`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never
from uuid import UUID

from howdah import NotFound
from shop.identity.principals import Principal
from shop.ledger.models import Transfer
from shop.ledger.requests import NamedTransfer, TransferRequest
from shop.ledger.transfer_schemas import AnyTransferIn, PostingIn, ReversalIn, TransferIn, VoidingIn


def get_named_id(body: AnyTransferIn) -> UUID | None:
    """The id of the transfer that the body posts, voids or reverses; None for a new transfer."""
    match body:
        case TransferIn():
            return None
        case PostingIn():
            return body.posts
        case VoidingIn():
            return body.voids
        case ReversalIn():
            return body.reverses
        case _:
            assert_never(body)


def build_request(
    body: AnyTransferIn, transfers_by_id: Mapping[UUID, NamedTransfer], principal: Principal, *, key: str | None
) -> TransferRequest:
    """The request to the ledger.

    `transfers_by_id` has the transfers that exist and that the principal may see. Raises `NotFound` if the body names
    another one.
    """
    scope, posted_by = principal.key, principal.customer_id
    match body:
        case TransferIn():
            return TransferRequest(
                body.from_account_id,
                body.to_account_id,
                body.amount,
                description=body.description,
                key=key,
                scope=scope,
                metadata=body.metadata or None,
                effective_at=body.effective_at,
                pending_seconds=body.pending_seconds,
                posted_by=posted_by,
            )
        case PostingIn():
            hold = _get_transfer(transfers_by_id, body.posts)
            return hold.posting(body.amount, key=key, scope=scope, posted_by=posted_by)
        case VoidingIn():
            return _get_transfer(transfers_by_id, body.voids).voiding(key=key, scope=scope, posted_by=posted_by)
        case ReversalIn():
            return _get_transfer(transfers_by_id, body.reverses).reversal(
                body.amount,
                description=body.description,
                effective_at=body.effective_at,
                key=key,
                scope=scope,
                posted_by=posted_by,
            )
        case _:
            assert_never(body)


def _get_transfer(transfers_by_id: Mapping[UUID, NamedTransfer], transfer_id: UUID) -> NamedTransfer:
    transfer = transfers_by_id.get(transfer_id)
    if transfer is None:
        raise NotFound(Transfer, [transfer_id])
    return transfer
