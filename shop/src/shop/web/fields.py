"""What the schemas' fields share."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

# PostgreSQL's text holds every character but NUL.
STORABLE: Final = r"^[^\x00]*$"
EXAMPLE_ID: Final = "01977f1e-7c3a-7000-8000-000000000000"
OTHER_EXAMPLE_ID: Final = "01977f1e-7c3a-7000-8000-000000000001"


class ExportFormat(StrEnum):
    """How an export is written. A parameter says it, not `Accept`, so that a link can be kept and opened in a browser,
    and a mistake is refused like that in any other parameter."""

    NDJSON = "ndjson"
    CSV = "csv"
