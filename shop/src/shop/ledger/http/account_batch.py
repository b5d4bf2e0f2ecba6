"""Open the accounts of an NDJSON body of any length, with constant memory use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fastapi import Request
from fastapi.responses import StreamingResponse
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, NotFound, run_transaction
from howdah.fastapi import NotAllowed, answer_lines
from shop.audit.dependencies import AuditTrail
from shop.audit.models import AuditAction
from shop.identity.principals import Principal
from shop.ledger.account_schemas import AccountIn, AccountLineIn, AccountOut, OpeningRefusal
from shop.ledger.http.rules import OPENING_FIELDS, OWN_USER
from shop.ledger.opening import OpeningRequest, OpeningResult, open_accounts
from shop.users.models import User

# The fields of `AccountLineOut`, in the order in which they are written.
_EMPTY_RESULT: Final = {"outcome": "", "account": None, "refusal": None, "replayed": False, "detail": None}


async def open_account_lines(
    request: Request, database: Database, principal: Principal, audit: AuditTrail
) -> StreamingResponse:
    """Open the accounts of the lines as they arrive, and answer with a line for each. A batch is one transaction."""

    async def open_batch(lines: list[AccountLineIn]) -> list[OpeningResult]:
        built = [_build_request(line, principal) for line in lines]
        requests = [each for each in built if isinstance(each, OpeningRequest)]

        async def open_requests(session: AsyncSession) -> list[OpeningResult]:
            results = await open_accounts(session, requests)
            await record_openings(session, audit, results)
            return results

        opened = iter(await run_transaction(database, open_requests) if requests else ())
        return [each if isinstance(each, OpeningResult) else next(opened) for each in built]

    return await answer_lines(
        request, AccountLineIn, open_batch, serialize=_serialize_result, invalid=_describe_invalid_line
    )


async def record_openings(session: AsyncSession, audit: AuditTrail, results: Sequence[OpeningResult]) -> None:
    """Record the accounts that were opened, with one event for all of them."""
    ids = [str(each.unwrap().id) for each in results if each.refusal is None and not each.replayed]
    if ids:
        await audit.record(
            session,
            AuditAction.ACCOUNTS_OPENED,
            subject_type="account",
            subject_id=ids[0] if len(ids) == 1 else None,
            details={} if len(ids) == 1 else {"account_ids": ids},
        )


def _build_request(line: AccountLineIn, principal: Principal) -> OpeningRequest | OpeningResult:
    """The request to open the account, or the refusal if the principal may not open it."""
    # without defaults, because `build_account_values` must know which fields the client has sent
    fields = line.model_dump(exclude={"idempotency_key"}, exclude_unset=True)
    account = AccountIn.model_construct(**fields)
    try:
        account = prepare_account(account, principal)
    except NotAllowed:
        return OpeningResult(refusal=OpeningRefusal.NOT_ALLOWED)
    except NotFound:
        return OpeningResult(refusal=OpeningRefusal.UNKNOWN_USER)
    return OpeningRequest(account, line.idempotency_key, principal.key)


def prepare_account(account: AccountIn, principal: Principal) -> AccountIn:
    """Check that the principal may open the account, and return it. A customer becomes its owner.

    Raises `NotAllowed` for a field that belongs to operators, and `NotFound` for another user, as if the user didn't
    exist.
    """
    OPENING_FIELDS.check(principal, account.model_dump(exclude_defaults=True))
    customer = OWN_USER.find_customer(principal)
    if customer is None:
        return account
    if account.user_id is not None:
        OWN_USER.check(principal, account.user_id, User, account.user_id)
    return account.model_copy(update={"user_id": customer})


def _describe_invalid_line(reason: str) -> dict[str, Any]:
    return {**_EMPTY_RESULT, "outcome": "invalid", "detail": reason}


def _serialize_result(result: OpeningResult) -> dict[str, Any]:
    if result.refusal is not None:
        refusal = result.refusal
        return {**_EMPTY_RESULT, "outcome": "refused", "refusal": refusal, "detail": refusal.explanation}
    account = AccountOut.model_validate(result.unwrap()).model_dump(by_alias=True)
    return {**_EMPTY_RESULT, "outcome": "opened", "account": account, "replayed": result.replayed}
