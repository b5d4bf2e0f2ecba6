"""FastAPI dependencies of the routes of every feature."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from howdah.fastapi import single_header

ClientId = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[\x21-\x7e]+$")]

Caller = Annotated[str, single_header("X-Client-Id", ClientId, default="")]
"""Who sent the request: the scope of its idempotency keys.

Shop has no authentication yet. The proxy in front of it must authenticate the client, set `X-Client-Id`, and remove
this header from incoming requests. Without the header, all clients share one scope.
"""
