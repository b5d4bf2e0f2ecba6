"""The core schema of a Pydantic model, as far as a view can follow it: what would run in Python is refused.

In it annotations, constraints, validators and serializers have become a tree of a few dozen kinds of node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import EmailStr

from howdah.errors import CannotRender

_TEXT_CHANGES: Final = ("strip_whitespace", "to_lower", "to_upper", "coerce_numbers_to_str")
_MODEL_CHANGES: Final = ("str_strip_whitespace", "str_to_lower", "str_to_upper")


class SchemaNodes:
    """Reads the nodes of one model, and keeps the definitions that they refer to. Raises `CannotRender`."""

    def __init__(self) -> None:
        self._definitions: dict[str, Any] = {}

    def model(self, node: Any, path: str) -> Any:
        """The node of a model of which only fields are to be written."""
        node = self._plain(node, path)
        if node["type"] != "model" or node.get("root_model"):
            raise CannotRender(path, f"a {node['type']} isn't a Pydantic model")
        changes = [name for name in _MODEL_CHANGES if node.get("config", {}).get(name)]
        if changes:
            raise CannotRender(path, f"its model_config has {', '.join(changes)}")
        if node["schema"]["type"] != "model-fields":
            raise CannotRender(path, "it has a validator of the whole model")
        if node["schema"].get("computed_fields"):
            raise CannotRender(path, f"{node['cls'].__name__} has computed fields")
        return node

    def fields(self, model: Any, path: str) -> Iterator[tuple[str, str, Sequence[str], Any]]:
        """Of each field its name, that in the JSON, those it is read from (the first that is there), and its schema."""
        config = model.get("config", {})
        for name, field in model["schema"]["fields"].items():
            if field.get("serialization_exclude"):
                continue
            if field.get("serialization_exclude_if"):
                raise CannotRender(f"{path}.{name}", "it has exclude_if")
            alias, sources = field.get("validation_alias", name), [name]
            if not config.get("validate_by_name") or config.get("validate_by_alias", True):
                if not isinstance(alias, str):
                    raise CannotRender(f"{path}.{name}", "its validation_alias isn't a name")
                sources = [*dict.fromkeys([alias, *(sources if config.get("validate_by_name") else ())])]
            yield name, field.get("serialization_alias", name), sources, field["schema"]

    def _plain(self, node: Any, path: str) -> Any:
        """The node without what only says where it stands or what it is if nothing is given."""
        while True:
            if "serialization" in node:
                raise CannotRender(path, "it has a serializer, which runs in Python")
            if node["type"] == "definitions":
                self._definitions |= {each["ref"]: each for each in node["definitions"]}
                node = node["schema"]
            elif node["type"] == "definition-ref":
                node = self._definitions[node["schema_ref"]]
            elif node["type"] == "default":
                node = node["schema"]
            elif node["type"].startswith("function-"):
                function = node.get("function", {}).get("function")
                if getattr(function, "__func__", None) is not EmailStr._validate.__func__:  # type: ignore[attr-defined]
                    raise CannotRender(path, "it has a validator, which runs in Python")
                node = node["schema"]
            else:
                return node

    def optional(self, node: Any, path: str) -> tuple[bool, Any]:
        """Whether it may be None, and the node of what it is otherwise."""
        node, optional = self._plain(node, path), False
        while node["type"] == "nullable":
            node, optional = self._plain(node["schema"], path), True
        return optional or node["type"] == "any", node

    def default(self, node: Any) -> Any:
        """The node that says what the field is if nothing is given, or None."""
        while node["type"] in {"definitions", "definition-ref"}:
            node = node["schema"] if node["type"] == "definitions" else self._definitions[node["schema_ref"]]
        return node if node["type"] == "default" else None


def refuse_text_changes(node: Any, path: str) -> None:
    """Raise `CannotRender` for a text that Pydantic changes before it is compared or sent."""
    changes = [change for change in _TEXT_CHANGES if node.get(change)]
    if changes:
        reason = f"{', '.join(changes)} changes its text in Python: have that in the schema that is written, not read"
        raise CannotRender(path, reason)
