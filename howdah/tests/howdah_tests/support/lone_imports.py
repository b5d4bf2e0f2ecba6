"""Import modules one by one, each in a process that has imported no other module of the project."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

# Forks a process per module: a new interpreter would import the dependencies again, which takes some seconds.
_SCRIPT: Final = """
import gc, importlib, json, os, sys, traceback

def import_alone(name):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        error = None
        try:
            importlib.import_module(name)
            import sqlalchemy.orm
            sqlalchemy.orm.configure_mappers()
        except BaseException:
            error = traceback.format_exc()
        with os.fdopen(writer, "w") as pipe:
            json.dump(error, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        error = json.load(pipe)
    os.waitpid(child, 0)
    return error

gc.disable()
first, modules = json.load(sys.stdin)
for name in first:
    importlib.import_module(name)
json.dump({name: import_alone(name) for name in modules}, sys.stdout)
"""


def find_modules(package: str, *, without: Sequence[str] = ()) -> list[str]:
    """The names of the package and of every module in it, except those that begin with one of `without`."""
    found = pkgutil.walk_packages(import_module(package).__path__, f"{package}.")
    return [package, *(module.name for module in found if not module.name.startswith(tuple(without)))]


def import_each_alone(modules: Sequence[str], *, first: Sequence[str]) -> dict[str, str | None]:
    """Import each module and configure the mappers. Returns the traceback of its error, or None, for each module.

    All processes import the modules `first` before, to save time.
    """
    finished = subprocess.run(
        [sys.executable, "-c", _SCRIPT], input=json.dumps([first, modules]), capture_output=True, text=True, check=True
    )
    errors: dict[str, str | None] = json.loads(finished.stdout)
    return errors
