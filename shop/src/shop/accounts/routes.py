"""`/accounts`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from sqlalchemy import select

from howdah import Page, paginate
from howdah.fastapi import PageOut
from shop.accounts.models import Account
from shop.accounts.repository import AccountRepository, AccountSnapshot, StatementEntry, statement_of
from shop.accounts.schemas import (
    AccountChange,
    AccountIn,
    AccountOut,
    AccountPageParameters,
    BalanceOut,
    BalanceParameters,
    EntryOut,
    EntryPageParameters,
)
from shop.accounts.service import (
    account_now,
    balance_at,
    balance_of_version,
    change_account,
    effective_balance,
    open_account,
)
from shop.web.dependencies import DbSession, ReadDbSession

router = APIRouter(prefix="/accounts", tags=["accounts"])


@router.post("", status_code=HTTPStatus.CREATED, response_model=AccountOut)
async def create_account(body: AccountIn, db: DbSession, response: Response) -> Account:
    account = await open_account(db, body)
    response.headers["Location"] = f"/accounts/{account.id}"
    return account


@router.get("", response_model=PageOut[AccountOut])
async def list_accounts(
    parameters: Annotated[AccountPageParameters, Query()], db: ReadDbSession
) -> Page[AccountSnapshot]:
    """Accounts in the order of opening: those of a user, of a purpose, in a currency."""
    wanted = parameters.model_dump(include={"user_id", "currency", "purpose"}, exclude_none=True)
    chosen = select(AccountSnapshot).filter_by(**wanted).order_by(AccountSnapshot.id)
    return await paginate(db, chosen, limit=parameters.limit, after=parameters.after, before=parameters.before)


@router.get("/{account_id}", response_model=AccountOut)
async def get_account(account_id: UUID, db: ReadDbSession) -> AccountSnapshot:
    return await account_now(db, account_id)


@router.patch("/{account_id}", response_model=AccountOut)
async def patch_account(account_id: UUID, body: AccountChange, db: DbSession) -> AccountSnapshot:
    """Freeze, open again or close an account, and change its limits, its name or its metadata: what the body names."""
    await change_account(db, account_id, body)
    return await account_now(db, account_id)


@router.get("/{account_id}/balance")
async def get_balance(
    account_id: UUID, parameters: Annotated[BalanceParameters, Query()], db: ReadDbSession
) -> BalanceOut:
    """The balance now, after an entry, or at a time: by when it was booked, or by when it counts from. The balance now
    comes with what is held of it and what is available."""
    version: int | None
    held = available = None
    if parameters.effective_at is not None:
        balance, version = await effective_balance(db, account_id, parameters.effective_at), None
    elif parameters.version is not None:
        balance, version = await balance_of_version(db, account_id, parameters.version), parameters.version
    elif parameters.at is not None:
        balance, version = await balance_at(db, account_id, parameters.at)
    else:
        account = await account_now(db, account_id)
        balance, version, held, available = account.balance, account.version, account.held, account.available
    return BalanceOut(
        account_id=account_id,
        at=parameters.at,
        effective_at=parameters.effective_at,
        balance=balance,
        held=held,
        available=available,
        version=version,
    )


@router.get("/{account_id}/entries", response_model=PageOut[EntryOut])
async def list_entries(
    account_id: UUID, parameters: Annotated[EntryPageParameters, Query()], db: ReadDbSession
) -> Page[StatementEntry]:
    """The account's statement. Entries are posted at the end and never change, so a page never repeats or skips one.

    A filter by the time of posting finds its first entry directly. The other filters read one entry after the other.
    """
    await AccountRepository(db).get_one(account_id)
    filters = parameters.model_dump(exclude={"limit", "after", "before"})
    return await paginate(
        db,
        statement_of(account_id, **filters),
        limit=parameters.limit,
        after=parameters.after,
        before=parameters.before,
    )
