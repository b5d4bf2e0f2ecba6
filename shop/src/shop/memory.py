"""Python's garbage collector: what it needn't look at, and how often it needn't look."""

from __future__ import annotations

import gc
from typing import Final

# New objects that outlive their references, before the youngest are looked at; and how many times the younger ones are,
# before the older are. Python's own: 700, 10, 10.
_SELDOM: Final = (25_000, 20, 20)


def settle() -> None:
    """Exempt what is loaded by now, some hundred thousand objects that stay, from every collection to come.

    For a process that has started and begins its work: a collection of the oldest objects takes a twenty-fifth of a
    second otherwise, again and again. What is garbage at this moment is collected first.
    """
    gc.collect()
    gc.freeze()


def collect_seldom() -> None:
    """For a process that serves: a request makes hundreds of objects that are all gone when it is answered, nearly none
    of them in a cycle, so that Python's own thresholds look for garbage every few requests and find none."""
    gc.set_threshold(*_SELDOM)
