"""`ETag` and `If-Match` (RFC 9110, section 13.1.1) from a row's `version`."""

from __future__ import annotations

from shop.web.errors import PreconditionFailed, PreconditionMissing


def etag(version: int) -> str:
    return f'"{version}"'


def require_match(if_match: str | None, version: int) -> None:
    """Raise `PreconditionMissing` or `PreconditionFailed` unless the header names this version, or `*`."""
    if if_match is None:
        raise PreconditionMissing
    if if_match.strip() != "*" and etag(version) not in (tag.strip() for tag in if_match.split(",")):
        raise PreconditionFailed
