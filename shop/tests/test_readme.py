"""The README's walk-through runs as it is printed, and has the responses that it shows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx

from howdah_tests.support.embedded_servers import open_folder

README: Final = Path(__file__).parents[2] / "README.md"
ADDRESS: Final = "127.0.0.1:8000"
START_SECONDS: Final = 40
REPLACED: Final = ("make serve", "make test")
"""Commands that the test doesn't run: it starts `shop serve` itself, which is what `make serve` does."""

# Ids, times and tokens differ in each run.
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
_TOKEN = re.compile(r"(?<![\w-])[\w-]{43}(?![\w-])")
_PRINTED_TOKEN = re.compile(r'(?:"token": "|#token=|token: )([\w-]{43})')


def mask(text: str) -> str:
    return _TOKEN.sub("…", _TIME.sub("<time>", _UUID.sub("<uuid>", text)))


def mask_json(value: Any) -> str:
    return mask(json.dumps(value, indent=2))


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the walk-through: what the service prints, or commands with the output that the README shows."""

    kind: str
    text: str

    @property
    def commands(self) -> list[tuple[str, str]]:
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        found = (re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", part, re.DOTALL) for part in parts)
        return [(each[1].strip(), each[2].strip()) for each in found if each is not None]


def read_blocks() -> list[Block]:
    section = README.read_text(encoding="utf-8").partition("\n## Try Shop\n")[2].partition("\n## ")[0]
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)]


class Shell:
    """One bash, so that a variable of one command is known to the next."""

    def __init__(self) -> None:
        self._bash = subprocess.Popen(
            [shutil.which("bash") or "bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command: str) -> str:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\necho; echo END\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        while (line := self._bash.stdout.readline()) != "END\n":
            assert line, f"bash ended during: {command}"
            lines.append(line)
        return "".join(lines).strip()

    def close(self) -> None:
        self._bash.communicate(timeout=START_SECONDS)


@dataclass(frozen=True, slots=True)
class Service:
    address: str
    console: Path

    def wait_until_ready(self) -> None:
        """It prints how to sign in just before it accepts connections."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://{self.address}/readyz").status_code == HTTPStatus.OK:
                    return
            time.sleep(0.02)
        raise TimeoutError(self.console.read_text(encoding="utf-8"))

    def wait_for(self, text: str) -> None:
        """Wait until the service has printed the text. Tokens in it may be any."""
        deadline = time.monotonic() + START_SECONDS
        while text not in mask(self.console.read_text(encoding="utf-8")):
            assert time.monotonic() < deadline, self.console.read_text(encoding="utf-8")
            time.sleep(0.02)

    def last_token(self) -> str:
        found: list[str] = _PRINTED_TOKEN.findall(self.console.read_text(encoding="utf-8"))
        return found[-1]


@contextmanager
def shop_serve(folder: Path) -> Iterator[Service]:
    """`shop serve` as `make serve` runs it, with a data directory of its own."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = str(unused.getsockname()[1])
    own = {name: value for name, value in os.environ.items() if not name.startswith("SHOP_")}
    own |= {"SHOP_DATA_DIR": str(folder / "data"), "SHOP_SHUTDOWN_PAUSE": "0"}
    own |= {"SHOP_ARGON2_MEMORY_KIB": "8", "SHOP_ARGON2_ITERATIONS": "1"}
    command = (sys.executable, "-c", "from shop.cli import main; main()", "serve", "--port", port)
    console = folder / "console"
    with console.open("wb") as output, (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=own, stdout=output, stderr=log)
    try:
        service = Service(f"127.0.0.1:{port}", console)
        service.wait_until_ready()
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)


def walk_through(service: Service, shell: Shell) -> Iterator[tuple[str, str, str]]:
    """Each command with the output that the README shows, and its own one."""
    for block in read_blocks():
        if block.kind == "text":
            service.wait_for(block.text.replace(ADDRESS, service.address))
            continue
        for command, shown in block.commands:
            if not command.startswith(REPLACED):
                typed = command.replace(ADDRESS, service.address)
                if "…" in typed:
                    typed = typed.replace("…", service.last_token())
                yield command, shown, shell.run(typed)


async def test_the_walk_through_has_the_responses_that_it_shows() -> None:
    with open_folder() as folder, shop_serve(folder) as service:
        shell = Shell()
        try:
            steps = await asyncio.to_thread(list, walk_through(service, shell))
        finally:
            shell.close()
    assert [each[0] for each in steps if each[0].startswith("ADMIN=$(curl -s ")] == [steps[0][0]]
    responses = 0
    for command, shown, output in steps:
        if shown:
            responses += 1
            assert mask_json(json.loads(output)) == mask_json(json.loads(shown)), command
        else:
            assert output == "", command
    assert responses == 6
