"""Serve an application with uvicorn, with limits for every connection, and a stop that drains.

if __name__ == "__main__":
    serve(create_app(), port=8000)

`serve` needs the extra `howdah[serving]`. The other names need no server, so `howdah.fastapi` uses them with any.
"""

from __future__ import annotations

from howdah.serving.draining import is_draining
from howdah.serving.limits import ServerLimits
from howdah.serving.running import CannotListen, bind_socket, serve

__all__ = ["CannotListen", "ServerLimits", "bind_socket", "is_draining", "serve"]
