"""The data directory: where it lies by default, what it holds, who may use it, and how it is made."""

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

with contextlib.suppress(ImportError):  # of the extra; wheel_folder() says so when it is missing
    import platformdirs

DEFAULT_VERSION = 18

_logger = logging.getLogger("howdah.embedded")


def default_data_dir(version: int = DEFAULT_VERSION) -> Path:
    """`howdah/postgresql-18` in the user's data folder; for root, whose home the server can't enter, in /var/lib."""
    if sys.platform != "win32" and os.geteuid() == 0:
        return ROOT_HOME / f"postgresql-{version}"
    wheel_folder()
    return platformdirs.user_data_path("howdah", appauthor=False) / f"postgresql-{version}"


def beside(data_dir: Path, kind: str) -> Path:
    return data_dir.with_name(f".{data_dir.name}.{kind}")


def data_version(data_dir: Path) -> int | None:
    try:
        return int((data_dir / "PG_VERSION").read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise EmbeddedPostgresError(f"{data_dir} is damaged: its PG_VERSION doesn't name a version") from None


def check_version(data_dir: Path, version: int, wheel: Path) -> None:
    shipped = [v for v, folder in WHEEL_FOLDERS.items() if (wheel / folder / "bin" / "postgres").exists()]
    found = data_version(data_dir)
    if found not in {None, version}:
        raise EmbeddedPostgresError(
            f"{data_dir} holds data of PostgreSQL {found}, and {version} is wanted: leave the version "
            "out, name another data directory, or dump the data and restore it into a new one"
        )
    if version not in shipped:
        choice = " and ".join(map(str, shipped)) or "none"
        raise EmbeddedPostgresError(
            f"PostgreSQL {version} is wanted{f' for the data in {data_dir}' if found else ''}, and the "
            f"wheel ships {choice}: name one of these, with a data directory of its own"
        )


def check_data_dir(data_dir: Path, user: ServerUser) -> None:
    if not data_dir.exists():
        return
    owner = data_dir.stat().st_uid
    empty = next(data_dir.iterdir(), None) is None
    if not (owner == user.uid or (empty and owner == os.geteuid())):
        raise EmbeddedPostgresError(
            f"{data_dir} belongs to the user {user_name(owner)}, and PostgreSQL would run as "
            f"{user_name(user.uid)}: name another data directory, or start it as its owner"
        )
    if not empty and data_version(data_dir) is None:
        raise EmbeddedPostgresError(f"{data_dir} holds files, but no PostgreSQL data: name a new folder")


def initialise(data_dir: Path, version: int, user: ServerUser, programs: Path, deadline: float) -> None:
    """Makes the data directory beside its place and moves it there whole: no start ever meets half of one."""
    parent, prefix = data_dir.parent, beside(data_dir, "initdb-").name
    for remains in parent.iterdir():
        if remains.name.startswith(prefix) and remains.lstat().st_uid in {user.uid, os.geteuid()}:
            shutil.rmtree(remains, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        os.chown(fresh, user.uid, user.gid)
        made = user.run(programs / "initdb", "-D", fresh, *initdb_options(version), deadline=deadline)
        if made.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed for {data_dir}:\n{made.stderr.strip()}")
        try:
            fresh.rename(data_dir)
        except OSError as error:
            hint = "if it is a mount point, name a folder inside it"
            raise EmbeddedPostgresError(f"{data_dir} can't be made ({error.strerror}); {hint}") from error
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
