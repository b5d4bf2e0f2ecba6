"""A primary server and a standby that streams from it, in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from howdah.embedded import EmbeddedPostgres
from howdah.embedded.programs import runnable_programs, server_user, wheel_folder
from howdah_tests.support.embedded_servers import open_folder, query, socket_dir_of


@dataclass(frozen=True, slots=True)
class Pair:
    """Both servers run. Each has a socket in its own directory."""

    primary: EmbeddedPostgres
    standby: EmbeddedPostgres

    def url(self, database: str = "postgres", *, attributes: str = "target_session_attrs=primary") -> str:
        """A URL with both servers."""
        hosts = "&".join(f"host={socket_dir_of(each)}" for each in (self.primary, self.standby))
        return f"postgresql://postgres@/{database}?{hosts}&{attributes}"

    def promote(self) -> None:
        """Promote the standby, and return when it accepts writes."""
        query(self.standby, "SELECT pg_promote(true, 10)")


@contextlib.contextmanager
def open_pair(version: int | None = None, *, tables: str = "") -> Iterator[Pair]:
    """Start both servers. The standby is a copy of the primary made by pg_basebackup.

    `tables` is a statement that creates tables on the primary before it is copied, so the standby has them at once.
    """
    with open_folder() as folder:
        settings = {"shared_buffers": "16MB", "fsync": "off", "wal_receiver_status_interval": "1"}
        with EmbeddedPostgres(folder / "primary", version=version, settings=settings) as primary:
            if tables:
                query(primary, tables)
            make_standby(primary, folder / "standby")
            with EmbeddedPostgres(folder / "standby", settings={**settings, "hot_standby": "on"}) as standby:
                yield Pair(primary, standby)


def make_standby(primary: EmbeddedPostgres, data_dir: Path) -> None:
    """Copy the primary's data into a new directory, as the data of its standby."""
    user, deadline = server_user(), time.monotonic() + 60
    programs = runnable_programs(user, wheel_folder(), primary.bin_dir, deadline)
    data_dir.mkdir(mode=0o700)
    os.chown(data_dir, user.uid, user.gid)
    copied = user.run(
        programs / "pg_basebackup",
        *("-h", socket_dir_of(primary), "-U", "postgres", "-D", data_dir),
        *("--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--wal-method=stream"),
        deadline=deadline,
    )
    assert copied.returncode == 0, copied.stderr
