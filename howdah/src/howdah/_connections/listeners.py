"""The application's event listeners, as opposed to those that only measure or trace.

A listener of the application may set something on a connection that is for one caller only, for example the tenant of
row-level security. Then a connection can't be shared between callers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

# Packages whose listeners only measure and trace, and modules of this library. They set nothing for a caller.
_OBSERVERS: Final = frozenset({"ddtrace", "elasticapm", "newrelic", "opentelemetry", "sentry_sdk"})
_OWN_MODULES: Final = frozenset(
    {"howdah._connections.aborted_transactions", "howdah._connections.settings", "howdah.testing", "howdah.tracing"}
)


class ListenerCheck:
    """Finds the application's listeners.

    Each engine has its own check. A cache for all engines would keep the listeners alive, and with them the engines
    that they refer to.
    """

    def __init__(self) -> None:
        # The results are cached, because the check is made several times for each read.
        self._includes_application_listener = lru_cache(maxsize=64)(_includes_application_listener)

    def has_application_listener(self, *events: Any) -> bool:
        """Whether a listener of these events may set something for a caller. An event is an attribute of `dispatch`."""
        for listeners in events:
            # faster than `if listeners`, which calls a method of SQLAlchemy
            if (listeners.listeners or listeners.parent_listeners) and self._includes_application_listener(
                tuple(listeners)
            ):
                return True
        return False


def _includes_application_listener(listeners: tuple[Callable[..., Any], ...]) -> bool:
    return not all(map(_is_observer, listeners))


def _is_observer(listener: Any) -> bool:
    function = inspect.unwrap(listener)
    module = str(getattr(function, "__module__", ""))
    package = module.partition(".")[0]
    if package == "sqlalchemy":
        # The function is SQLAlchemy's own listener, or its wrapper of a listener. The closure of a wrapper
        # contains the listener.
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        return all(_is_observer(content) for content in cells if inspect.isroutine(content))
    return package in _OBSERVERS or module in _OWN_MODULES
