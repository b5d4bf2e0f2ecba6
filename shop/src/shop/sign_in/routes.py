"""Sign in and out with a browser.

Each POST is checked for its origin, also without a session. Otherwise another site could sign a person in to the
account of an attacker, and the person would enter data there.
"""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of local names as texts.

from contextlib import suppress
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from howdah.fastapi import PUBLIC, check_same_origin, find_principal
from shop.identity import enrolment, service
from shop.identity.clients import Client
from shop.identity.context import Identity, SignedIn
from shop.identity.dependencies import CurrentClient, CurrentIdentity
from shop.identity.errors import EnrolmentRequired, IdentityError, InvalidRefreshToken, SignInFailed
from shop.identity.principals import Principal
from shop.identity.problems import to_response
from shop.identity.revocation import CurrentRevocations, Revocations
from shop.sign_in import pages
from shop.sign_in.redirects import check_path
from shop.users.schemas import MAX_EMAIL
from shop.web.forms import read_form
from shop.web.session_cookies import delete_session_cookies, find_refresh_token, set_session_cookies


async def _check_origin(request: Request) -> None:
    """Raises `CrossOrigin` (403), also for a request without cookies."""
    check_same_origin(request)


router: Final = APIRouter(dependencies=[PUBLIC], include_in_schema=False)
_posts: Final = APIRouter(dependencies=[Depends(_check_origin)])

HAS_PUBLIC_DOCS: Final = "has_public_docs"
"""The attribute of `app.state` that tells whether `/docs` is on the port of these pages."""

_MAX_TOKEN: Final = 200


@router.get("/sign-in")
async def get_sign_in(request: Request, next_path: Annotated[str | None, Query(alias="next")] = None) -> Response:
    """The form, or the user who is signed in."""
    principal: Principal | None = find_principal(request)
    root, path = _get_root(request), check_path(next_path, default=_get_start(request))
    if principal is None:
        return pages.sign_in_page(root, next_path=path)
    return pages.signed_in_page(root, role=principal.role, next_path=path)


@_posts.post("/sign-in")
async def sign_in(
    request: Request, identity: CurrentIdentity, revocations: CurrentRevocations, client: CurrentClient
) -> Response:
    """Sign in with the fields of the form. Every error is shown on the same page."""
    form = await read_form(request)
    root, path = _get_root(request), check_path(form.get("next"), default=_get_start(request))
    email, password = form.get("email", "").strip(), form.get("password", "")
    try:
        code = form.get("code", "").replace(" ", "") or None
        signed_in = await service.sign_in(identity, email=email, password=password, code=code, client=client)
    except EnrolmentRequired as error:
        return pages.enrolment_page(root, token=error.token)
    except IdentityError as error:
        page = pages.sign_in_page(root, next_path=path, email=email[:MAX_EMAIL], error=str(error))
        return _as_error(page, error)
    return await _start_session(request, identity, revocations, client, signed_in=signed_in, path=path)


@router.get("/sign-in/link")
async def get_link(request: Request) -> Response:
    """The page of a one-time link, whose fragment is the token. The token isn't used up."""
    return pages.link_page(_get_root(request))


@_posts.post("/sign-in/link")
async def use_link(
    request: Request, identity: CurrentIdentity, revocations: CurrentRevocations, client: CurrentClient
) -> Response:
    """Exchange the one-time token for a session."""
    token = await _read_token(request)
    try:
        signed_in = await service.sign_in_once(identity, token, client)
    except IdentityError as error:
        return _as_error(pages.link_page(_get_root(request), error=str(error)), error)
    path = _get_start(request)
    return await _start_session(request, identity, revocations, client, signed_in=signed_in, path=path)


@_posts.post("/sign-in/authenticator")
async def begin_enrolment(request: Request, identity: CurrentIdentity) -> Response:
    """Show the secret for an authenticator app."""
    token = await _read_token(request)
    root = _get_root(request)
    try:
        begun = await enrolment.begin(identity, token)
    except IdentityError as error:
        return _as_error(pages.sign_in_page(root, next_path=_get_start(request), error=str(error)), error)
    return pages.secret_page(root, token=token, secret=begun.secret, uri=begun.uri)


