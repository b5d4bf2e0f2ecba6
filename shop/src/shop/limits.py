"""Limits of stored values, for the schemas of requests and for the validation of the ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

# Lengths in characters, except `MAX_METADATA`, which is a number of names.
MAX_DESCRIPTION: Final = 500
MAX_METADATA: Final = 50
MAX_METADATA_NAME: Final = 40
MAX_METADATA_VALUE: Final = 500

# A time outside of these limits is before year 1 or after year 9999 in some time zone, or is PostgreSQL's infinity.
EARLIEST: Final = datetime(1, 1, 2, tzinfo=UTC)
LATEST: Final = datetime(9999, 12, 30, tzinfo=UTC)
