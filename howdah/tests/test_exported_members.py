"""The public door: what `from howdah import …` offers is decided in `__all__`, and nowhere by accident."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import howdah

SOURCES = {path.stem: ast.parse(path.read_text()) for path in Path(howdah.__file__).parent.rglob("*.py")}


def test_all_is_sorted_and_names_nothing_twice() -> None:
    """Constants, then classes, then the rest, as ruff's RUF022 sorts it."""
    kinds = [(not name.isupper(), not name[0].isupper(), name) for name in howdah.__all__]
    assert kinds == sorted(set(kinds))


def test_all_is_what_the_door_holds() -> None:
    assert imported_by(ast.parse(Path(howdah.__file__).read_text())) == set(howdah.__all__)


@pytest.mark.parametrize(
    "name", ["database", "errors", "locking", "models", "pagination", "repository", "transactions"]
)
def test_a_public_class_or_function_is_at_the_door_or_serves_another_module(name: str) -> None:
    made = [
        each for each in SOURCES[name].body if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    public = {each.name for each in made if not each.name.startswith("_")}
    assert public <= set(howdah.__all__).union(*(imported_by(tree) for tree in SOURCES.values()))


def imported_by(tree: ast.Module) -> set[str]:
    """The names that it imports from Howdah, under which it knows them."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("howdah")
        for alias in node.names
    }


@pytest.mark.parametrize("name", howdah.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(howdah, name)
    if inspect.isclass(value):
        # a dataclass would have its signature for a docstring
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}(")
        for each, member in vars(value).items():
            if inspect.isfunction(member) and not each.startswith("_"):
                assert inspect.getdoc(getattr(value, each)), f"{name}.{each}"
    elif inspect.isroutine(value) or inspect.ismodule(value):
        assert value.__doc__


def test_names_keep_the_address_at_which_they_are_found() -> None:
    """Errors are pickled and shown by it."""
    for name in howdah.__all__:
        value = getattr(howdah, name)
        if inspect.isclass(value):
            assert getattr(importlib.import_module(value.__module__), value.__name__) is value
