"""Debian's PgBouncer in front of a server, in transaction mode."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

PROGRAM: Final = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

SERVER_CONNECTIONS: Final = 3


@contextmanager
def run_pgbouncer(url: str) -> Iterator[str]:
    """The URL of a pooler that shares three connections to the server among all its clients."""
    assert PROGRAM is not None
    target = make_url(url)
    directory = str(target.query.get("host", "")) or None
    host = directory or target.host or "127.0.0.1"
    login = f" user={target.username}" + (f" password={target.password}" if target.password else "")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="howdah-test-", dir="/tmp"))
    owner = os.stat(directory).st_uid if directory else os.getuid()  # PgBouncer doesn't run as root
    try:
        config = folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n"
            f"{target.database} = host={host} port={target.port or 5432} dbname={target.database}{login}\n"
            f"[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {SERVER_CONNECTIONS}\nmax_client_conn = 200\n"
        )
        folder.chmod(0o755)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([PROGRAM, str(config)], stdout=log, stderr=log, user=owner)
        try:
            _wait_for(port, process, folder / "log")
            yield f"postgresql://{target.username or 'postgres'}@127.0.0.1:{port}/{target.database}"
        finally:
            process.terminate()
            process.wait(10)
    finally:
        shutil.rmtree(folder)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 10
    while True:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"pgbouncer didn't start: {log.read_text()}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
