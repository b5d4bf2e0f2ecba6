"""An application without FastAPI's telemetry, so that its direct routes are served directly."""

import inspect
from typing import Any

from fastapi import FastAPI


def create_fastapi() -> FastAPI:
    """FastAPI without its telemetry. A provider that another test has set would turn the telemetry on."""
    off: dict[str, Any] = {"tracing": False, "metrics": False, "logs": False}
    return FastAPI(telemetry=off) if "telemetry" in inspect.signature(FastAPI).parameters else FastAPI()  # type: ignore[arg-type]
