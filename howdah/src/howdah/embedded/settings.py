"""The server's settings, and the directory of its socket."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from howdah.errors import EmbeddedPostgresError

# They are passed on the command line at each start. So an existing data directory gets the settings of the current
# version of this library.
DEFAULT_SETTINGS: Mapping[str, str] = {
    "checkpoint_timeout": "15min",
    "jit": "off",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "max_connections": "200",
    "max_wal_size": "4GB",
    "random_page_cost": "1.1",
    "shared_buffers": "256MB",
    "timezone": "UTC",
    "wal_compression": "on",
}

SOCKET: Final = ".s.PGSQL.5432"
# The size of `sun_path` without its NUL: 103 on macOS, 107 on Linux.
_SOCKET_PATH_BYTES: Final = 103
# PostgreSQL reads the directories of sockets from a list with separators, and drivers read them from a URL. These
# characters have no special meaning in either.
_PLAIN_PATH: Final = re.compile(r"[\w/. +@-]+", re.ASCII)


def server_settings(data_dir: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """All settings of the server. Raises `EmbeddedPostgresError` if `settings` has one that can't be changed."""
    own = {
        "cluster_name": cluster_name(data_dir),  # PostgreSQL shows it in the titles of its processes
        "data_directory": str(data_dir),
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(socket_dir(data_dir)),
        "unix_socket_permissions": "0700",
    }
    for name in settings:
        if name.lower().replace("-", "_") in own:
            raise EmbeddedPostgresError(
                f"the setting {name} was rejected: the embedded server listens on its own socket only, so remove it"
            )
    return {**DEFAULT_SETTINGS, **settings, **own}


def cluster_name(data_dir: Path) -> str:
    """A name for the server of this data directory. It identifies processes that a killed server has left."""
    return f"howdah-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]}"


def socket_dir(data_dir: Path) -> Path:
    """The data directory, or a directory with a shorter path if the data directory's path can't hold a socket."""
    path = os.fsencode(data_dir / SOCKET)
    is_usable = len(path) <= _SOCKET_PATH_BYTES and bool(_PLAIN_PATH.fullmatch(str(data_dir)))
    return data_dir if is_usable else short_dir(data_dir)


def short_dir(data_dir: Path) -> Path:
    # Not in tempfile's directory: on macOS its path is long, and the user that runs the server for root can't enter it.
    return Path("/tmp") / cluster_name(data_dir)  # noqa: S108  # its owner and mode are checked before use
