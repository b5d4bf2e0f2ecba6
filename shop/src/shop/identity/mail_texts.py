"""The texts of the mails. They contain no text that a stranger may have entered, such as a name."""

from __future__ import annotations

from shop.identity.mail import Mail
from shop.identity.principals import Role


class MailTexts:
    """Writes the mails. With `web_url` they have links `<web_url>/<page>#token=…`, otherwise the token and its route.

    The address of a link is never taken from a request, because an attacker can choose its `Host`. The token is in the
    fragment: browsers don't send it to a server, so it is in no log and no `Referer`.
    """

    def __init__(self, web_url: str | None = None) -> None:
        self._web_url = None if web_url is None else web_url.rstrip("/")

    def sign_up(self, to: str, token: str) -> Mail:
        step = self._step(token, "sign-up", "/auth/sign-up/confirmation")
        text = f"To create your account, choose a password.\n\n{step}\n\nIt is valid for 24 hours.\n{_IGNORE}"
        return Mail(to, "Confirm your address", text)

    def sign_up_of_known(self, to: str) -> Mail:
        text = (
            "Somebody has tried to create an account with your address. You have one already: sign in, or reset your "
            f"password if you have none or don't know it.\n{_IGNORE}"
        )
        return Mail(to, "You have an account", text)

    def reset(self, to: str, token: str) -> Mail:
        step = self._step(token, "reset", "/auth/password-reset/confirmation")
        return Mail(to, "Reset your password", f"{step}\n\nIt can be used once, within 30 minutes.\n{_IGNORE}")

    def change_email(self, to: str, token: str) -> Mail:
        step = self._step(token, "email", "/auth/email-change/confirmation")
        text = f"To use this address for your account:\n\n{step}\n\nIt is valid for one hour.\n{_IGNORE}"
        return Mail(to, "Confirm your new address", text)

    def email_of_known(self, to: str) -> Mail:
        text = f"Somebody has tried to use your address for another account. It stays yours.\n{_IGNORE}"
        return Mail(to, "Your address was not changed", text)

    def email_changed(self, to: str) -> Mail:
        return Mail(to, "The address of your account was changed", f"This address can't sign in any more.\n{_NOT_YOU}")

    def password_changed(self, to: str) -> Mail:
        text = f"Your other sessions have ended.\n{_NOT_YOU}"
        return Mail(to, "Your password was changed", text)

    def password_reset(self, to: str) -> Mail:
        text = f"All your sessions have ended, and your API keys were revoked.\n{_NOT_YOU}"
        return Mail(to, "Your password was changed", text)

    def totp_enrolled(self, to: str) -> Mail:
        text = f"An authenticator app was added to your account. A former app doesn't work any more.\n{_NOT_YOU}"
        return Mail(to, "Your authenticator app was set up", text)

    def invitation(self, to: str, token: str, role: Role) -> Mail:
        step = self._step(token, "invitation", "/auth/invitations/acceptance")
        text = f"You were invited as {role}. Choose a password.\n\n{step}\n\nIt is valid for three days."
        return Mail(to, "Your invitation", text)

    def _step(self, token: str, page: str, route: str) -> str:
        if self._web_url is not None:
            return f"{self._web_url}/{page}#token={token}"
        return f"token: {token}\n(send it to POST {route})"


_IGNORE = "If it wasn't you, ignore this mail."
_NOT_YOU = "If it wasn't you, reset your password at once, and tell the operators of the service."
