"""Open one account, or many with a few statements. Each request may have an idempotency key."""

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
from shop.ledger.account_schemas import AccountIn, OpeningRefusal
from shop.ledger.accounts import build_account_values, open_account
from shop.ledger.models import Account, AccountState, AnswerKind, IdempotencyKey
from shop.ledger.repository import StoredAnswer, TransferRepository
from shop.ledger.requests import ScopedKey
from shop.users.models import User


class OpeningRefused(ValueError):
    """The request to open an account was refused. `code` says why."""

    def __init__(self, code: OpeningRefusal) -> None:
        self.code = code
        super().__init__(code.explanation)


class OpeningRequest(NamedTuple):
    """A request to open an account.

    `key` is the idempotency key, `scope` is its owner. Transfers and accounts share the keys of a scope.
    """

    account: AccountIn
    key: str | None = None
    scope: str = ""


class OpeningResult(NamedTuple):
    """Either a refusal, or the account as it was when it was opened.

    `replayed`: an earlier request with the same key opened the account.
    """

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
    """Open an account, once for all requests with the same key.

    Concurrent requests with the same key wait until the first one has been committed or rolled back.

    The only refusal is `KEY_REUSED`. Raises `ForeignKeyViolation` if the user doesn't exist, and `UniqueViolation` if
    there is an account with this purpose and currency. Roll back the session after such an error. This releases the
    key, too.
    """
    if request.key is None:
        return OpeningResult(await open_account(db, request.account))
    id_ = uuid7()
    stored_answers = await _claim_keys(db, {(request.scope, request.key): _Claim(id_, request.account)})
    if stored_answers:
        [stored] = stored_answers.values()
        return _replay(request.account, stored, await _read_opening_times(db, [stored.account_id]))
    return OpeningResult(await open_account(db, request.account, id_=id_))


async def open_accounts(db: AsyncSession, requests: Sequence[OpeningRequest]) -> list[OpeningResult]:
    """Open many accounts with a few statements, and return a result for each request, in the same order.

    A refused request doesn't affect the others, and stores nothing under its key. The accounts in the results are not
    in the session.

    If several requests have the same key, the first one is executed. Equal requests get its result. A different request
    gets `KEY_REUSED`, or is executed if the first one was refused.
    """
    results: dict[int, OpeningResult] = {}
    undecided = list(range(len(requests)))
    while undecided:
        first_positions: dict[object, int] = {}
        repeated: list[tuple[int, int]] = []
        for position in undecided:
            request = requests[position]
            key = position if request.key is None else (request.scope, request.key)
            first = first_positions.setdefault(key, position)
            if first != position:
                repeated.append((position, first))
        positions = list(first_positions.values())
        results |= zip(positions, await _open_distinct(db, [requests[each] for each in positions]), strict=True)
        undecided = []
        for position, first in repeated:
            result = results[first]
            if _compute_fingerprint(requests[position].account) == _compute_fingerprint(requests[first].account):
                results[position] = result._replace(replayed=result.account is not None)
            elif result.account is not None:
                results[position] = OpeningResult(refusal=OpeningRefusal.KEY_REUSED)
            else:  # the first request was refused, so this one is executed in the next round
                undecided.append(position)
    return [results[position] for position in range(len(requests))]


class _Claim(NamedTuple):
    """The id and the request of an account that is to be stored with an idempotency key."""

    account_id: UUID
    account: AccountIn


async def _open_distinct(db: AsyncSession, requests: Sequence[OpeningRequest]) -> list[OpeningResult]:
    """Open the accounts of requests with different keys.

    Keys are claimed before accounts are inserted. Keys and system accounts are sorted, so that concurrent calls can't
    deadlock.
    """
    ids = [uuid7() for _ in requests]
    claims = {
        (request.scope, request.key): _Claim(id_, request.account)
        for id_, request in zip(ids, requests, strict=True)
        if request.key is not None
    }
    stored_answers = await _claim_keys(db, claims)
    new_accounts = {
        id_: request.account
        for id_, request in zip(ids, requests, strict=True)
        if request.key is None or (request.scope, request.key) not in stored_answers
    }
    refusals = await _insert_accounts(db, new_accounts)
    await _release_keys(db, [key for key, claim in claims.items() if claim.account_id in refusals])
    replayed_ids = [stored.account_id for stored in stored_answers.values()]
    opening_times = await _read_opening_times(db, [*new_accounts, *replayed_ids])

    def build_result(id_: UUID, request: OpeningRequest) -> OpeningResult:
        stored = None if request.key is None else stored_answers.get((request.scope, request.key))
        if stored is not None:
            return _replay(request.account, stored, opening_times)
        if id_ in refusals:
            return OpeningResult(refusal=refusals[id_])
        return OpeningResult(_build_new_account(id_, request.account, opening_times[id_]))

    return [build_result(id_, request) for id_, request in zip(ids, requests, strict=True)]


async def _release_keys(db: AsyncSession, keys: Sequence[ScopedKey]) -> None:
    """Delete keys that this transaction has claimed: a refused request stores nothing under its key."""
    if keys:
        stored_key = tuple_(IdempotencyKey.scope, IdempotencyKey.key)
        await db.execute(
            delete(IdempotencyKey).where(stored_key.in_(keys)).execution_options(synchronize_session=False)
        )


