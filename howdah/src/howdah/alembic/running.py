"""Run a coroutine to its end, whether an event loop is running or not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


def run_blocking(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run `work` in an event loop of its own, and return its result. Blocks.

    If this thread has a running event loop, the new one runs in another thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(copy_context().run, asyncio.run, work).result()
