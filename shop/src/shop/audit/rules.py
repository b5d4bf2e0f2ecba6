"""Who may read the audit trail. Nobody may change it."""

from __future__ import annotations

from typing import Final

from shop.web.access import staff

READ_AUDIT: Final = staff("audit:read")
