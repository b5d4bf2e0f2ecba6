"""Sign-up of customers. The address is verified first: its owner chooses the password with a token from the mail.

So nobody can create an account with the address of another person and wait until that person uses it. The response
and the work are the same if a user has the address already. Only the mail says so.
"""

from __future__ import annotations

from howdah import UniqueViolation
from shop.audit.models import AuditAction
from shop.identity.clients import Client
from shop.identity.context import Identity, SignedIn
from shop.identity.credentials import hash_new_password, store_password
from shop.identity.errors import EmailInUse, InvalidToken
from shop.identity.events import record_user_event
from shop.identity.models import Purpose
from shop.identity.one_time_tokens import find_token, issue_token_to_address, redeem_token
from shop.identity.principals import Role
from shop.identity.service import start_session
from shop.identity.throttles import admit_mail
from shop.users.models import User


async def request_sign_up(
    identity: Identity, *, email: str, name: str, country: str | None = None, client: Client
) -> None:
    """Send a mail to the address. Raises `TooManyAttempts` and `MailBusy`."""
    await admit_mail(identity.database, email, client)
    with identity.mails.reserve() as mails:
        async with identity.database.begin() as session:
            details = {"name": name, "country": country}
            token, user_id = await issue_token_to_address(session, Purpose.SIGN_UP, email, details=details)
            action = AuditAction.SIGN_UP_REQUESTED
            await identity.bounded_events.record(action, user_id=user_id, client=client, session=session)
        is_new = user_id is None
        mails.append(identity.texts.sign_up(email, token) if is_new else identity.texts.sign_up_of_known(email))


async def confirm_sign_up(identity: Identity, *, token: str, password: str, client: Client) -> SignedIn:
    """Create the user with this password, and sign in. Raises `InvalidToken`, `PasswordRejected` and `EmailInUse`."""
    async with identity.database.session(read_only=True) as session:
        found = await find_token(session, Purpose.SIGN_UP, token)
    if found.email is None or found.user_id is not None:
        raise InvalidToken
    password_hash = await hash_new_password(identity, password, found.email, found.details["name"])
    try:
        async with identity.database.begin() as session:
            await redeem_token(session, Purpose.SIGN_UP, token)
            user = User(email=found.email, name=found.details["name"], country=found.details["country"])
            session.add(user)
            await session.flush()
            await store_password(session, user.id, password_hash)
            await record_user_event(session, AuditAction.SIGNED_UP, user_id=user.id, client=client)
            opened = await start_session(identity, session, user.id, Role.CUSTOMER, client, method="sign-up")
    except UniqueViolation as error:
        raise EmailInUse from error
    return identity.sign(opened)