async def _insert_accounts(db: AsyncSession, accounts: Mapping[UUID, AccountIn]) -> dict[UUID, OpeningRefusal]:
    """Insert the accounts, and return the refusals by the ids of the accounts that were not inserted.

    System accounts are inserted in the order of purpose and currency. Concurrent inserts of the same purpose and
    currency wait for each other, so inserts in different orders could deadlock.
    """
    users = await _lock_users(db, {each.user_id for each in accounts.values() if each.user_id is not None})
    refusals = {
        id_: OpeningRefusal.UNKNOWN_USER
        for id_, each in accounts.items()
        if each.user_id is not None and each.user_id not in users
    }
    rows = {id_: build_account_values(each, id_=id_) for id_, each in accounts.items() if id_ not in refusals}
    system_rows = sorted(
        (row for row in rows.values() if row["purpose"] is not None), key=lambda row: (row["purpose"], row["currency"])
    )
    if system_rows:
        insert_if_new = insert(Account).on_conflict_do_nothing().returning(Account.id)
        inserted_ids = set(await db.scalars(insert_if_new, system_rows))
        refusals |= {row["id"]: OpeningRefusal.PURPOSE_TAKEN for row in system_rows if row["id"] not in inserted_ids}
    await bulk.insert_many(db, Account, [row for row in rows.values() if row["purpose"] is None], keys=False)
    return refusals


async def _lock_users(db: AsyncSession, ids: Collection[UUID]) -> set[UUID]:
    """Lock the users so that they can't be deleted until the transaction ends, and return the ids that exist."""
    if not ids:
        return set()
    return set(await db.scalars(_LOCK_USERS, {"ids": list(ids)}))


async def _claim_keys(db: AsyncSession, claims: Mapping[ScopedKey, _Claim]) -> dict[ScopedKey, StoredAnswer]:
    """Store the account under each unused key, and return the stored answers of the used keys.

    Waits for transactions that have claimed one of the keys.
    """
    stored_answers: dict[ScopedKey, StoredAnswer] = {}
    missing = dict(sorted(claims.items()))  # transfers write their keys in the same order, so there is no deadlock
    while missing:
        values = {
            "scopes": [scope for scope, _ in missing],
            "keys": [key for _, key in missing],
            "fingerprints": [_compute_fingerprint(claim.account) for claim in missing.values()],
            "ids": [claim.account_id for claim in missing.values()],
        }
        claimed = {(row.scope, row.key) for row in await db.execute(_CLAIM_KEYS, values)}
        used = missing.keys() - claimed
        stored_answers |= await TransferRepository(db).find_answers(used)
        # An old key may have been deleted between the two statements. It is claimed again.
        missing = {key: claim for key, claim in missing.items() if key in used and key not in stored_answers}
    return stored_answers


async def _read_opening_times(db: AsyncSession, ids: Iterable[UUID | None]) -> dict[UUID, datetime]:
    """The times when the accounts were opened, by id. Ids that are None or unknown are left out."""
    account_ids = [id_ for id_ in ids if id_ is not None]
    if not account_ids:
        return {}
    return {row.id: row.created_at for row in await db.execute(_SELECT_OPENING_TIMES, {"ids": account_ids})}


def _replay(account: AccountIn, stored: StoredAnswer, opening_times: Mapping[UUID, datetime]) -> OpeningResult:
    """The result of a request whose key was used: the stored account, or `KEY_REUSED` if the request differs."""
    if stored.answer is not AnswerKind.OPENED or stored.fingerprint != _compute_fingerprint(account):
        return OpeningResult(refusal=OpeningRefusal.KEY_REUSED)
    assert stored.account_id is not None  # the table's CHECK constraint
    return OpeningResult(
        _build_new_account(stored.account_id, account, opening_times[stored.account_id]), replayed=True
    )


def _build_new_account(id_: UUID, account: AccountIn, at: datetime) -> Account:
    """The account as it was when this request opened it at the time `at`.

    All values of a new account are determined by the request and the time, so they need not be stored for a replay.
    """
    times = {"created_at": at, "updated_at": at}
    return Account(
        **(build_account_values(account, id_=id_) | times),
        balance=0,
        held=0,
        state=AccountState.OPEN,
        entry_count=0,
        revision=0,
    )


def _compute_fingerprint(account: AccountIn) -> bytes:
    """A digest of the requested account.

    Defaults are left out, so that a field that is added later doesn't change the digests of stored requests.
    """
    requested = account.model_dump(exclude_defaults=True)
    if build_account_values(account)["allows_negative"]:
        requested["allows_negative"] = True
    return hashlib.sha256(orjson.dumps(requested, default=str, option=orjson.OPT_SORT_KEYS)).digest()


_id_in_ids: Final = func.any(bindparam("ids", type_=ARRAY(Uuid())))
_LOCK_USERS: Final = (
    select(User.id).where(User.id == _id_in_ids).order_by(User.id).with_for_update(read=True, key_share=True)
)
_SELECT_OPENING_TIMES: Final = select(Account.id, Account.created_at).where(Account.id == _id_in_ids)

_claims: Final = (
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
    .render_derived(name="claims")
)
_keys: Final[Any] = IdempotencyKey.__table__  # the ORM can't compile an INSERT from this SELECT
_CLAIM_KEYS: Final[Any] = (
    insert(_keys)
    .from_select(
        ["scope", "key", "fingerprint", "account_id", "answer", "created_at"],
        select(
            *_claims.c,
            bindparam("answer", AnswerKind.OPENED.value, type_=String()),
            func.statement_timestamp(),
        ),
    )
    .on_conflict_do_nothing()
    .returning(_keys.c.scope, _keys.c.key)
)
