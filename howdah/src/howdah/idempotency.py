"""Idempotent requests: the answer to a request is stored with its effects, in the same transaction.

class IdempotentRequest(howdah.IdempotentRequest, Base):
    __tablename__ = "idempotent_requests"

`howdah.fastapi.idempotency_key` uses this module for routes. Other callers, such as consumers of a queue, call
`claim_request` before their work and `store_answer` after it, with one session.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    Select,
    SmallInteger,
    String,
    Table,
    and_,
    bindparam,
    delete,
    func,
    inspect,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah.database import Database
from howdah.errors import IdempotencyKeyInUse, LockTimeout, UniqueViolation
from howdah.models import AwareDateTime

MAX_SCOPE_CHARACTERS: Final = 255
MAX_KEY_CHARACTERS: Final = 255

# The maximum of `lock_timeout`, which is a 32-bit number of milliseconds.
_MAX_WAIT_SECONDS: Final = 2_147_483

# A claim is tried again only if the stored request was deleted between the claim and the read that followed it.
_MAX_CLAIMS: Final = 5


class IdempotentRequest:
    """A mixin for the table of idempotent requests: `class IdempotentRequest(howdah.IdempotentRequest, Base)`.

    The primary key is the caller's `scope` and the `key` that the caller chose. `fingerprint` is a digest of the
    request. `status`, `headers` and `body` are the answer; only a transaction that is still running has a row without
    them. `created_at` is the time of the claim by the database's clock. `delete_old_requests` finds rows by it.
    """

    scope: Mapped[str] = mapped_column(String(MAX_SCOPE_CHARACTERS), primary_key=True)
    key: Mapped[str] = mapped_column(String(MAX_KEY_CHARACTERS), primary_key=True)
    fingerprint: Mapped[bytes | None] = mapped_column(LargeBinary)
    status: Mapped[int | None] = mapped_column(SmallInteger)
    headers: Mapped[list[list[str]] | None] = mapped_column(JSONB(none_as_null=True))
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(AwareDateTime(), server_default=func.statement_timestamp(), index=True)


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The answer to a request: its status, its headers in order, and its body. `fingerprint` identifies the request."""

    fingerprint: bytes
    status: int
    headers: list[tuple[str, str]]
    body: bytes


async def claim_request(
    session: AsyncSession, model: type[IdempotentRequest], *, scope: str, key: str, max_wait_seconds: float
) -> StoredAnswer | None:
    """Claim the key in the session's transaction. Return None if it is new, otherwise the stored answer.

    After None, the caller does its work and calls `store_answer`, before the transaction is committed. The caller
    compares the fingerprint of a stored answer.

    If another transaction has claimed the key, this waits for its end, at most `max_wait_seconds`, and then raises
    `IdempotencyKeyInUse`. The session's `statement_timeout` limits the wait, too (`StatementTimeout`). If the other
    transaction is rolled back, the key is new.
    """
    check_max_wait(max_wait_seconds)
    table = _get_table(model)
    parameters = {"of_scope": scope, "of_key": key, "max_wait": f"{max(1, round(max_wait_seconds * 1000))}ms"}
    bind = {"bind_arguments": {"mapper": inspect(model)}}
    for _ in range(_MAX_CLAIMS):
        try:
            is_new = await session.scalar(_build_claim(table), parameters, **bind)
        except LockTimeout as error:
            raise IdempotencyKeyInUse from error
        if is_new:
            return None
        found = (await session.execute(_select_answer(table), parameters, **bind)).one_or_none()
        if found is None:
            continue
        if found.status is None:
            raise RuntimeError(
                f"the idempotency key {key!r} has no answer in {table.name}: it was claimed twice in one transaction, "
                "or its transaction was committed before store_answer. Claim a key once, and store its answer"
            )
        headers = [(name, value) for name, value in found.headers]
        return StoredAnswer(found.fingerprint, found.status, headers, found.body)
    raise IdempotencyKeyInUse


