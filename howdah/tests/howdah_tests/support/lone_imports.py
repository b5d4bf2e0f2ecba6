"""Import modules one by one, each in a process that has imported no other module of the project."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

# Forks a process per module: a new interpreter would import the dependencies again, which takes some seconds. Python
# imports the package of a module first. So a module is imported in a fork of the process that has imported its package.
_SCRIPT: Final = """
import gc, importlib, json, os, sys, traceback

def import_alone(name):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        errors = {}
        try:
            importlib.import_module(name)
            for each in modules_by_package.pop(name, []):
                errors |= import_alone(each)
            import sqlalchemy.orm
            sqlalchemy.orm.configure_mappers()
            errors[name] = None
        except BaseException:
            errors[name] = traceback.format_exc()
        with os.fdopen(writer, "w") as pipe:
            json.dump(errors, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        errors = json.load(pipe)
    os.waitpid(child, 0)
    return errors

gc.disable()
first, modules = json.load(sys.stdin)
for name in first:
    importlib.import_module(name)
modules_by_package = {}
for name in modules:
    package = name.rpartition(".")[0]
    modules_by_package.setdefault(package if package in modules else None, []).append(name)
errors = {}
for name in modules_by_package.pop(None):
    errors |= import_alone(name)
json.dump(errors, sys.stdout)
"""


def find_modules(package: str, *, without: Sequence[str] = ()) -> list[str]:
    """The names of the package and of every module in it, except those that begin with one of `without`."""
    found = pkgutil.walk_packages(import_module(package).__path__, f"{package}.")
    return [package, *(module.name for module in found if not module.name.startswith(tuple(without)))]


def import_each_alone(modules: Sequence[str], *, first: Sequence[str]) -> dict[str, str | None]:
    """Import each module and configure the mappers. Returns the traceback of its error, or None, for each module.

    All processes import the modules `first` before, to save time. If a package can't be imported, its modules are
    missing from the result.
    """
    finished = subprocess.run(
        [sys.executable, "-c", _SCRIPT], input=json.dumps([first, modules]), capture_output=True, text=True, check=True
    )
    errors: dict[str, str | None] = json.loads(finished.stdout)
    return errors
