"""Sign in and out with a browser.

Each POST is checked for its origin, also before a sign-in: otherwise another site could sign a person in to the account
of an attacker, and the person would enter data there.
"""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of local names as texts.

from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from howdah.fastapi import PUBLIC, check_same_origin, find_principal
from shop.identity.context import SignedIn
from shop.identity.dependencies import CurrentClient, CurrentIdentity
from shop.identity.errors import (
    EnrolmentRequired,
    IdentityError,
    InvalidRefreshToken,
    InvalidToken,
    SignInFailed,
    TooManyAttempts,
)
from shop.identity.principals import Principal
from shop.identity.service import refresh, sign_in, sign_in_once, sign_out
from shop.sign_in import pages
from shop.sign_in.forms import DEFAULT_PATH, check_path, read_form
from shop.web.session_cookies import delete_session_cookies, find_refresh_token, set_session_cookies

router: Final = APIRouter(dependencies=[PUBLIC], include_in_schema=False)

_MEDIA_TYPES: Final = {"style.css": "text/css", "link.js": "text/javascript", "session.js": "text/javascript"}


async def _check_origin(request: Request) -> None:
    """Raises `CrossOrigin` (403), also for a request without cookies."""
    check_same_origin(request)


_CHECK_ORIGIN: Final[Any] = Depends(_check_origin)


@router.get("/sign-in")
async def get_sign_in(request: Request, next_path: Annotated[str | None, Query(alias="next")] = None) -> Response:
    """The form, or who is signed in."""
    principal: Principal | None = find_principal(request)
    root, path = _get_root(request), check_path(next_path)
    if principal is None:
        return pages.sign_in_page(root, next_path=path)
    return pages.signed_in_page(root, role=principal.role, next_path=path)


@router.post("/sign-in", dependencies=[_CHECK_ORIGIN])
async def post_sign_in(request: Request, identity: CurrentIdentity, client: CurrentClient) -> Response:
    """Sign in with the fields of the form. Every error is shown on the same page."""
    form = await read_form(request)
    root, path, email = _get_root(request), check_path(form.get("next")), form.get("email", "")
    try:
        signed_in = await sign_in(
            identity,
            email=email,
            password=form.get("password", ""),
            code=form.get("code", "").replace(" ", "") or None,
            client=client,
        )
    except EnrolmentRequired as error:
        return pages.enrolment_page(root, token=error.token)
    except IdentityError as error:
        page = pages.sign_in_page(root, next_path=path, email=email, error=_describe(error), status=_get_status(error))
        return _with_retry_after(page, error)
    return await _redirect(request, identity, signed_in, path)


@router.get("/sign-in/link")
async def get_link(request: Request) -> Response:
    """The page of a one-time link, whose fragment is the token. It uses nothing up."""
    return pages.link_page(_get_root(request))


@router.post("/sign-in/link", dependencies=[_CHECK_ORIGIN])
async def post_link(request: Request, identity: CurrentIdentity, client: CurrentClient) -> Response:
    """Exchange the one-time token for a session."""
    token = (await read_form(request)).get("token", "")
    try:
        signed_in = await sign_in_once(identity, token.strip(), client)
    except InvalidToken as error:
        return pages.link_page(_get_root(request), error=str(error), status=HTTPStatus.UNAUTHORIZED)
    return await _redirect(request, identity, signed_in, DEFAULT_PATH)


@router.post("/sign-in/refresh", dependencies=[_CHECK_ORIGIN])
async def post_refresh(request: Request, identity: CurrentIdentity, client: CurrentClient) -> Response:
    """Renew the cookies. The answer is 200 without a session, too, because a page asks whether there is one."""
    token = find_refresh_token(request)
    try:
        if token is None:
            raise InvalidRefreshToken
        signed_in = await refresh(identity, token, client)
    except InvalidRefreshToken:
        response = JSONResponse({"is_signed_in": False})
        delete_session_cookies(response)
        return response
    response = JSONResponse(
        {"is_signed_in": True, "role": signed_in.principal.role, "expires_in": signed_in.expires_in}
    )
    _set_cookies(response, signed_in)
    return response


@router.post("/sign-out", dependencies=[_CHECK_ORIGIN])
async def post_sign_out(request: Request, identity: CurrentIdentity, client: CurrentClient) -> Response:
    """End the session, and delete the cookies."""
    await _end_session(request, identity, client)
    response = pages.signed_out_page(_get_root(request))
    delete_session_cookies(response)
    response.headers["Clear-Site-Data"] = '"storage"'
    return response


for name, media_type in _MEDIA_TYPES.items():

    async def get_file(name: str = name, media_type: str = media_type) -> Response: ...
