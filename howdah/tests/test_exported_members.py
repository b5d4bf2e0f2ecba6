"""The public API is what `__all__` lists, and nothing is public by accident."""

from __future__ import annotations

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import howdah
import howdah.alembic
import howdah.bulk
import howdah.embedded
import howdah.fastapi
import howdah.logs
import howdah.metrics
import howdah.serving
import howdah.tenancy
import howdah.testing
import howdah.tracing

DIRECTORY = Path(howdah.__file__).parent
SOURCES = {path.relative_to(DIRECTORY) for path in DIRECTORY.rglob("*.py")}
WITH_ALL = [
    howdah,
    howdah.alembic,
    howdah.embedded,
    howdah.fastapi,
    howdah.logs,
    howdah.metrics,
    howdah.serving,
    howdah.tenancy,
    howdah.testing,
    howdah.tracing,
]
PACKAGES = [howdah, howdah.alembic, howdah.embedded, howdah.fastapi, howdah.serving, howdah.tenancy]
PUBLIC_MODULES = sorted(path.stem for path in SOURCES if len(path.parts) == 1 and not path.stem.startswith("_"))


def get_name(module: ModuleType) -> str:
    return module.__name__


def get_source(module: ModuleType) -> Path:
    assert module.__file__ is not None
    return Path(module.__file__).relative_to(DIRECTORY)


@cache
def parse(source: Path) -> ast.Module:
    return ast.parse((DIRECTORY / source).read_text())


def get_definitions(source: Path) -> set[str]:
    """The public classes and functions of a module. pytest calls its hooks by their names."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = {each.name for each in parse(source).body if isinstance(each, kinds)}
    return {name for name in names if not name.startswith(("_", "pytest_"))}


@cache  # a test for each module reads the imports of all others
def get_imports(source: Path) -> frozenset[str]:
    """The names that a module imports from Howdah."""
    return frozenset(
        alias.asname or alias.name
        for node in ast.walk(parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("howdah")
        for alias in node.names
    )


@pytest.mark.parametrize("module", WITH_ALL, ids=get_name)
def test_all_is_sorted_and_has_no_duplicates(module: ModuleType) -> None:
    """Constants, then classes, then the rest, as ruff's RUF022 sorts it."""
    kinds = [(not name.isupper(), not name[0].isupper(), name) for name in module.__all__]
    assert kinds == sorted(set(kinds))


@pytest.mark.parametrize("module", PACKAGES, ids=get_name)
def test_all_of_a_package_equals_its_imports(module: ModuleType) -> None:
    assert get_imports(get_source(module)) == set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_all_of_the_pytest_plugin_equals_its_definitions() -> None:
    assert {*get_definitions(get_source(howdah.testing)), "open_client"} == set(howdah.testing.__all__)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_a_public_class_or_function_is_exported_or_is_used_by_another_module(name: str) -> None:
    if name == "bulk":  # it is exported as a module
        assert "bulk" in howdah.__all__
        return
    exported = {each for module in WITH_ALL for each in module.__all__}
    used = {each for path in SOURCES if path != Path(f"{name}.py") for each in get_imports(path)}
    assert get_definitions(Path(f"{name}.py")) <= exported | used


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module in PACKAGES for name in module.__all__],
    ids=lambda value: value if isinstance(value, str) else get_name(value),
)
def test_every_public_name_has_a_docstring(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    if inspect.isclass(value):
        assert value.__doc__
        # The default docstring of a dataclass is its signature.
        assert not value.__doc__.startswith(f"{name}(")
        for each, member in vars(value).items():
            if inspect.isfunction(member) and not each.startswith("_"):
                assert inspect.getdoc(getattr(value, each)), f"{name}.{each}"
    elif inspect.isroutine(value) or inspect.ismodule(value):
        assert value.__doc__


def test_every_public_name_of_the_pytest_plugin_is_described() -> None:
    described = howdah.testing.__doc__ or ""
    names = (name for name in howdah.testing.__all__ if f"`{name}`" not in described)
    assert all(getattr(howdah.testing, name).__doc__ for name in names)


def test_a_class_can_be_imported_from_its_module() -> None:
    """Pickled errors and tracebacks refer to a class by that name."""
    for name in howdah.__all__:
        value = getattr(howdah, name)
        if inspect.isclass(value):
            assert getattr(importlib.import_module(value.__module__), value.__name__) is value
