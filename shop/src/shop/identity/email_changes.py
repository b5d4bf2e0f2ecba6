"""Change the address that a user signs in with."""

from __future__ import annotations

from sqlalchemy import select

from howdah import UniqueViolation
from shop.audit.models import AuditAction
from shop.identity.clients import Client
from shop.identity.context import Identity
from shop.identity.credentials import load_own_account, verify_own_password
from shop.identity.errors import EmailInUse, InvalidToken
from shop.identity.events import record_user_event
from shop.identity.models import Purpose
from shop.identity.one_time_tokens import issue_token, redeem_token, revoke_tokens
from shop.identity.principals import Principal
from shop.identity.throttles import admit_mail
from shop.users.models import User


async def request_email_change(
    identity: Identity, principal: Principal, *, new_email: str, password: str, client: Client
) -> None:
    """Send a token to the new address. The response is the same if another user has it: then that user gets a mail."""
    async with identity.database.session(read_only=True) as session:
        account = await load_own_account(session, principal)
    await verify_own_password(identity, principal, account, password, client)
    await admit_mail(identity.database, new_email, client)
    with identity.mails.reserve() as mails:
        async with identity.database.begin() as session:
            is_taken = await session.scalar(select(User.id).where(User.email == new_email)) is not None
            token = await issue_token(
                session,
                Purpose.CHANGE_EMAIL,
                user_id=account.user_id,
                email=new_email,
            )
            action = AuditAction.EMAIL_CHANGE_REQUESTED
            await record_user_event(session, action, user_id=account.user_id, actor=principal, client=client)
        texts = identity.texts
        mails.append(texts.email_of_known(new_email) if is_taken else texts.change_email(new_email, token))


async def confirm_email_change(identity: Identity, token: str, *, client: Client) -> None:
    """Change the address, and tell the old one. Raises `InvalidToken` and `EmailInUse`."""
    with identity.mails.reserve() as mails:
        try:
            async with identity.database.begin() as session:
                redeemed = await redeem_token(session, Purpose.CHANGE_EMAIL, token)
                user = await session.get(User, redeemed.user_id, with_for_update=True)
                if user is None or redeemed.email is None:
                    raise InvalidToken
                old_email, user.email = user.email, redeemed.email
                await session.flush()
                # a token that was sent to the old address must not be accepted any more
                await revoke_tokens(session, user.id, Purpose.RESET_PASSWORD, Purpose.CHANGE_EMAIL)
                await record_user_event(session, AuditAction.EMAIL_CHANGED, user_id=user.id, client=client)
        except UniqueViolation as error:
            raise EmailInUse from error
        mails.append(identity.texts.email_changed(old_email))
