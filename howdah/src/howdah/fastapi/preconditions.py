"""`ETag`, `If-Match` and `If-None-Match` (RFC 9110, sections 13.1.1 and 13.1.2) for the `version` of a row.

@router.patch("/users/{user_id}")
async def change_user(user_id: UUID, body: UserChange, db: DbSession, if_match: RequiredIfMatch) -> User:
    user = (await lock(db, User, [user_id]))[user_id]
    if_match.check(user.version)
    ...

@router.get("/users/{user_id}", responses=NOT_MODIFIED)
async def get_user(user_id: UUID, db: ReadDbSession, if_none_match: IfNoneMatch) -> User:
    user = await AsyncRepository(db, User).get_one(user_id)
    if_none_match.check(make_etag(user.version))
    return user
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Response
from starlette.exceptions import HTTPException
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


class Precondition:
    """The `If-Match` of a request. `IfMatch` and `RequiredIfMatch` are dependencies that return it."""

    def __init__(self, if_match: str | None, *, required: bool) -> None:
        self._if_match = if_match
        self._required = required

    def check(self, version: int) -> None:
        """Raise `PreconditionFailed` if the header was sent, isn't `*`, and doesn't name this version.

        If it wasn't sent, `RequiredIfMatch` raises `PreconditionRequired`. Lock the row before the check. Otherwise
        another transaction may change it between the check and the change.

        If a tag has several versions, such as `"7-3"`, only the first one is compared. The tag of a `JsonView` has
        further parts, because nested rows may change although the version of the row doesn't.
        """
        if self._if_match is None:
            if self._required:
                raise PreconditionRequired
            return
        tags = [tag.strip() for tag in self._if_match.split(",")]
        if tags != ["*"] and not any(_has_version(tag, version) for tag in tags):
            raise PreconditionFailed


class NotModified(HTTPException):
    """`If-None-Match` has the current `ETag` (304, without a body)."""

    def __init__(self, etag: str) -> None:
        super().__init__(HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})


class CacheCondition:
    """The `If-None-Match` of a request. `IfNoneMatch` is a dependency that returns it."""

    def __init__(self, if_none_match: str | None, response: Response) -> None:
        self._if_none_match = if_none_match
        self._response = response

    def check(self, etag: str) -> None:
        """Set the header `ETag` of the response. Raise `NotModified` if `If-None-Match` has this tag, or is `*`.

        The tag must change whenever the response changes. If the response has only one row, its version is such a tag.
        If the response has several rows, pass all their versions: `make_etag(7, 3)`. The tag of a `JsonView` has a
        digest of the response, and `json_response` compares it.
        """
        if has_tag(self._if_none_match, etag):
            raise NotModified(etag)
        self._response.headers["ETag"] = etag


_header = Header(alias="If-Match", description="The ETag that the change is based on", examples=['"1"'])


async def get_if_match(connection: HTTPConnection, if_match: Annotated[str | None, _header] = None) -> Precondition:
    """The precondition of a request that may have one."""
    return Precondition(_join(connection, if_match), required=False)


async def get_required_if_match(
    connection: HTTPConnection, if_match: Annotated[str | None, _header] = None
) -> Precondition:
    """The precondition of a request that must have one.

    A missing header raises an error in `check`, not here. So a row that doesn't exist is a 404.
    """
    return Precondition(_join(connection, if_match), required=True)


async def get_if_none_match(
    connection: HTTPConnection,
    response: Response,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="The ETag that the client has", examples=['"1"'])
    ] = None,
) -> CacheCondition:
    """The condition of a request whose response the client may have already."""
    joined = None if if_none_match is None else ",".join(connection.headers.getlist("if-none-match"))
    return CacheCondition(joined, response)


IfNoneMatch = Annotated[CacheCondition, Depends(get_if_none_match)]
IfMatch = Annotated[Precondition, Depends(get_if_match)]
RequiredIfMatch = Annotated[Precondition, Depends(get_required_if_match)]


def make_etag(*versions: int) -> str:
    """An `ETag` of one or more versions. `Precondition.check` compares only the first one."""
    return f'"{"-".join(map(str, versions))}"'


def has_tag(if_none_match: str | None, etag: str) -> bool:
    """Whether the header is `*` or has this tag, by the weak comparison of RFC 9110, section 13.1.2."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))


def _join(connection: HTTPConnection, if_match: str | None) -> str | None:
    """Join repeated headers, which are one list (RFC 9110, section 5.3)."""
    return None if if_match is None else ", ".join(connection.headers.getlist("if-match"))


def _has_version(tag: str, version: int) -> bool:
    return tag == make_etag(version) or (tag.startswith(f'"{version}-') and len(tag) > 1 and tag.endswith('"'))
