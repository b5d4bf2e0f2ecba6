"""FastAPI dependencies of the ledger's routes, and of other routes that post transfers."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends

from howdah.fastapi import Resource, single_header
from shop.ledger.group_commit import Ledger
from shop.ledger.transfer_schemas import Key
from shop.web.dependencies import SYSTEM_DATABASE

ledger: Final = Resource[Ledger]("transfer", Ledger, database=SYSTEM_DATABASE)

CurrentLedger = Annotated[Ledger, Depends(ledger)]
IdempotencyKey = Annotated[str | None, single_header("Idempotency-Key", Key)]
RequiredIdempotencyKey = Annotated[str, single_header("Idempotency-Key", Key, required=True)]
"""The key is required for requests that move money, so that they can be sent again safely."""
