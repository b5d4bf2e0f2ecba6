"""Keys that the server and an application of `howdah.fastapi` share. This module works without uvicorn."""

from __future__ import annotations

from typing import Final

ADMIT_KEY: Final = "howdah_admit"
"""The key in the lifespan's state for the `RequestsInProgress`, whose `reject` and `admit` the server calls."""

REQUEST_KEY: Final = "howdah.request_in_progress"
"""The key in the ASGI scope for the application's object whose `handle_disconnect` cancels the request."""

REPORTS_DISCONNECTS_KEY: Final = "howdah.reports_disconnects"
"""The key in the ASGI scope for a function that returns whether the connection is closing.

A server that sets it calls `handle_disconnect`. So the application needn't watch for the disconnect itself.
"""

METRICS_KEY: Final = "howdah_metrics"
"""The key in the lifespan's state for the application's `MetricsSource`, which a worker process reads."""

WORKERS_KEY: Final = "howdah_workers"
"""The key in the lifespan's state for the server's object whose `collect` returns the metrics of all workers."""
