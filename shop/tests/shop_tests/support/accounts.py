"""Users with a password, and perhaps an authenticator app, inserted into the database."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final
from uuid import UUID

import pyotp
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from howdah import Database
from shop.identity.bootstrap import create_admin, describe_sign_in_link
from shop.identity.encryption import SecretBox
from shop.identity.models import Credential, TotpDevice
from shop.identity.principals import Role
from shop.users.models import User
from shop_tests.support.identity import TEST_SETTINGS

PASSWORD: Final = "a password of a test"

_HASHER: Final = PasswordHash([Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1)])


@cache
def hash_password(password: str) -> str:
    return _HASHER.hash(password)


@dataclass(frozen=True, slots=True)
class Person:
    user_id: UUID
    email: str
    totp: pyotp.TOTP | None


async def create_person(
    database: Database, email: str = "person@example.com", *, role: Role = Role.CUSTOMER, has_app: bool = False
) -> Person:
    """A user with `PASSWORD`, and an authenticator app if `has_app`."""
    user = User(email=email, name="Person")
    secret = pyotp.random_base32()
    async with database.begin() as session:
        session.add(user)
        await session.flush()
        session.add(Credential(user_id=user.id, role=role, password_hash=hash_password(PASSWORD)))
        if has_app:
            box = SecretBox(TEST_SETTINGS.encryption_keyring)
            session.add(TotpDevice(user_id=user.id, secret=box.encrypt(secret), confirmed_at=user.created_at))
    return Person(user.id, email, pyotp.TOTP(secret) if has_app else None)


async def create_link(database: Database, address: str) -> str:
    """The link of a first admin, which signs in once."""
    line = describe_sign_in_link(address, await create_admin(database, "admin@example.com"))
    return line.removeprefix("or in a browser: ")
