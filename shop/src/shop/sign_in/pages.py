"""The HTML of the pages. Every value is escaped."""

from __future__ import annotations

from html import escape
from http import HTTPStatus
from typing import Final

from starlette.responses import HTMLResponse

# No script of a page may run, except the one file of the page for one-time links.
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_POLICY_WITH_SCRIPT: Final = f"{_POLICY}; script-src 'self'"

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{root}/sign-in/style.css">
</head>
<body>
<main>
<h1>{title}</h1>
{content}
</main>
{script}
</body>
</html>
"""

_SIGN_IN: Final = """\
<form method="post" action="{root}/sign-in">
<input type="hidden" name="next" value="{next}">
<label for="email">E-mail address</label>
<input id="email" name="email" type="email" value="{email}" autocomplete="username" required maxlength="255">
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required maxlength="1024">
<label for="code">Code</label>
<input id="code" name="code" autocomplete="one-time-code" maxlength="64" aria-describedby="code-help">
<small id="code-help">Of your authenticator app, or a recovery code. Leave it empty if you have none.</small>
<button>Sign in</button>
</form>"""

_LINK: Final = """\
<form method="post" action="{root}/sign-in/link">
<div id="token-field">
<label for="token">One-time token</label>
<input id="token" name="token" autocomplete="off" required maxlength="255">
</div>
<button>Sign in</button>
</form>"""

_SIGNED_IN: Final = """\
<p>You are signed in as {role}.</p>
<p><a href="{next}">Continue</a></p>
<form method="post" action="{root}/sign-out"><button>Sign out</button></form>"""

_ENROLMENT: Final = """\
<p>The role of your account needs an authenticator app.</p>
<form method="post" action="{root}/sign-in/authenticator">
<input type="hidden" name="token" value="{token}">
<button>Set up an authenticator app</button>
</form>"""


def sign_in_page(root: str, *, next_path: str, email: str = "", error: str | None = None, status: int = 200) -> HTMLResponse:
    """The form. After an error it keeps the address, but not the password."""
    content = _describe(error) + _SIGN_IN.format(root=escape(root), next=escape(next_path), email=escape(email))
    return _render(root, "Sign in to Shop", content, status=status)


def link_page(root: str, *, error: str | None = None, status: int = 200) -> HTMLResponse:
    """The page of a one-time link. Its button uses the token, because programs that check links only GET it."""
    return _render(
        root, "Sign in to Shop", _describe(error) + _LINK.format(root=escape(root)), status=status, script="link.js"
    )


def signed_in_page(root: str, *, role: str, next_path: str) -> HTMLResponse:
    content = _SIGNED_IN.format(root=escape(root), role=escape(role), next=escape(root + next_path))
    return _render(root, "Shop", content)


def signed_out_page(root: str) -> HTMLResponse:
    return _render(root, "Signed out", f'<p><a href="{escape(root)}/sign-in">Sign in</a></p>')


def _describe(error: str | None) -> str:
    return "" if error is None else f'<p role="alert">{escape(error)}</p>\n'


def _render(
    root: str, title: str, content: str, *, status: int = HTTPStatus.OK, script: str | None = None
) -> HTMLResponse:
    element = "" if script is None else f'<script src="{escape(root)}/sign-in/{script}"></script>'
    page = _PAGE.format(root=escape(root), title=escape(title), content=content, script=element)
    policy = _POLICY if script is None else _POLICY_WITH_SCRIPT
    return HTMLResponse(page, status, headers={"Content-Security-Policy": policy})
