"""Metadata as PostgreSQL returns it."""

from __future__ import annotations

from collections.abc import Mapping


def in_jsonb_order(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata in the order of PostgreSQL's jsonb, shorter names first. So the first answer to a request, its
    replay and a later read are the same to the byte."""
    return dict(sorted(metadata.items(), key=lambda item: (len(item[0].encode()), item[0].encode())))
