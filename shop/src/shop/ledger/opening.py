"""Opening accounts under idempotency keys, one or many at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import ARRAY, LargeBinary, String, Uuid, bindparam, column, delete, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import bulk, uuid7
from shop.ledger.accounts import build_account_values, open_account
from shop.ledger.http.account_schemas import AccountIn, OpeningRefusal
from shop.ledger.models import Account, AccountState, AnswerKind, IdempotencyKey
from shop.ledger.repository import StoredAnswer, TransferRepository
from shop.ledger.requests import ScopedKey
from shop.users.models import User


class OpeningRefused(ValueError):
    """The account wasn't opened."""

    def __init__(self, code: OpeningRefusal) -> None:
        self.code = code
        super().__init__(code.explanation)


class OpeningRequest(NamedTuple):
    """`key` is the idempotency key, `scope` is its owner. Transfers and accounts share the keys of a scope."""

    account: AccountIn
    key: str | None = None
    scope: str = ""


class OpeningResult(NamedTuple):
    """Either a refusal, or the account as it was when it was opened. `replayed`: an earlier request opened it."""

    account: Account | None = None
    refusal: OpeningRefusal | None = None
    replayed: bool = False

    def unwrap(self) -> Account:
        """The account; raises `OpeningRefused`."""
        if self.refusal is not None:
            raise OpeningRefused(self.refusal)
        assert self.account is not None
        return self.account


async def open_account_once(db: AsyncSession, request: OpeningRequest) -> OpeningResult:
    """`open_account`, once for all requests with the same key. Concurrent requests with the same key wait until the
    first one has been committed or rolled back.

    The only refusal is `KEY_REUSED`. Raises `ForeignKeyViolation` for an unknown user and `UniqueViolation` for a
    purpose that has an account. Then roll back the session, which releases the key, too.
    """
    if request.key is None:
        return OpeningResult(await open_account(db, request.account))
    id_ = uuid7()
    if used := await _claim(db, {(request.scope, request.key): _Claim(id_, request.account)}):
        [stored] = used.values()
        return _answer(request.account, stored, await _opened_at(db, [stored.account_id]))
    return OpeningResult(await open_account(db, request.account, id_=id_))


async def open_accounts(db: AsyncSession, requests: Sequence[OpeningRequest]) -> list[OpeningResult]:
    """Open many accounts with a few statements, and return a result for each request, in the same order.

    A refused request doesn't affect the others, and stores nothing under its key. The accounts in the results are not
    in the session.
    """
    results: dict[int, OpeningResult] = {}
    remaining = list(enumerate(requests))
    while remaining:
        first: dict[object, int] = {}
        repeated: list[tuple[int, OpeningRequest, int]] = []
        for place, request in remaining:
            earlier = first.setdefault(place if request.key is None else (request.scope, request.key), place)
            if earlier != place:
                repeated.append((place, request, earlier))
        chosen = list(first.values())
        results |= zip(chosen, await _open(db, [requests[place] for place in chosen]), strict=True)
        remaining = []
        for place, request, earlier in repeated:
            result, is_same = results[earlier], _fingerprint(request.account) == _fingerprint(requests[earlier].account)
            if is_same:
                results[place] = result._replace(replayed=result.account is not None)
            elif result.account is not None:
                results[place] = OpeningResult(refusal=OpeningRefusal.KEY_REUSED)
            else:  # the earlier one was refused and stored nothing, so this one is tried
                remaining.append((place, request))
    return [results[place] for place in range(len(requests))]


class _Claim(NamedTuple):
    account_id: UUID
    account: AccountIn


async def _open(db: AsyncSession, requests: Sequence[OpeningRequest]) -> list[OpeningResult]:
    """`open_accounts` for requests with different keys.

    Keys are claimed before accounts are written, and both are sorted, so that concurrent calls can't deadlock.
    """
    ids = [uuid7() for _ in requests]
    claims = {
        (request.scope, request.key): _Claim(id_, request.account)
        for id_, request in zip(ids, requests, strict=True)
        if request.key is not None
    }
    used = await _claim(db, claims)
    new = {
        id_: request.account
        for id_, request in zip(ids, requests, strict=True)
        if request.key is None or (request.scope, request.key) not in used
    }
    refusals = await _write(db, new)
    if unused := [key for key, claim in claims.items() if claim.account_id in refusals]:
        stored = tuple_(IdempotencyKey.scope, IdempotencyKey.key)
        await db.execute(delete(IdempotencyKey).where(stored.in_(unused)).execution_options(synchronize_session=False))
    opened_at = await _opened_at(db, [*new, *(stored.account_id for stored in used.values())])

    def result(id_: UUID, request: OpeningRequest) -> OpeningResult:
        if request.key is not None and (stored := used.get((request.scope, request.key))) is not None:
            return _answer(request.account, stored, opened_at)
        if id_ in refusals:
            return OpeningResult(refusal=refusals[id_])
        return OpeningResult(_as_opened(id_, request.account, opened_at[id_]))

    return [result(id_, request) for id_, request in zip(ids, requests, strict=True)]