async def store_answer(
    session: AsyncSession, model: type[IdempotentRequest], answer: StoredAnswer, *, scope: str, key: str
) -> None:
    """Store the answer with the claimed key, in the session's transaction. The caller commits.

    If the session was rolled back after the claim, the key is claimed again. Raises `IdempotencyKeyInUse` if another
    transaction has used it in the meantime; the caller must roll back then.
    """
    table = _get_table(model)
    bind = {"bind_arguments": {"mapper": inspect(model)}}
    values = {
        "fingerprint": answer.fingerprint,
        "status": answer.status,
        "headers": [list(each) for each in answer.headers],
        "body": answer.body,
    }
    is_claimed = and_(_has_key(table), table.c.status.is_(None))
    claimed = update(table).where(is_claimed).values(values).returning(table.c.key)
    if await session.scalar(claimed, {"of_scope": scope, "of_key": key}, **bind) is not None:
        return
    try:
        await session.execute(insert(table).values(scope=scope, key=key, **values), **bind)
    except UniqueViolation as error:
        raise IdempotencyKeyInUse from error


async def delete_old_requests(
    database: Database, model: type[IdempotentRequest], *, older_than: timedelta, batch_size: int = 500
) -> int:
    """Delete the requests that began longer ago than `older_than`, and return their number.

    The age is measured by the database's clock. Each batch is a transaction. Rows that another transaction has locked
    are skipped, so any number of processes may call this at the same time. After its row is deleted, a request with the
    same key is new. So `older_than` must be longer than the time in which clients retry a request.
    """
    if older_than <= timedelta(0) or batch_size < 1:
        raise ValueError(
            f"older_than must be more than 0, not {older_than}, and batch_size at least 1, not {batch_size}"
        )
    table = _get_table(model)
    old = (
        select(table.c.scope, table.c.key)
        .where(table.c.created_at < func.statement_timestamp() - older_than)
        .limit(batch_size)
        .with_for_update(skip_locked=True)
    )
    statement = delete(table).where(tuple_(table.c.scope, table.c.key).in_(old)).returning(table.c.key)
    deleted = 0
    while True:
        async with database.begin() as session:
            result = await session.execute(statement, bind_arguments={"mapper": inspect(model)})
            batch_count = len(result.all())
        deleted += batch_count
        if batch_count < batch_size:
            return deleted


def check_max_wait(seconds: float) -> None:
    """Raise `ValueError` if `lock_timeout` can't have this value, or if it is 0, which means no limit."""
    if not 0 < seconds <= _MAX_WAIT_SECONDS:
        raise ValueError(f"max_wait_seconds must be more than 0 and at most {_MAX_WAIT_SECONDS}, not {seconds}")


def _get_table(model: type[IdempotentRequest]) -> Table:
    table = getattr(model, "__table__", None)
    if not isinstance(table, Table):
        raise TypeError(
            f"{model.__name__} has no table: write `class {model.__name__}(howdah.IdempotentRequest, Base)` "
            "with a __tablename__"
        )
    return table


def _has_key(table: Table) -> ColumnElement[bool]:
    return and_(table.c.scope == bindparam("of_scope"), table.c.key == bindparam("of_key"))


@lru_cache(maxsize=64)
def _build_claim(table: Table) -> Select[Any]:
    """Insert a row with the key unless it exists, and return whether it was inserted: one round trip.

    The insert waits for a transaction that has inserted the same key. `lock_timeout` limits that wait. It is set for
    this statement alone. The last SELECT counts the inserted rows and then restores the setting.
    """
    setting = (
        select(
            func.current_setting("lock_timeout").label("before"),
            func.set_config("lock_timeout", bindparam("max_wait", type_=String), True).label("during"),
        )
        .cte("setting")
        .prefix_with("MATERIALIZED")
    )
    scope, key = (bindparam(f"of_{each.name}", type_=each.type) for each in (table.c.scope, table.c.key))
    claimed = (
        insert(table)
        .from_select([table.c.scope, table.c.key], select(scope, key).select_from(setting))
        .on_conflict_do_nothing(index_elements=[table.c.scope, table.c.key])
        .returning(table.c.key)
        .cte("claimed")
    )
    counted = select(func.count().label("rows")).select_from(claimed).subquery("counted")
    return select(
        counted.c.rows,
        func.set_config("lock_timeout", setting.c.before, True),
    ).select_from(setting.join(counted, true()))


@lru_cache(maxsize=64)
def _select_answer(table: Table) -> Select[Any]:
    return select(table.c.fingerprint, table.c.status, table.c.headers, table.c.body).where(_has_key(table))
