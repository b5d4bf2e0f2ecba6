"""`ETag` and `If-Match` (RFC 9110, section 13.1.1) for the `version` of a row.

@router.patch("/users/{user_id}")
async def change_user(user_id: UUID, body: UserChange, db: DbSession, if_match: RequiredIfMatch) -> User:
    user = (await lock(db, User, [user_id]))[user_id]
    check_if_match(if_match, user.version)
    ...
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends, Header
from starlette.requests import HTTPConnection

from howdah.fastapi.problem import ProblemException

NOT_MODIFIED: Final[dict[int | str, dict[str, Any]]] = {
    int(HTTPStatus.NOT_MODIFIED): {"description": "`If-None-Match` has the current `ETag`"}
}


class PreconditionRequired(ProblemException):
    """A change was sent without `If-Match` (428, `precondition-required`)."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.PRECONDITION_REQUIRED,
            "precondition-required",
            "a change needs the header If-Match: send the ETag of the version that the change is based on, or *",
        )


class PreconditionFailed(ProblemException):
    """The row has changed since the version that `If-Match` names (412, `precondition-failed`)."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.PRECONDITION_FAILED,
            "precondition-failed",
            "the row has changed since the version that If-Match names: read it again",
        )


async def get_if_match(
    connection: HTTPConnection,
    if_match: Annotated[
        str | None, Header(alias="If-Match", description="The ETag that the change is based on", examples=['"1"'])
    ] = None,
) -> str | None:
    """The value of `If-Match`. Several of these headers are one list (RFC 9110, section 5.3)."""
    return None if if_match is None else ", ".join(connection.headers.getlist("if-match"))


async def require_if_match(if_match: Annotated[str | None, Depends(get_if_match)]) -> str:
    """The value of `If-Match`. Raises `PreconditionRequired` if it wasn't sent."""
    if if_match is None:
        raise PreconditionRequired
    return if_match


IfMatch = Annotated[str | None, Depends(get_if_match)]
RequiredIfMatch = Annotated[str, Depends(require_if_match)]


def make_etag(*versions: int) -> str:
    """An `ETag` of one or more versions. `check_if_match` compares only the first one."""
    return f'"{"-".join(map(str, versions))}"'


def check_if_match(if_match: str | None, version: int) -> None:
    """Raise `PreconditionFailed` unless `if_match` names this version, is `*`, or is None (see `RequiredIfMatch`).

    Lock the row before this call. Otherwise another transaction may change it between the check and the change.

    A tag of several versions, such as `"7-3"`, names the first one. The tag of a `JsonView` has further parts, because
    nested rows may change although the version of the row doesn't.
    """
    if if_match is None or if_match.strip() == "*":
        return
    if not any(_has_version(tag.strip(), version) for tag in if_match.split(",")):
        raise PreconditionFailed


def _has_version(tag: str, version: int) -> bool:
    return tag == make_etag(version) or (tag.startswith(f'"{version}-') and len(tag) > 1 and tag.endswith('"'))
