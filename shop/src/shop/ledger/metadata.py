"""Metadata in the order in which PostgreSQL returns it."""

from __future__ import annotations

from collections.abc import Mapping


def sort_like_jsonb(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata in the order of PostgreSQL's jsonb, shorter names first. So the first response to a request, its
    replay and a later read have the same bytes."""
    return dict(sorted(metadata.items(), key=lambda item: (len(item[0].encode()), item[0].encode())))