async def _write(db: AsyncSession, accounts: Mapping[UUID, AccountIn]) -> dict[UUID, OpeningRefusal]:
    """Insert the accounts, and return the refusals of those that were not inserted."""
    users = await _lock_users(db, {each.user_id for each in accounts.values() if each.user_id is not None})
    refusals = {
        id_: OpeningRefusal.UNKNOWN_USER
        for id_, each in accounts.items()
        if each.user_id is not None and each.user_id not in users
    }
    rows = {id_: build_account_values(each, id_=id_) for id_, each in accounts.items() if id_ not in refusals}
    system = sorted(
        (row for row in rows.values() if row["purpose"] is not None), key=lambda row: (row["purpose"], row["currency"])
    )
    if system:
        opening = insert(Account).on_conflict_do_nothing().returning(Account.id)
        opened = set(await db.scalars(opening, system))
        refusals |= {row["id"]: OpeningRefusal.PURPOSE_TAKEN for row in system if row["id"] not in opened}
    await bulk.insert_many(db, Account, [row for row in rows.values() if row["purpose"] is None], keys=False)
    return refusals


async def _lock_users(db: AsyncSession, ids: Collection[UUID]) -> set[UUID]:
    """The users that exist, locked so that they can't be deleted until the transaction ends."""
    if not ids:
        return set()
    return set(await db.scalars(_USERS, {"ids": list(ids)}))


async def _claim(db: AsyncSession, claims: Mapping[ScopedKey, _Claim]) -> dict[ScopedKey, StoredAnswer]:
    """Store the account under each unused key, and return the stored answers of the others. Waits for transactions that
    have claimed one of the keys."""
    used: dict[ScopedKey, StoredAnswer] = {}
    missing = dict(sorted(claims.items()))  # in the order in which transfers write their keys
    while missing:
        values = {
            "scopes": [scope for scope, _ in missing],
            "keys": [key for _, key in missing],
            "fingerprints": [_fingerprint(claim.account) for claim in missing.values()],
            "ids": [claim.account_id for claim in missing.values()],
        }
        claimed = {(row.scope, row.key) for row in await db.execute(_CLAIM, values)}
        others = missing.keys() - claimed
        used |= await TransferRepository(db).answers_under(others)
        # keys that were deleted meanwhile, because they were old
        missing = {key: missing[key] for key in missing if key in others and key not in used}
    return used


async def _opened_at(db: AsyncSession, ids: Iterable[UUID | None]) -> dict[UUID, datetime]:
    """The times when the accounts were opened, for those that exist."""
    known = [id_ for id_ in ids if id_ is not None]
    return {row.id: row.created_at for row in await db.execute(_OPENED_AT, {"ids": known})} if known else {}


def _answer(account: AccountIn, stored: StoredAnswer, opened_at: Mapping[UUID, datetime]) -> OpeningResult:
    """The result of a request whose key was used."""
    if stored.answer is not AnswerKind.OPENED or stored.fingerprint != _fingerprint(account):
        return OpeningResult(refusal=OpeningRefusal.KEY_REUSED)
    assert stored.account_id is not None  # the table's CHECK constraint
    return OpeningResult(_as_opened(stored.account_id, account, opened_at[stored.account_id]), replayed=True)


def _as_opened(id_: UUID, account: AccountIn, at: datetime) -> Account:
    """The account as it was when this request opened it. A new account has no values from anywhere else."""
    times = {"created_at": at, "updated_at": at}
    return Account(
        **(build_account_values(account, id_=id_) | times),
        balance=0,
        held=0,
        state=AccountState.OPEN,
        entry_count=0,
        revision=0,
    )


def _fingerprint(account: AccountIn) -> bytes:
    """A digest of the requested account. Defaults are left out, so that a new field doesn't change the digests of old
    requests."""
    requested = account.model_dump(exclude_defaults=True)
    if build_account_values(account)["allows_negative"]:
        requested["allows_negative"] = True
    return hashlib.sha256(orjson.dumps(requested, default=str, option=orjson.OPT_SORT_KEYS)).digest()


_ids: Final = func.any(bindparam("ids", type_=ARRAY(Uuid())))
_USERS: Final = select(User.id).where(User.id == _ids).order_by(User.id).with_for_update(read=True, key_share=True)
_OPENED_AT: Final = select(Account.id, Account.created_at).where(Account.id == _ids)

_given: Final = (
    func.unnest(
        bindparam("scopes", type_=ARRAY(String())),
        bindparam("keys", type_=ARRAY(String())),
        bindparam("fingerprints", type_=ARRAY(LargeBinary())),
        bindparam("ids", type_=ARRAY(Uuid())),
    )
    .table_valued(
        column("scope", String()),
        column("key", String()),
        column("fingerprint", LargeBinary()),
        column("account_id", Uuid()),
    )
    .render_derived(name="given")
)
_keys: Final[Any] = IdempotencyKey.__table__  # the ORM can't compile an INSERT from this SELECT
_CLAIM: Final[Any] = (
    insert(_keys)
    .from_select(
        ["scope", "key", "fingerprint", "account_id", "answer", "created_at"],
        select(
            *_given.c,
            bindparam("answer", AnswerKind.OPENED.value, type_=String()),
            func.statement_timestamp(),
        ),
    )
    .on_conflict_do_nothing()
    .returning(_keys.c.scope, _keys.c.key)
)
