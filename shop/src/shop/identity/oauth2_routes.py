"""`POST /auth/token`: the password and refresh grants of OAuth 2.0 (RFC 6749), for `/docs` and generated clients.

It is for customers, because the form has no field for the code of an authenticator app. Errors have the format of
RFC 6749, section 5.2, which clients of OAuth expect.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from howdah.fastapi import UnsupportedMediaType, describe_problems, get_schema_ref
from shop.identity import service
from shop.identity.dependencies import CurrentClient, CurrentIdentity
from shop.identity.errors import CodeRequired, EnrolmentRequired, InvalidRefreshToken, SignInFailed
from shop.identity.routes import describe_signed_in
from shop.identity.rules import ANYONE
from shop.identity.schemas import SignedInOut
from shop.web.forms import FORM, InvalidForm, read_form

router = APIRouter(prefix="/auth", tags=["auth"])

_MAX_TOKEN: Final = 200

_FORM: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["grant_type"],
                    "properties": {
                        "grant_type": {"type": "string", "enum": ["password", "refresh_token"]},
                        "username": {"type": "string", "description": "The mail address"},
                        "password": {"type": "string", "format": "password"},
                        "refresh_token": {"type": "string", "format": "password"},
                        "scope": {"type": "string", "description": "Ignored"},
                    },
                }
            }
        },
    }
}


class OAuth2ErrorOut(BaseModel):
    """RFC 6749, section 5.2."""

    model_config = ConfigDict(extra="forbid")

    error: Literal["invalid_request", "invalid_grant", "unsupported_grant_type"]
    error_description: str


@router.post(
    "/token",
    dependencies=[ANYONE],
    response_model=SignedInOut,
    openapi_extra=_FORM,
    responses={
        400: {
            "description": "Bad Request",
            "content": {"application/json": {"schema": get_schema_ref(OAuth2ErrorOut)}},
        },
        **describe_problems(HTTPStatus.TOO_MANY_REQUESTS),
    },
)
async def get_token(request: Request, identity: CurrentIdentity, client: CurrentClient) -> SignedInOut | Response:
    """Sign in with a form (`grant_type=password`), or refresh (`grant_type=refresh_token`)."""
    try:
        # a field without a value counts as omitted (RFC 6749, section 3.2)
        form = {name: value for name, value in (await read_form(request)).items() if value}
        match form["grant_type"]:
            case "password":
                email, password = form["username"], form["password"]
                signed_in = await service.sign_in(identity, email=email, password=password, client=client)
            case "refresh_token":
                signed_in = await service.refresh(identity, form["refresh_token"][:_MAX_TOKEN], client)
            case _:
                return _error("unsupported_grant_type", "grant_type must be password or refresh_token")
    except (InvalidForm, UnsupportedMediaType) as error:
        return _error("invalid_request", error.detail)
    except KeyError as error:
        return _error("invalid_request", f"the field {error.args[0]} is missing")
    except (CodeRequired, EnrolmentRequired):
        return _error("invalid_grant", "this account needs the code of an authenticator app: use POST /auth/sign-in")
    except (SignInFailed, InvalidRefreshToken) as error:
        return _error("invalid_grant", str(error))
    return describe_signed_in(signed_in)


def _error(code: str, description: str) -> Response:
    return JSONResponse({"error": code, "error_description": description}, HTTPStatus.BAD_REQUEST)
