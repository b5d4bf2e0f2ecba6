"""The steps of the tutorial, and how a reader does them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from howdah_tests.support.terminal import PROJECT, Terminal

TUTORIAL: Final = PROJECT / "docs/tutorial.md"
STOP_SERVER: Final = "Stop uvicorn with Ctrl-C"

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE_NAME: Final = re.compile(r"`([\w./]+)`:\s*$")
_COMMAND: Final = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
# What differs in each run.
_VARYING: Final = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\bin \d+\.\d+s\b"), "<seconds>"),
)


class Step(NamedTuple):
    """A `file` with its name and its content, a `command` with the output that the page shows, or `stop`."""

    kind: Literal["file", "command", "stop"]
    text: str = ""
    content: str = ""


def read_steps(page: str) -> Iterator[Step]:
    end = 0
    for block in _BLOCK.finditer(page):
        before = page[end : block.start()]
        end = block.end()
        if STOP_SERVER in before:
            yield Step("stop")
        if block[1] == "console":
            yield from (Step("command", command[1], command[2]) for command in _COMMAND.finditer(block[2]))
        else:
            name = _FILE_NAME.search(before)
            assert name is not None, f"the file of this block isn't named: {block[0]}"
            yield Step("file", name[1], block[2])


def follow(terminal: Terminal, step: Step) -> None:
    """Do what the step says. Fail if a command fails, or if its output isn't the one that the page shows.

    Only the port, the directory of the data and the home directory are the test's own.
    """
    if step.kind == "stop":
        terminal.interrupt()
    elif step.kind == "file":
        path = Path(terminal.run("pwd"), step.text)
        path.parent.mkdir(exist_ok=True)
        path.write_text(step.content)
    elif step.text.startswith("uvicorn "):
        terminal.serve(step.text)
    else:
        output = terminal.run(step.text.replace("localhost:8000", f"localhost:{terminal.port}"))
        output = output.replace(str(terminal.data_dir), "/home/ada/.local/share/howdah/postgresql-18")
        if step.content:
            assert _mask(output) == _mask(step.content.rstrip("\n")), step.text


def _mask(text: str) -> str:
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text