@_posts.post("/sign-in/authenticator/code")
async def confirm_enrolment(
    request: Request, identity: CurrentIdentity, revocations: CurrentRevocations, client: CurrentClient
) -> Response:
    """Use the app from now on, and show the recovery codes."""
    form = await read_form(request)
    root, token = _get_root(request), form.get("token", "")[:_MAX_TOKEN]
    try:
        enrolled = await enrolment.confirm(
            identity, token=token, code=form.get("code", "").replace(" ", ""), client=client
        )
    except SignInFailed as error:
        return _as_error(pages.code_page(root, token=token, error=str(error)), error)
    except IdentityError as error:
        return _as_error(pages.sign_in_page(root, next_path=_get_start(request), error=str(error)), error)
    revocations.revoke(*enrolled.ended)
    page = pages.recovery_page(root, codes=enrolled.recovery_codes, next_path=_get_start(request))
    _set_cookies(page, enrolled.signed_in)
    return page


@_posts.post("/sign-in/refresh")
async def refresh(request: Request, identity: CurrentIdentity, client: CurrentClient) -> Response:
    """Renew the cookies. Without a session the response is a 200, too, because pages ask whether there is one."""
    token = find_refresh_token(request)
    try:
        if token is None:
            raise InvalidRefreshToken
        signed_in = await service.refresh(identity, token[:_MAX_TOKEN], client)
    except InvalidRefreshToken:
        response = JSONResponse({"is_signed_in": False})
        delete_session_cookies(response)
        return response
    response = JSONResponse(
        {"is_signed_in": True, "role": signed_in.principal.role, "expires_in": signed_in.expires_in}
    )
    _set_cookies(response, signed_in)
    return response


@_posts.post("/sign-out")
async def sign_out(
    request: Request, identity: CurrentIdentity, revocations: CurrentRevocations, client: CurrentClient
) -> Response:
    """End the session, and delete the cookies."""
    await _end_session(request, identity, revocations, client)
    page = pages.signed_out_page(_get_root(request))
    delete_session_cookies(page)
    page.headers["Clear-Site-Data"] = '"storage"'
    return page


def _add_file(name: str, media_type: str) -> None:
    @router.get(f"/sign-in/{name}")
    async def get_file() -> Response:
        content = (files("shop.sign_in") / name).read_bytes()
        return Response(content, headers={"Cache-Control": "private, max-age=3600"}, media_type=media_type)


_add_file("style.css", "text/css")
_add_file("link.js", "text/javascript")
_add_file("session.js", "text/javascript")

router.include_router(_posts)


async def _start_session(
    request: Request, identity: Identity, revocations: Revocations, client: Client, *, signed_in: SignedIn, path: str
) -> Response:
    """Set the cookies, and redirect to the path. A session that the browser had before ends."""
    await _end_session(request, identity, revocations, client)
    response = RedirectResponse(f"{_get_root(request)}{path}", HTTPStatus.SEE_OTHER)
    _set_cookies(response, signed_in)
    return response


async def _end_session(request: Request, identity: Identity, revocations: Revocations, client: Client) -> None:
    """End the session of the cookies, if there is one."""
    principal: Principal | None = find_principal(request)
    token = find_refresh_token(request)
    if principal is None and token is not None:  # the access token has expired
        with suppress(InvalidRefreshToken):
            principal = (await service.refresh(identity, token[:_MAX_TOKEN], client)).principal
    if principal is not None and principal.session_id is not None:
        await service.sign_out(identity, principal, client=client)
        revocations.revoke(principal.session_id)


def _set_cookies(response: Response, signed_in: SignedIn) -> None:
    set_session_cookies(
        response,
        access_token=signed_in.access_token,
        refresh_token=signed_in.refresh_token,
        expires_in=signed_in.expires_in,
    )


def _as_error(page: Response, error: IdentityError) -> Response:
    """Give the page the status and the headers of the error."""
    problem = to_response(error)
    page.status_code = problem.status_code
    for name in ("Retry-After", "WWW-Authenticate"):
        if name in problem.headers:
            page.headers[name] = problem.headers[name]
    return page


async def _read_token(request: Request) -> str:
    return (await read_form(request)).get("token", "").strip()[:_MAX_TOKEN]


def _get_start(request: Request) -> str:
    """The page that is opened after a sign-in by default: the docs, unless they are on the internal port."""
    return "/docs" if getattr(request.app.state, HAS_PUBLIC_DOCS, True) else "/sign-in"


def _get_root(request: Request) -> str:
    """The path at which the application is mounted."""
    root: Any = request.scope.get("root_path", "")
    return str(root).rstrip("/")
