"""`ETag` and `If-Match` (RFC 9110, section 13.1.1) from a row's `version`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from shop.web.errors import PreconditionFailed, PreconditionMissing

CACHED: Final[dict[int | str, dict[str, Any]]] = {
    int(HTTPStatus.NOT_MODIFIED): {"description": "`If-None-Match` has the current `ETag`"}
}


def etag(*versions: int) -> str:
    """An `ETag` of one or more versions. `require_match` compares only the first one."""
    return f'"{"-".join(map(str, versions))}"'


def require_match(if_match: str | None, version: int) -> None:
    """Raise `PreconditionMissing` or `PreconditionFailed` unless the header names this version, or `*`.

    A tag of several versions, `"7-…"`, names the first one. The tag of a view has further ones because nested rows may
    change, and that of an account because transfers change the balance.
    """
    if if_match is None:
        raise PreconditionMissing
    if if_match.strip() != "*" and not any(_has_version(tag.strip(), version) for tag in if_match.split(",")):
        raise PreconditionFailed


def _has_version(tag: str, version: int) -> bool:
    return tag == etag(version) or (tag.startswith(f'"{version}-') and len(tag) > 1 and tag.endswith('"'))
