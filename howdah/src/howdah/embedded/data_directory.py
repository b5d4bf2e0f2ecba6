"""The data directory: its default path, its version, its owner, and how it is created."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from howdah.embedded.programs import (
    ROOT_HOME,
    WHEEL_FOLDERS,
    ServerUser,
    initdb_options,
    user_name,
    wheel_folder,
)
from howdah.errors import EmbeddedPostgresError

with contextlib.suppress(ImportError):  # without the extra; wheel_folder() then raises an error that names it
    import platformdirs

DEFAULT_VERSION = 18

_logger = logging.getLogger("howdah.embedded")


def default_data_dir(version: int = DEFAULT_VERSION) -> Path:
    """`howdah/postgresql-18` in the user's data directory. For root it is in /var/lib/howdah.

    The server doesn't run as root, and its user can't enter root's home directory.
    """
    if sys.platform != "win32" and os.geteuid() == 0:
        return ROOT_HOME / f"postgresql-{version}"
    wheel_folder()
    return platformdirs.user_data_path("howdah", appauthor=False) / f"postgresql-{version}"


def sibling(data_dir: Path, kind: str) -> Path:
    """A hidden path next to the data directory."""
    return data_dir.with_name(f".{data_dir.name}.{kind}")


def data_version(data_dir: Path) -> int | None:
    """PostgreSQL's major version of the data; None without data."""
    try:
        return int((data_dir / "PG_VERSION").read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise EmbeddedPostgresError(f"{data_dir} is damaged: its PG_VERSION doesn't name a version") from None


def check_version(data_dir: Path, version: int, wheel: Path) -> None:
    """Raise `EmbeddedPostgresError` if the data has another version, or if the wheel doesn't have this one."""
    shipped = [v for v, folder in WHEEL_FOLDERS.items() if (wheel / folder / "bin" / "postgres").exists()]
    found = data_version(data_dir)
    if found not in {None, version}:
        raise EmbeddedPostgresError(
            f"{data_dir} has data of PostgreSQL {found}, but version={version} was requested: omit the version, use "
            "another data directory, or dump the data and restore it into a new one"
        )
    if version not in shipped:
        choice = " and ".join(map(str, shipped)) or "none"
        raise EmbeddedPostgresError(
            f"PostgreSQL {version} was requested{f' for the data in {data_dir}' if found else ''}, but the wheel has "
            f"{choice}: request one of these, with its own data directory"
        )


def check_data_dir(data_dir: Path, user: ServerUser) -> None:
    """Raise `EmbeddedPostgresError` if the directory belongs to another user, or has other files."""
    if not data_dir.exists():
        return
    owner = data_dir.stat().st_uid
    empty = next(data_dir.iterdir(), None) is None
    if not (owner == user.uid or (empty and owner == os.geteuid())):
        raise EmbeddedPostgresError(
            f"{data_dir} belongs to the user {user_name(owner)}, but PostgreSQL would run as {user_name(user.uid)}: "
            "use another data directory, or start the server as the owner"
        )
    if not empty and data_version(data_dir) is None:
        raise EmbeddedPostgresError(f"{data_dir} has files, but no PostgreSQL data: use a new directory")


def initialise(data_dir: Path, version: int, user: ServerUser, programs: Path, deadline: float) -> None:
    """Create the data directory under another name, then rename it: a start never finds an incomplete one."""
    parent, prefix = data_dir.parent, sibling(data_dir, "initdb-").name
    for leftover in parent.iterdir():
        if leftover.name.startswith(prefix) and leftover.lstat().st_uid in {user.uid, os.geteuid()}:
            shutil.rmtree(leftover, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        os.chown(fresh, user.uid, user.gid)
        created = user.run(programs / "initdb", "-D", fresh, *initdb_options(version), deadline=deadline)
        if created.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed for {data_dir}:\n{created.stderr.strip()}")
        try:
            fresh.rename(data_dir)
        except OSError as error:
            hint = "if it is a mount point, use a directory inside it"
            raise EmbeddedPostgresError(f"{data_dir} can't be created ({error.strerror}); {hint}") from error
        _sync_folder(parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _logger.info("initialised a data directory of PostgreSQL %d at %s", version, data_dir)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
