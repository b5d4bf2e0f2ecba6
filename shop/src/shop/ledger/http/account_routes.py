"""The routes of `/accounts`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Page, paginate
from howdah.fastapi import (
    NDJSON,
    PageOut,
    RequiredIfMatch,
    StrictJSONRoute,
    describe_problems,
    describe_rows_body,
    direct,
    get_schema_ref,
    make_etag,
)
from shop.audit.dependencies import CurrentAuditTrail
from shop.audit.models import AuditAction
from shop.identity.principals import Principal
from shop.ledger.account_queries import AccountRepository, AccountSnapshot, StatementEntry, select_entries
from shop.ledger.account_schemas import (
    AccountChange,
    AccountIn,
    AccountLineIn,
    AccountLineOut,
    AccountOut,
    BalanceOut,
    BalanceParameters,
    EntryOut,
    EntryPageParameters,
)
from shop.ledger.accounts import (
    change_account,
    read_account,
    read_balance_after_entry,
    read_balance_at,
    read_effective_balance,
)
from shop.ledger.http.account_batch import open_account_lines, prepare_account, record_openings
from shop.ledger.http.account_parameters import AccountPageParameters
from shop.ledger.http.dependencies import IdempotencyKey
from shop.ledger.http.problems import refusal_response
from shop.ledger.http.rules import CHANGE_ACCOUNTS, CHANGE_FIELDS, OPEN_ACCOUNTS, OWN_ACCOUNTS, READ_ACCOUNTS
from shop.ledger.models import Account
from shop.ledger.opening import OpeningRequest, open_account_once
from shop.ledger.requests import Refusal
from shop.web.dependencies import CurrentPrincipal, PrincipalDatabase, PrincipalReadSession, PrincipalSession

router = APIRouter(prefix="/accounts", tags=["accounts"], route_class=StrictJSONRoute)

# The new values of these fields are in the audit trail. Names and metadata aren't: they may be personal data.
_AUDITED_FIELDS: Final = ("state", "overdraft_limit", "balance_limit")


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    response_model=AccountOut,
    responses=describe_problems(HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND),
    dependencies=[OPEN_ACCOUNTS],
)
async def create_account(
    *,
    body: AccountIn,
    db: PrincipalSession,
    principal: CurrentPrincipal,
    audit: CurrentAuditTrail,
    response: Response,
    idempotency_key: IdempotencyKey,
) -> Account | Response:
    """Open an account. A customer opens it for themselves, and may set only its name, currency and metadata.

    With an `Idempotency-Key` the account is opened once, however often the request is sent. A retry returns the first
    response with `Idempotency-Replayed: true`, even if the account has changed since.
    """
    account_in = prepare_account(body, principal)
    result = await open_account_once(db, OpeningRequest(account_in, idempotency_key, principal.key))
    if result.refusal is not None:
        return refusal_response(Refusal.KEY_REUSED)
    account = result.unwrap()
    response.headers["Location"] = f"/accounts/{account.id}"
    response.headers["ETag"] = make_etag(account.revision, account.entry_count)
    if result.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    else:
        await record_openings(db, audit, [result])
    return account


@router.post(
    "/batch",
    response_class=StreamingResponse,
    responses={
        200: {"content": {NDJSON: {"schema": get_schema_ref(AccountLineOut)}}},
        **describe_problems(HTTPStatus.BAD_REQUEST),
    },
    openapi_extra=describe_rows_body(AccountLineIn, array=False),
    dependencies=[OPEN_ACCOUNTS],
)
async def create_accounts(
    request: Request, database: PrincipalDatabase, principal: CurrentPrincipal, audit: CurrentAuditTrail
) -> StreamingResponse:
    """Open many accounts. The body and the response are NDJSON.

    Each line of the body has an account and its own idempotency key. The response has a line for each of them, in the
    same order.

    Every 500 lines are one transaction. A refused line doesn't affect the others, and stores nothing under its key. The
    response starts when the last account has been opened. If the connection breaks before that, some accounts may have
    been opened. It is safe to send all lines again.
    """
    return await open_account_lines(request, database, principal, audit)


@router.get("", response_model=PageOut[AccountOut], dependencies=[READ_ACCOUNTS])
@direct
async def list_accounts(
    parameters: Annotated[AccountPageParameters, Query()], db: PrincipalReadSession, principal: CurrentPrincipal
) -> Page[AccountSnapshot]:
    """List accounts, oldest first. The filters are the user, the purpose and the currency. A customer's list has only
    their own accounts."""
    query = select(AccountSnapshot)
    customer = OWN_ACCOUNTS.find_customer(principal)
    if customer is not None:
        query = query.where(AccountSnapshot.user_id == customer)
    return await paginate(db, parameters.apply(query), **parameters.page_arguments)


@router.get("/{account_id}", response_model=AccountOut, dependencies=[READ_ACCOUNTS])
@direct
async def get_account(
    account_id: UUID, db: PrincipalReadSession, principal: CurrentPrincipal, response: Response
) -> AccountSnapshot:
    """Return an account. Send its `ETag` as the `If-Match` of a change."""
    account = await read_account(db, account_id)
    OWN_ACCOUNTS.check(principal, account.user_id, Account, account_id)
    response.headers["ETag"] = make_etag(account.revision, account.entry_count)
    return account


@router.patch(
    "/{account_id}",
    response_model=AccountOut,
    responses=describe_problems(HTTPStatus.FORBIDDEN),
    dependencies=[CHANGE_ACCOUNTS],
)
async def patch_account(
    *,
    account_id: UUID,
    body: AccountChange,
    db: PrincipalSession,
    principal: CurrentPrincipal,
    audit: CurrentAuditTrail,
    response: Response,
    if_match: RequiredIfMatch,
) -> Account:
    """Freeze, reopen or close an account, or change its limits, its name or its metadata. A customer changes only the
    name and the metadata of their own accounts.

    Only the fields in the body change. `If-Match` must have the account's current `ETag`. A posted transfer doesn't
    make the `ETag` stale. Every other change does, such as a changed held amount.
    """

    def precondition(locked_account: Account) -> None:
        if_match.check(locked_account.revision)

    await _require_own_account(db, principal, account_id)  # before `change_account`, which may wait for a lock
    CHANGE_FIELDS.check(principal, body.model_fields_set)
    account = await change_account(db, account_id, body, precondition=precondition)
    await audit.record(
        db,
        AuditAction.ACCOUNT_CHANGED,
        subject_type="account",
        subject_id=account_id,
        details={
            "fields": sorted(body.model_fields_set),
            **body.model_dump(mode="json", include={*_AUDITED_FIELDS}, exclude_unset=True),
        },
    )
    response.headers["ETag"] = make_etag(account.revision, account.entry_count)
    return account


@router.get("/{account_id}/balance", dependencies=[READ_ACCOUNTS])
async def get_balance(
    account_id: UUID,
    parameters: Annotated[BalanceParameters, Query()],
    db: PrincipalReadSession,
    principal: CurrentPrincipal,
) -> BalanceOut:
    """Return the current balance, or a past one.

    A past balance is the balance after an entry (`entry_number`), at a posting time (`at`), or at an effective time
    (`effective_at`). Only the current balance comes with `held` and `available`.

    A balance by `effective_at` is a report. It may be below zero although the account's balance never was: a debit may
    have an earlier `effective_at` than the credit that paid for it.
    """
    entry_number: int | None = None
    held = available = None
    await _require_own_account(db, principal, account_id)
    if parameters.effective_at is not None:
        balance = await read_effective_balance(db, account_id, parameters.effective_at)
    elif parameters.entry_number is not None:
        entry_number = parameters.entry_number
        balance = await read_balance_after_entry(db, account_id, entry_number)
    elif parameters.at is not None:
        balance, entry_number = await read_balance_at(db, account_id, parameters.at)
    else:
        account = await read_account(db, account_id)
        balance, entry_number, held, available = account.balance, account.entry_count, account.held, account.available
    return BalanceOut(
        account_id=account_id,
        at=parameters.at,
        effective_at=parameters.effective_at,
        balance=balance,
        held=held,
        available=available,
        entry_number=entry_number,
    )


@router.get("/{account_id}/entries", response_model=PageOut[EntryOut], dependencies=[READ_ACCOUNTS])
async def list_entries(
    account_id: UUID,
    parameters: Annotated[EntryPageParameters, Query()],
    db: PrincipalReadSession,
    principal: CurrentPrincipal,
) -> Page[StatementEntry]:
    """List the entries of an account: its statement.

    Entries are added at the end and never change, so no entry is repeated or skipped between two pages.

    `created_from` and `created_before` are found by binary search. The other filters read the entries one by one.
    """
    await _require_own_account(db, principal, account_id)  # 404 for an unknown account, instead of an empty list
    filters = parameters.model_dump(exclude={"limit", "after", "before"})
    return await paginate(
        db,
        select_entries(account_id, **filters),
        limit=parameters.limit,
        after=parameters.after,
        before=parameters.before,
    )


async def _require_own_account(db: AsyncSession, principal: Principal, account_id: UUID) -> None:
    """Raise `NotFound` if the account doesn't exist, or isn't the customer's own. An owner never changes."""
    account = await AccountRepository(db).get_one(account_id)
    OWN_ACCOUNTS.check(principal, account.user_id, Account, account_id)
