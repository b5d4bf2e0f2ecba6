"""The resources of this package: the database, the keys, the threads and the mails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from howdah import Database
from shop.identity.encryption import SecretBox
from shop.identity.events import BoundedEvents
from shop.identity.hashing import PasswordHashing
from shop.identity.mail import ConsoleMailer, Mailer, MailQueue, SmtpMailer
from shop.identity.mail_texts import MailTexts
from shop.identity.principals import Principal, Role
from shop.identity.sessions import Lifetime, Lifetimes, OpenSession
from shop.identity.tokens import LIFETIME, TokenSigner
from shop.settings import Settings


@dataclass(frozen=True, slots=True, repr=False)
class SignedIn:
    """The tokens of a new or refreshed session, and who has signed in. `expires_in` is in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
    principal: Principal

    def __repr__(self) -> str:
        return f"SignedIn({self.principal!r})"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class Identity:
    """The resources that are open. `database` has the role `shop_system`."""

    database: Database
    signer: TokenSigner
    hashing: PasswordHashing
    box: SecretBox
    mails: MailQueue
    texts: MailTexts
    lifetimes: Lifetimes
    bounded_events: BoundedEvents

    def sign(self, opened: OpenSession) -> SignedIn:
        """The tokens of the session. Call it after the commit."""
        principal = Principal(opened.user_id, Role(opened.role), session_id=opened.id)
        access_token = self.signer.sign(principal)
        return SignedIn(access_token, opened.refresh_token, int(LIFETIME.total_seconds()), principal)


@asynccontextmanager
async def open_identity(
    database: Database, *, settings: Settings, signer: TokenSigner, mailer: Mailer | None = None
) -> AsyncIterator[Identity]:
    """Start the threads and the sending of mails. They end with the block. It is the factory of the resource."""
    hashing = PasswordHashing(
        memory_kib=settings.argon2_memory_kib,
        iterations=settings.argon2_iterations,
        threads=settings.argon2_threads,
    )
    try:
        async with MailQueue(mailer or _choose_mailer(settings)).running() as mails:
            yield Identity(
                database=database,
                signer=signer,
                hashing=hashing,
                box=SecretBox(settings.encryption_keyring),
                mails=mails,
                texts=MailTexts(settings.web_url),
                lifetimes=Lifetimes(
                    customers=Lifetime(
                        idle=timedelta(days=settings.session_idle_days), total=timedelta(days=settings.session_days)
                    )
                ),
                bounded_events=BoundedEvents(database),
            )
    finally:
        hashing.close()


def _choose_mailer(settings: Settings) -> Mailer:
    if settings.smtp_url is None:
        return ConsoleMailer()
    return SmtpMailer(settings.smtp_url.get_secret_value(), sender=settings.mail_from)
