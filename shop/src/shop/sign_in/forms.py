"""Forms that a browser sends, and the paths to which it is redirected."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from fastapi import Request

from howdah.fastapi import ProblemException, UnsupportedMediaType

_FORM: Final = "application/x-www-form-urlencoded"
_MAX_FIELDS: Final = 10
# A path of this service. `//host` and `/\host` would be other hosts, and browsers ignore tabs and line ends in a URL.
_LOCAL_PATH: Final = re.compile(r"/(?![/\\])[!-\[\]-~]{0,500}", re.ASCII)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of the body. Raises `UnsupportedMediaType` (415), and a 400 for a body that isn't a form."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _FORM:
        raise UnsupportedMediaType(_FORM)
    try:
        pairs = parse_qsl(
            (await request.body()).decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError as error:
        raise ProblemException(HTTPStatus.BAD_REQUEST, "invalid-form", "the body is not a form in UTF-8") from error
    return dict(pairs)


def check_path(path: str | None, *, default: str) -> str:
    """The path, if it is one of this service, otherwise the default.

    Otherwise a link could redirect people to a forged page after the sign-in.
    """
    return path if path is not None and _LOCAL_PATH.fullmatch(path) else default
