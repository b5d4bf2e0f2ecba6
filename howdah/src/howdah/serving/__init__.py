"""Serve an application with uvicorn. Every connection has limits, and a stop drains the connections.

if __name__ == "__main__":
    serve(create_app(), port=8000)

`serve` needs the extra `howdah[serving]`. The other names work with any server.
"""

from __future__ import annotations

from howdah.serving.draining import is_draining
from howdah.serving.limits import ServerLimits
from howdah.serving.running import CannotListen, bind_socket, serve

__all__ = ["CannotListen", "ServerLimits", "bind_socket", "is_draining", "serve"]
