"""Throttles of sign-ins, in PostgreSQL: they count for all processes together, and survive a restart.

An attempt is counted before the password is verified, by one statement in its own transaction. So a hundred attempts at
the same moment are counted as a hundred. After the free attempts, each one makes the next one wait twice as long.

An attacker can't lock the owner of an account out:

- for each network from which the owner has signed in, the account has a separate count,
- the wait is at most `_MAX_WAIT` seconds,
- a password reset sets the counts of the account to zero.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import Interval, Text, bindparam, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop.identity.clients import Client
from shop.identity.errors import TooManyAttempts
from shop.identity.models import SignInSession, SignInThrottle
from shop.users.models import User

_MAX_WAIT: Final = 900
_KNOWN_NETWORK_AGE: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Limit:
    """`free` attempts need no wait. The count begins again after a `window` without an attempt. Waits are seconds."""

    free: int
    window: timedelta
    max_wait: int = _MAX_WAIT
    first_wait: int = 1


PER_ACCOUNT: Final = Limit(free=5, window=timedelta(days=1))
PER_ADDRESS: Final = Limit(free=50, window=timedelta(hours=6))
MAILS_PER_ACCOUNT: Final = Limit(free=3, window=timedelta(days=1), max_wait=3600)
MAILS_PER_ADDRESS: Final = Limit(free=20, window=timedelta(hours=6), max_wait=3600)

LONGEST_WINDOW: Final = timedelta(days=1)

_COUNT: Final = text("""
    INSERT INTO sign_in_throttles AS throttle (key, attempts, blocked_until, updated_at)
    VALUES (:key, 1, clock_timestamp(), clock_timestamp())
    ON CONFLICT (key) DO UPDATE SET
        attempts = CASE WHEN throttle.updated_at < clock_timestamp() - :window THEN 1 ELSE throttle.attempts + 1 END,
        refused = CASE WHEN throttle.updated_at < clock_timestamp() - :window THEN 0 ELSE throttle.refused END,
        blocked_until = clock_timestamp() + make_interval(secs => CASE
            WHEN throttle.updated_at < clock_timestamp() - :window OR throttle.attempts + 1 < :free THEN 0
            ELSE least(:max_wait, :first_wait * power(2, least(throttle.attempts + 1 - :free, 20)))
        END),
        updated_at = clock_timestamp()
    WHERE throttle.blocked_until <= clock_timestamp()
    RETURNING attempts
    """).bindparams(bindparam("key", type_=Text()), bindparam("window", type_=Interval()))

_COUNT_REFUSED: Final = text("""
    UPDATE sign_in_throttles SET refused = refused + 1 WHERE key = :key
    RETURNING ceil(extract(epoch FROM blocked_until - clock_timestamp())) AS seconds, refused
    """)


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that was admitted and counted."""

    account_key: str
    address_key: str


async def admit_sign_in(database: Database, email: str, client: Client) -> Attempt:
    """Count an attempt to sign in. Raises `TooManyAttempts`. An unknown address is counted like a known one."""
    async with database.autocommit() as connection:
        known = (
            select(SignInSession.id)
            .join(User, User.id == SignInSession.user_id)
            .where(
                User.email == email,
                SignInSession.network == client.network,
                SignInSession.created_at > func.statement_timestamp() - _KNOWN_NETWORK_AGE,
            )
        )
        is_known = bool(await connection.scalar(select(known.exists())))
    attempt = Attempt(account_key(email, client.network if is_known else None), f"address:{client.network}")
    await count(database, attempt.address_key, PER_ADDRESS)
    await count(database, attempt.account_key, PER_ACCOUNT)
    return attempt


async def admit_mail(database: Database, email: str, client: Client) -> None:
    """Count a mail to this address. Raises `TooManyAttempts`, whether a user has the address or not."""
    await count(database, f"mails-from:{client.network}", MAILS_PER_ADDRESS)
    await count(database, f"mails-to:{_hash(email)}", MAILS_PER_ACCOUNT)


async def count(database: Database, key: str, limit: Limit) -> None:
    """Count an attempt, or raise `TooManyAttempts` with the seconds to wait. A rejected attempt is counted
    apart: otherwise a client that keeps trying would never be admitted again."""
    parameters = {"key": key, **asdict(limit)}
    async with database.autocommit() as connection:
        if (await connection.execute(_COUNT, parameters)).first() is not None:
            return
        row = (await connection.execute(_COUNT_REFUSED, {"key": key})).one_or_none()
    # the row was deleted if the account was forgiven in the meantime
    raise TooManyAttempts(max(1, int(row.seconds)) if row else 1, refused=row.refused if row else 0)


async def forgive(session: AsyncSession, attempt: Attempt) -> None:
    """After a success, set the account's count to zero, and remove only this attempt from the address's count.

    An attacker with an account of their own can't reset the count of their address.
    """
    await reset(session, attempt.account_key)
    await session.execute(
        text(
            "UPDATE sign_in_throttles SET attempts = greatest(attempts - 1, 0), blocked_until = clock_timestamp() "
            "WHERE key = :key"
        ),
        {"key": attempt.address_key},
    )


async def reset(session: AsyncSession, key: str) -> None:
    """Set a count to zero. Call it after the password or code that the count protects was correct."""
    await session.execute(delete(SignInThrottle).where(SignInThrottle.key == key))


async def reset_account(session: AsyncSession, email: str) -> None:
    """Set all counts of the account to zero, after its owner has proven that the mail address is theirs."""
    key = account_key(email, None)
    await session.execute(
        delete(SignInThrottle).where((SignInThrottle.key == key) | SignInThrottle.key.startswith(f"{key}@"))
    )


def account_key(email: str, network: str | None) -> str:
    """The key of an account, or of an account and a network that it is used from. It has a hash of the address."""
    key = f"account:{_hash(email)}"
    return key if network is None else f"{key}@{network}"


def _hash(text_: str) -> str:
    return hashlib.sha256(text_.encode()).hexdigest()[:32]
