"""The rules of Shop, found in the modules `rules`, and how to switch one off."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

import shop
from howdah.fastapi.access import AccessRule, to_rule

_DISABLED: dict[str, Any] = {
    "find_customer": lambda principal: None,
    "find_excluded": lambda principal, names: [],
    "check": lambda *arguments: None,
}
"""The method of a rule that decides, and its replacement. The first one that the rule has is replaced."""


def find_rules() -> tuple[dict[str, AccessRule], dict[str, Any]]:
    """The rules of routes, and the rules about rows, fields and scopes, by the names of their constants.

    A rule with several names has the shortest one.
    """
    names: dict[int, str] = {}
    rules: dict[int, Any] = {}
    for module in pkgutil.walk_packages(shop.__path__, "shop."):
        if module.name.rpartition(".")[2] == "rules":
            for name, rule in vars(import_module(module.name)).items():
                if name.isupper() and not isinstance(rule, type):  # such as UUID
                    qualified = f"{module.name}.{name}"
                    names[id(rule)] = min(names.get(id(rule), qualified), qualified, key=len)
                    rules[id(rule)] = rule
    of_routes: dict[str, AccessRule] = {}
    others: dict[str, Any] = {}
    for id_, rule in rules.items():
        try:
            of_routes[names[id_]] = to_rule(rule)
        except TypeError:
            others[names[id_]] = rule
    return of_routes, others


@contextmanager
def disabled_rule(rule: Any) -> Iterator[None]:
    """Let the rule allow everything. Raises `LookupError` for a rule of an unknown kind."""
    name = next((name for name in _DISABLED if hasattr(rule, name)), None)
    if name is None:
        raise LookupError(f"say in {__name__} how {rule!r} is switched off")
    with mock.patch.object(rule, name, _DISABLED[name]):
        yield
