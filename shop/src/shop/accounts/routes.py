"""`/accounts`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from howdah import Database, Page, paginate
from howdah.fastapi import PageOut, PageParameters, get_database, problems, schema_of
from shop.accounts.batch import opened_lines
from shop.accounts.models import Account, Entry
from shop.accounts.opening import OpeningRequest, open_account_once
from shop.accounts.repository import AccountRepository, statement_of
from shop.accounts.schemas import (
    AccountChange,
    AccountIn,
    AccountLineIn,
    AccountLineOut,
    AccountOut,
    AccountPageParameters,
    BalanceOut,
    BalanceParameters,
    EntryOut,
)
from shop.accounts.service import balance_at, balance_of_version, change_account, effective_balance
from shop.transfers.expiry import show_held_now
from shop.transfers.requests import Refusal
from shop.transfers.schemas import Key
from shop.web.dependencies import Caller, DbSession, IfMatch, ReadDbSession
from shop.web.errors import refusal_response
from shop.web.lines import NDJSON, ndjson_lines
from shop.web.preconditions import etag, require_match

router = APIRouter(prefix="/accounts", tags=["accounts"])


@router.post("", status_code=HTTPStatus.CREATED, response_model=AccountOut)
async def create_account(
    *,
    body: AccountIn,
    db: DbSession,
    caller: Caller,
    response: Response,
    idempotency_key: Annotated[Key | None, Header()] = None,
) -> Account | Response:
    """Open an account. With an `Idempotency-Key` it is opened once however often the request is sent. The first answer
    is returned again with `Idempotency-Replayed: true`, although the account may have changed since."""
    result = await open_account_once(db, OpeningRequest(body, idempotency_key, caller))
    if result.refusal is not None:
        return refusal_response(Refusal.KEY_REUSED)
    account = result.unwrap()
    response.headers["Location"] = f"/accounts/{account.id}"
    response.headers["ETag"] = etag(account.revision, account.version)
    if result.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return account


@router.post(
    "/batch",
    response_class=StreamingResponse,
    responses={
        200: {"content": {NDJSON: {"schema": schema_of(AccountLineOut)}}},
        **problems(HTTPStatus.BAD_REQUEST, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {NDJSON: {"schema": schema_of(AccountLineIn, "validation")}},
        }
    },
)
async def create_accounts(
    request: Request, database: Annotated[Database, Depends(get_database)], caller: Caller
) -> StreamingResponse:
    """Open many accounts. The body and the response are NDJSON: each line has an account and its own idempotency key,
    and is answered in order.

    500 lines are one transaction. A refused line doesn't affect the others, and stores nothing under its key. The
    response starts when the last line has been read and its account opened. If the connection breaks before, some
    accounts have been opened; it is safe to send all lines again.
    """
    return StreamingResponse(await opened_lines(ndjson_lines(request), database, caller), media_type=NDJSON)


@router.get("", response_model=PageOut[AccountOut])
async def list_accounts(parameters: Annotated[AccountPageParameters, Query()], db: ReadDbSession) -> Page[Account]:
    """Accounts in the order of opening: those of a user, of a purpose, in a currency."""
    wanted = parameters.model_dump(include={"user_id", "currency", "purpose"}, exclude_none=True)
    chosen = select(Account).filter_by(**wanted).order_by(Account.id)
    page = await paginate(db, chosen, limit=parameters.limit, after=parameters.after, before=parameters.before)
    await show_held_now(db, page.items)
    return page


@router.get("/{account_id}", response_model=AccountOut)
async def get_account(account_id: UUID, db: DbSession, response: Response) -> Account:
    """The account. The `ETag` is for the `If-Match` of a change."""
    account = await AccountRepository(db).get_one(account_id)
    await show_held_now(db, [account])
    response.headers["ETag"] = etag(account.revision, account.version)
    return account


@router.patch("/{account_id}", response_model=AccountOut, responses=problems(HTTPStatus.PRECONDITION_REQUIRED))
async def patch_account(
    account_id: UUID, body: AccountChange, db: DbSession, response: Response, if_match: IfMatch = None
) -> Account:
    """Freeze, open again or close an account, and change its limits, its name or its metadata: what the body names.

    `If-Match` must have the account's current `ETag`. Entries don't make it stale. Other changes do, and a changed
    held amount is one of these.
    """
    account = await change_account(
        db, account_id, body, precondition=lambda locked: require_match(if_match, locked.revision)
    )
    response.headers["ETag"] = etag(account.revision, account.version)
    return account


@router.get("/{account_id}/balance")
async def get_balance(
    account_id: UUID, parameters: Annotated[BalanceParameters, Query()], db: ReadDbSession
) -> BalanceOut:
    """The balance now, after an entry, or at a time: by when it was booked, or by when it counts from.

    A balance by `effective_at` is a report. It may be below zero where the account's balance never was: a transfer that
    is booked for an earlier time may use money that arrived after that time.
    """
    version: int | None
    if parameters.effective_at is not None:
        balance, version = await effective_balance(db, account_id, parameters.effective_at), None
    elif parameters.version is not None:
        balance, version = await balance_of_version(db, account_id, parameters.version), parameters.version
    elif parameters.at is not None:
        balance, version = await balance_at(db, account_id, parameters.at)
    else:
        account = await AccountRepository(db).get_one(account_id)
        balance, version = account.balance, account.version
    return BalanceOut(
        account_id=account_id,
        at=parameters.at,
        effective_at=parameters.effective_at,
        balance=balance,
        version=version,
    )


@router.get("/{account_id}/entries", response_model=PageOut[EntryOut])
async def list_entries(account_id: UUID, parameters: Annotated[PageParameters, Query()], db: DbSession) -> Page[Entry]:
    """The account's statement, the oldest entry first."""
    await AccountRepository(db).get_one(account_id)
    return await paginate(
        db,
        statement_of(account_id),
        limit=parameters.limit,
        after=parameters.after,
        before=parameters.before,
    )
