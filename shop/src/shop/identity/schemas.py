"""The bodies of requests and responses. Passwords, tokens and codes are never shown by `repr` or in an error."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from shop.identity.passwords import MAX_INPUT_LENGTH
from shop.identity.principals import Role
from shop.users.schemas import Country, Email, Name

_EXAMPLE_PASSWORD: Final = "kettle-drum-harbour-moss"  # noqa: S105  # an example for the documentation
_EXAMPLE_TOKEN: Final = "V2hhdCBhIHRva2VuIGxvb2tzIGxpa2UgaW4gYSBtYWls"  # noqa: S105

Password = Annotated[
    SecretStr, Field(max_length=MAX_INPUT_LENGTH, examples=[_EXAMPLE_PASSWORD], json_schema_extra={"writeOnly": True})
]
Token = Annotated[
    SecretStr, Field(min_length=1, max_length=200, examples=[_EXAMPLE_TOKEN], json_schema_extra={"writeOnly": True})
]
Code = Annotated[
    SecretStr,
    Field(
        min_length=1,
        max_length=50,
        description="The six digits of the authenticator app, or a recovery code",
        examples=["123456"],
        json_schema_extra={"writeOnly": True},
    ),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class SignUpIn(_Body):
    email: Email
    name: Name
    country: Country | None = Field(default=None, examples=["United Kingdom"])


class NewPasswordIn(_Body):
    """The token of a mail, and the password that the recipient chooses."""

    token: Token
    password: Password = Field(description="12 to 128 characters. Common passwords are refused")


class SignInIn(_Body):
    email: Email
    password: Password
    code: Code | None = None


class RefreshIn(_Body):
    refresh_token: Token


class TokenIn(_Body):
    token: Token


class EmailIn(_Body):
    email: Email


class PasswordChangeIn(_Body):
    current_password: Password | None = Field(default=None, description="Needed if the user has a password")
    new_password: Password = Field(description="12 to 128 characters. Common passwords are refused")


class EmailChangeIn(_Body):
    new_email: Email
    password: Password


class EnrolmentRequestIn(_Body):
    password: Password
    code: Code | None = Field(default=None, description="Needed if the user has an authenticator app already")


class EnrolmentIn(_Body):
    enrolment_token: Token


class EnrolmentConfirmationIn(_Body):
    enrolment_token: Token
    code: Code


class InvitationIn(_Body):
    email: Email
    name: Name
    role: Literal[Role.OPERATOR, Role.ADMIN] = Field(examples=["operator"])


class RoleIn(_Body):
    role: Role = Field(examples=["operator"])


class SignedInOut(BaseModel):
    """The tokens of a session. The names are those of OAuth 2.0 (RFC 6749, section 5.1)."""

    model_config = ConfigDict(extra="forbid")

    access_token: str = Field(description="For the header `Authorization: Bearer …`")
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  # the name of a type
    expires_in: int = Field(description="The lifetime of the access token, in seconds", examples=[600])
    refresh_token: str = Field(description="For one call of `POST /auth/refresh`, which returns the next one")
    user_id: UUID
    role: Role


class AcceptedOut(BaseModel):
    """The response, which is the same if no user has the address."""

    model_config = ConfigDict(extra="forbid")

    detail: str = Field(default="a mail is on its way, if this address can get one", examples=["a mail is on its way"])


class SessionOut(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: UUID
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    address: str | None
    user_agent: str | None
    is_current: bool


class SessionsOut(BaseModel):
    model_config = ConfigDict(extra="forbid")

    items: list[SessionOut]


class SignedInUserOut(BaseModel):
    """The user who is signed in."""

    model_config = ConfigDict(extra="forbid")

    user_id: UUID
    email: str
    name: str
    role: Role
    has_password: bool
    has_totp: bool


class EnrolmentTokenOut(BaseModel):
    model_config = ConfigDict(extra="forbid")

    enrolment_token: str = Field(description="For `POST /auth/totp`, and for nothing else")


class EnrolmentOut(BaseModel):
    model_config = ConfigDict(extra="forbid")

    secret: str = Field(description="For an app that can't read a QR code")
    uri: str = Field(description="The text of the QR code", examples=["otpauth://totp/Shop:ada%40example.com?secret=…"])


class EnrolledOut(SignedInOut):
    recovery_codes: list[str] = Field(
        description="Each can be used once instead of a code of the app. They are shown only here"
    )
