"""Authenticator apps (TOTP, RFC 6238) and recovery codes."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final
from uuid import UUID

import pyotp
from sqlalchemy import BigInteger, cast, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from shop.identity.encryption import SecretBox
from shop.identity.errors import SignInFailed
from shop.identity.models import TotpDevice
from shop.identity.opaque_tokens import hash_recovery_code, new_recovery_code

_NAME_IN_APP: Final = "Shop"
_STEP_SECONDS: Final = 30
_CODE_DIGITS: Final = 6
# A code is accepted one step before and after its own, because clocks differ and people type slowly.
_WINDOW: Final = 1
_RECOVERY_CODES: Final = 10


class CodeKind(Enum):
    """The kind of a correct code."""

    APP = auto()
    RECOVERY = auto()


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The data that a person enters into an authenticator app. It is shown once."""

    secret: str
    uri: str

    def __repr__(self) -> str:
        return "Enrolment()"


async def has_device(session: AsyncSession, user_id: UUID) -> bool:
    """Whether the user has a confirmed authenticator app."""
    query = select(TotpDevice.user_id).where(TotpDevice.user_id == user_id, TotpDevice.confirmed_at.is_not(None))
    return await session.scalar(query) is not None


async def begin_enrolment(session: AsyncSession, box: SecretBox, user_id: UUID, email: str) -> Enrolment:
    """A new secret, which is used only after `confirm_enrolment`. Until then, an earlier app stays valid."""
    secret = pyotp.random_base32()
    encrypted = box.encrypt(secret)
    await session.execute(
        insert(TotpDevice)
        .values(user_id=user_id, pending_secret=encrypted, last_counter=0, recovery_hashes=[])
        .on_conflict_do_update(index_elements=[TotpDevice.user_id], set_={"pending_secret": encrypted})
    )
    return Enrolment(secret, pyotp.TOTP(secret).provisioning_uri(name=email, issuer_name=_NAME_IN_APP))


async def confirm_enrolment(session: AsyncSession, box: SecretBox, user_id: UUID, code: str) -> list[str]:
    """Use the pending secret from now on. Returns the recovery codes. Raises `SignInFailed` for a wrong code."""
    device = await _lock_device(session, user_id)
    if device is None or device.pending_secret is None:
        raise SignInFailed("begin the enrolment first, at /auth/totp")
    counter = _find_counter(box.decrypt(device.pending_secret), code, await _current_counter(session))
    if counter is None:
        raise SignInFailed("this isn't the current code of the authenticator app: check its clock")
    codes = [new_recovery_code() for _ in range(_RECOVERY_CODES)]
    device.secret, device.pending_secret, device.last_counter = device.pending_secret, None, counter
    device.confirmed_at = await session.scalar(select(func.statement_timestamp()))
    device.recovery_hashes = [hash_recovery_code(each) for each in codes]
    await session.flush()
    return codes


async def verify_code(session: AsyncSession, box: SecretBox, user_id: UUID, code: str) -> CodeKind | None:
    """The kind of the code, or None if it is wrong or was used before. It counts as used after the commit.

    The row is locked, so that of two transactions with the same code only one succeeds.
    """
    device = await _lock_device(session, user_id)
    if device is None or device.secret is None:
        return None
    if not _is_totp(code):
        used = hash_recovery_code(code)
        remaining = [each for each in device.recovery_hashes if each != used]
        is_right = len(remaining) < len(device.recovery_hashes)
        device.recovery_hashes = remaining
        await session.flush()
        return CodeKind.RECOVERY if is_right else None
    secret = box.decrypt(device.secret)
    counter = _find_counter(secret, code, await _current_counter(session))
    if counter is None or counter <= device.last_counter:
        return None
    device.last_counter = counter
    if box.is_outdated(device.secret):
        device.secret = box.encrypt(secret)
    await session.flush()
    return CodeKind.APP


async def _lock_device(session: AsyncSession, user_id: UUID) -> TotpDevice | None:
    query = select(TotpDevice).where(TotpDevice.user_id == user_id).with_for_update()
    return await session.scalar(query.execution_options(populate_existing=True))


async def _current_counter(session: AsyncSession) -> int:
    """The current time step, by the database's clock, so that all processes agree."""
    epoch = func.floor(func.extract("epoch", func.clock_timestamp()) / _STEP_SECONDS)
    return (await session.scalars(select(cast(epoch, BigInteger)))).one()


def _find_counter(secret: str, code: str, now: int) -> int | None:
    """The time step of the code. All steps are compared, in constant time."""
    totp = pyotp.TOTP(secret)
    found = None
    for counter in range(now - _WINDOW, now + _WINDOW + 1):
        if hmac.compare_digest(totp.generate_otp(counter).encode(), code.encode()):
            found = counter
    return found


def _is_totp(code: str) -> bool:
    return len(code) == _CODE_DIGITS and code.isascii() and code.isdigit()
