"""Python's garbage collector, and what it needn't look at."""

from __future__ import annotations

import gc


def settle() -> None:
    """Exempt what is loaded by now, some hundred thousand objects that stay, from every collection to come.

    For a process that has started and begins its work: a collection of the oldest objects takes a twenty-fifth of a
    second otherwise, again and again. What is garbage at this moment is collected first.
    """
    gc.collect()
    gc.freeze()
