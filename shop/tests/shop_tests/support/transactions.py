"""Transactions that run at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


def in_own_transaction(work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
    """Run the work in a task that doesn't join the transaction of the current one."""
    return asyncio.create_task(work, context=Context())
