"""The errors of sign-in. Their texts contain no secret, and don't tell whether an account exists.

IdentityError
├── SignInFailed
│   └── CodeRequired
├── EnrolmentRequired
├── InvalidRefreshToken
├── InvalidToken
├── PasswordRejected
├── TooManyAttempts
├── EmailInUse
├── RoleRefused
├── AccountDeleted
└── Busy
    ├── HashingBusy
    ├── MailBusy
    └── TotpUnavailable
"""

from __future__ import annotations


class IdentityError(Exception):
    """An error of sign-in."""


class SignInFailed(IdentityError):
    """The address, the password or the code is wrong."""

    def __init__(self, detail: str = "the address, the password or the code is wrong") -> None:
        super().__init__(detail)


class CodeRequired(SignInFailed):
    """The password is right, and the account has an authenticator app: its code is missing."""

    def __init__(self) -> None:
        super().__init__("send the code of your authenticator app, or a recovery code, in `code`")


class EnrolmentRequired(IdentityError):
    """The password is right, but this role needs an authenticator app. The token allows nothing but its enrolment."""

    def __init__(self, token: str) -> None:
        super().__init__("this role needs an authenticator app: enrol one with `enrolment_token` at /auth/totp")
        self.token = token


class InvalidRefreshToken(IdentityError):
    """The refresh token is unknown or was used before, or its session has ended."""

    def __init__(self) -> None:
        super().__init__("the refresh token is invalid, or its session has ended: sign in again")


class InvalidToken(IdentityError):
    """The one-time token is unknown, used, expired, or for another purpose."""

    def __init__(self) -> None:
        super().__init__("the token is invalid, expired, or was used before: request a new one")


class PasswordRejected(IdentityError):
    """The new password breaks a rule. `reason` is a code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class TooManyAttempts(IdentityError):
    """The account or the address has to wait for `retry_after` seconds.

    `refused` counts the attempts that came too early.
    """

    def __init__(self, retry_after: int, *, refused: int) -> None:
        super().__init__(f"too many attempts: try again in {retry_after} s")
        self.retry_after = retry_after
        self.refused = refused


class EmailInUse(IdentityError):
    """Another user has this address. Only its owner, or an admin, gets this error."""

    def __init__(self) -> None:
        super().__init__("a user with this address exists")


class RoleRefused(IdentityError):
    """The role can't be changed."""


class AccountDeleted(IdentityError):
    """The user of the access token has been deleted."""

    def __init__(self) -> None:
        super().__init__("the user of this access token has been deleted")


class Busy(IdentityError):
    """A part of the service that sign-in needs can't be used now."""


class HashingBusy(Busy):
    """The queue of passwords to hash is full."""

    def __init__(self) -> None:
        super().__init__("too many sign-ins are in progress: try again")


class MailBusy(Busy):
    """The queue of mails is full."""

    def __init__(self) -> None:
        super().__init__("too many mails are waiting to be sent: try again")


class TotpUnavailable(Busy):
    """The secret of the authenticator app can't be decrypted with the keys of the settings."""

    def __init__(self) -> None:
        super().__init__("the code can't be checked, because its secret was encrypted with an unknown key")
