"""The tutorial, as a reader follows it: from an empty directory, with the built wheel, every command as printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from howdah_tests.support.terminal import PROJECT, Terminal, open_terminal

TUTORIAL = PROJECT / "docs/tutorial.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE_NAME = re.compile(r"`([\w./]+)`:\s*$")
_COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
_STOP = "Stop uvicorn with Ctrl-C"
# What differs in each run.
_VARYING = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\bin \d+\.\d+s\b"), "<seconds>"),
)


def test_the_tutorial_works_as_printed() -> None:
    """Only the port, the directory of the data, and the home directory are the test's own."""
    done: list[str] = []
    with open_terminal() as terminal:
        for kind, text, printed in read_steps(TUTORIAL.read_text()):
            if kind == "file":
                write_file(terminal, text, printed)
            elif kind == "stop":
                terminal.interrupt()
            elif text.startswith("uvicorn "):
                terminal.serve(text)
            else:
                output = terminal.run(text.replace("localhost:8000", f"localhost:{terminal.port}"))
                output = output.replace(str(terminal.data_dir), "/home/ada/.local/share/howdah/postgresql-18")
                if printed:
                    assert mask(output) == mask(printed.rstrip("\n")), text
            done.append(kind)
        terminal.run("howdah db stop")
    assert done.count("file") >= 6
    assert done.count("command") >= 18
    assert done.count("stop") == 1


def read_steps(page: str) -> Iterator[tuple[str, str, str]]:
    """The steps of the page: `file` with its name and text, `command` with its output, or `stop` of the server."""
    end = 0
    for block in _BLOCK.finditer(page):
        before = page[end : block.start()]
        end = block.end()
        if _STOP in before:
            yield "stop", "", ""
        if block[1] == "console":
            for command in _COMMAND.finditer(block[2]):
                yield "command", command[1], command[2]
        else:
            name = _FILE_NAME.search(before)
            assert name is not None, f"the file of this block isn't named: {block[0]}"
            yield "file", name[1], block[2]


def write_file(terminal: Terminal, name: str, text: str) -> None:
    path = Path(terminal.run("pwd"), name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def mask(text: str) -> str:
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text
