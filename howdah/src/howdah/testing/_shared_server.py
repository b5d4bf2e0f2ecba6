"""The embedded server that the test runs of a user share. It never waits for the disk."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from howdah.embedded import EmbeddedPostgres

# Without fsync, `full_page_writes` has no use: both protect the data in a crash of the machine. The WAL may be in
# memory, so it stays small. Without autovacuum, statistics and plans change only if a test runs ANALYZE. Otherwise a
# large write could become slow at any moment, after an ANALYZE of a table whose rows were all rolled back.
_SETTINGS: Final = {"autovacuum": "off", "fsync": "off", "full_page_writes": "off", "max_wal_size": "512MB"}
# The limit of the wait for another test run that starts the server. It is the default of `start_timeout`.
_START_SECONDS: Final = 60.0

_MEMORY_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - a folder of this user is created in it, and its owner is checked
_MIN_FREE_BYTES: Final = 2 << 30
_MIN_AVAILABLE_BYTES: Final = 4 << 30


@contextmanager
def open_shared_server(version: int, folder: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """Start the server, or join the test runs that use it. Its data is in the folder, by default in memory."""
    from howdah.embedded import EmbeddedPostgres, default_data_dir
    from howdah.embedded.data_directory import sibling
    from howdah.embedded.locks import hold_lock
    from howdah.embedded.programs import prepare_parent, server_user

    data_dir = (folder or find_memory_folder() or default_data_dir().parent) / f"testing-{version}"
    server = EmbeddedPostgres(data_dir, version=version, settings=_SETTINGS)
    prepare_parent(data_dir, server_user())
    with hold_lock(sibling(data_dir, "testing"), time.monotonic() + _START_SECONDS):
        # Without fsync, a crash of the machine may damage the data. A server that wasn't shut down has left its pid
        # file. Its data is deleted, because it has only the databases of tests.
        if server.pid is None and (data_dir / "postmaster.pid").exists():
            shutil.rmtree(data_dir)
        server.start()
    with server:
        yield server


def find_memory_folder(shared: Path = _MEMORY_FOLDER) -> Path | None:
    """A folder of this user in memory. None if the system has none, or if it has too little memory.

    A new database has 300 files, and a dropped one deletes them. ext4 doesn't reuse an inode for minutes after a file
    was deleted, and searches all these inodes for each new file. In a large test suite this takes 250 ms of CPU time
    per database, and 10 ms in memory.
    """
    if sys.platform != "linux":
        return None
    folder = shared / f"howdah-{os.geteuid()}"
    try:
        if not folder.exists():
            if (
                shutil.disk_usage(shared).free < _MIN_FREE_BYTES
                or psutil.virtual_memory().available < _MIN_AVAILABLE_BYTES
            ):
                return None
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)  # if root runs the tests, the user of the server must be able to enter it
        found = folder.lstat()
    except OSError:
        return None
    # another user may have created it, because everyone may write to `shared`
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & stat.S_IWOTH
    return folder if is_own else None
