"""`/accounts`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from sqlalchemy import select

from howdah import Page, paginate
from howdah.fastapi import PageOut, PageParameters, StrictJSONRoute
from shop.accounts.models import Account, Entry
from shop.accounts.repository import AccountRepository, statement_of
from shop.accounts.schemas import (
    AccountChange,
    AccountIn,
    AccountOut,
    AccountPageParameters,
    BalanceOut,
    BalanceParameters,
    EntryOut,
)
from shop.accounts.service import balance_at, balance_of_version, change_account, effective_balance, open_account
from shop.web.dependencies import DbSession, ReadDbSession

router = APIRouter(prefix="/accounts", tags=["accounts"], route_class=StrictJSONRoute)


@router.post("", status_code=HTTPStatus.CREATED, response_model=AccountOut)
async def create_account(body: AccountIn, db: DbSession, response: Response) -> Account:
    account = await open_account(db, body)
    response.headers["Location"] = f"/accounts/{account.id}"
    return account


@router.get("", response_model=PageOut[AccountOut])
async def list_accounts(parameters: Annotated[AccountPageParameters, Query()], db: ReadDbSession) -> Page[Account]:
    """Accounts in the order of opening: those of a user, of a purpose, in a currency."""
    wanted = parameters.model_dump(include={"user_id", "currency", "purpose"}, exclude_none=True)
    chosen = select(Account).filter_by(**wanted).order_by(Account.id)
    return await paginate(db, chosen, limit=parameters.limit, after=parameters.after, before=parameters.before)


@router.get("/{account_id}", response_model=AccountOut)
async def get_account(account_id: UUID, db: DbSession) -> Account:
    return await AccountRepository(db).get_one(account_id)


@router.patch("/{account_id}", response_model=AccountOut)
async def patch_account(account_id: UUID, body: AccountChange, db: DbSession) -> Account:
    """Freeze, open again or close an account, and change its limits, its name or its metadata: what the body names."""
    return await change_account(db, account_id, body)


@router.get("/{account_id}/balance")
async def get_balance(
    account_id: UUID, parameters: Annotated[BalanceParameters, Query()], db: ReadDbSession
) -> BalanceOut:
    """The balance now, after an entry, or at a time: by when it was booked, or by when it counts from."""
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
