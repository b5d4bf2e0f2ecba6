"""Bodies that are forms of browsers or of OAuth 2.0 (`application/x-www-form-urlencoded`)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from fastapi import Request

from howdah.fastapi import ProblemException, UnsupportedMediaType

FORM: Final = "application/x-www-form-urlencoded"

_MAX_FIELDS: Final = 20


class InvalidForm(ProblemException):
    """The body isn't a form, or a field is repeated (400, `invalid-form`)."""

    def __init__(self, reason: str) -> None:
        super().__init__(HTTPStatus.BAD_REQUEST, "invalid-form", reason)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of the body. Raises `UnsupportedMediaType` (415) and `InvalidForm` (400)."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != FORM:
        raise UnsupportedMediaType(FORM)
    try:
        fields = parse_qsl(
            (await request.body()).decode(),
            keep_blank_values=True,
            strict_parsing=True,
            max_num_fields=_MAX_FIELDS,
            errors="strict",
        )
    except ValueError as error:  # its text may have the password
        raise InvalidForm("the body isn't a form in UTF-8") from error
    form = dict(fields)
    if len(form) < len(fields):
        raise InvalidForm("a field is repeated: send each field once")
    return form
