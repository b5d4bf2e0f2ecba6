"""Whether the server is about to stop. This module works without uvicorn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# The key in the state of every request, which uvicorn copies from the lifespan's state.
STOP_STATE_KEY: Final = "howdah_stop"


@dataclass(slots=True)
class StopState:
    """Whether one server is stopping. Its connections and its application share this object."""

    is_draining: bool = False
    """Whether the server closes each connection after its next response."""
    is_replaced: bool = False
    """Whether another worker process serves new connections, so that the service stays ready."""


def is_draining(scope: Mapping[str, Any]) -> bool:
    """Whether the server of this ASGI scope has been told to stop: it answers requests, but should get no new ones.

    It is always false with another server than that of `howdah.serving.serve`, and in a worker that is replaced by
    another one of the same service.
    """
    state = (scope.get("state") or {}).get(STOP_STATE_KEY)
    return isinstance(state, StopState) and state.is_draining and not state.is_replaced
