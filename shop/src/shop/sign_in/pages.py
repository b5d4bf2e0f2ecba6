"""The HTML of the pages. Every value is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from starlette.responses import HTMLResponse

# No script may run, except the file of the page for one-time links.
_POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
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

_APP_KEY: Final = """\
<p>Enter this key into your authenticator app, or <a href="{uri}">open the app</a> on this device.</p>
<p><code id="secret">{secret}</code></p>
"""

_CODE: Final = """\
<form method="post" action="{root}/sign-in/authenticator/code">
<input type="hidden" name="token" value="{token}">
<label for="code">Code that the app shows</label>
<input id="code" name="code" autocomplete="one-time-code" inputmode="numeric" required maxlength="16">
<button>Confirm</button>
</form>"""

_RECOVERY: Final = """\
<p>If you lose the app, each of these codes signs you in once. Keep them in a safe place: they are not shown again.</p>
<ul>{codes}</ul>
<p><a href="{next}">Continue</a></p>"""


def sign_in_page(root: str, *, next_path: str, email: str = "", error: str | None = None) -> HTMLResponse:
    """The form. After an error it keeps the address, but not the password."""
    content = _describe(error) + _SIGN_IN.format(root=escape(root), next=escape(next_path), email=escape(email))
    return _render(root, "Sign in to Shop", content)


def link_page(root: str, *, error: str | None = None) -> HTMLResponse:
    """The page of a one-time link. Only its button uses the token: programs that check links don't press it."""
    return _render(root, "Sign in to Shop", _describe(error) + _LINK.format(root=escape(root)), script="link.js")


def signed_in_page(root: str, *, role: str, next_path: str) -> HTMLResponse:
    content = _SIGNED_IN.format(root=escape(root), role=escape(role), next=escape(root + next_path))
    return _render(root, "Shop", content)


def signed_out_page(root: str) -> HTMLResponse:
    return _render(root, "Signed out", f'<p><a href="{escape(root)}/sign-in">Sign in</a></p>')


def enrolment_page(root: str, *, token: str) -> HTMLResponse:
    return _render(root, "Authenticator app", _ENROLMENT.format(root=escape(root), token=escape(token)))


def secret_page(root: str, *, token: str, secret: str, uri: str) -> HTMLResponse:
    """The secret for the app, and the field for its first code."""
    content = _APP_KEY.format(secret=escape(secret), uri=escape(uri)) + _CODE.format(
        root=escape(root), token=escape(token)
    )
    return _render(root, "Authenticator app", content)


def code_page(root: str, *, token: str, error: str) -> HTMLResponse:
    """The field for the code after a wrong one. The secret isn't shown again."""
    return _render(root, "Authenticator app", _describe(error) + _CODE.format(root=escape(root), token=escape(token)))


def recovery_page(root: str, *, codes: Sequence[str], next_path: str) -> HTMLResponse:
    items = "".join(f"<li><code>{escape(each)}</code></li>" for each in codes)
    return _render(root, "Recovery codes", _RECOVERY.format(codes=items, next=escape(root + next_path)))


def _describe(error: str | None) -> str:
    return "" if error is None else f'<p role="alert">{escape(error)}</p>\n'


def _render(root: str, title: str, content: str, *, script: str | None = None) -> HTMLResponse:
    element = "" if script is None else f'<script src="{escape(root)}/sign-in/{script}"></script>'
    page = _PAGE.format(root=escape(root), title=escape(title), content=content, script=element)
    policy = _POLICY if script is None else _POLICY_WITH_SCRIPT
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})
