"""The core schema of a Pydantic model, as far as a view can follow it. Parts that run in Python are rejected.

Pydantic builds the core schema from annotations, constraints, validators and serializers. It is a tree with a few dozen
types of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from howdah._sqlalchemy import is_email_validator
from howdah.errors import ViewCompileError

_TEXT_CHANGES: Final = ("strip_whitespace", "to_lower", "to_upper", "coerce_numbers_to_str")
_MODEL_CHANGES: Final = ("str_strip_whitespace", "str_to_lower", "str_to_upper")


class SchemaNodes:
    """Reads the nodes of one model, and keeps the definitions that they refer to. Raises `ViewCompileError`."""

    def __init__(self) -> None:
        self._definitions: dict[str, Any] = {}

    def model(self, node: Any, path: str) -> Any:
        """The node of a model. Raises `ViewCompileError` if the model has more than plain fields."""
        node = self._plain(node, path)
        if node["type"] != "model" or node.get("root_model"):
            raise ViewCompileError(path, f"a {node['type']} isn't a Pydantic model")
        changes = [name for name in _MODEL_CHANGES if node.get("config", {}).get(name)]
        if changes:
            raise ViewCompileError(path, f"its model_config has {', '.join(changes)}")
        if node["schema"]["type"] != "model-fields":
            raise ViewCompileError(path, "it has a validator of the whole model")
        if node["schema"].get("computed_fields"):
            raise ViewCompileError(path, f"{node['cls'].__name__} has computed fields")
        return node

    def fields(self, model: Any, path: str) -> Iterator[tuple[str, str, Sequence[str], Any]]:
        """For each field: its name, its name in the JSON, the names it is read from in order, and its schema."""
        config = model.get("config", {})
        for name, field in model["schema"]["fields"].items():
            if field.get("serialization_exclude"):
                continue
            if field.get("serialization_exclude_if"):
                raise ViewCompileError(f"{path}.{name}", "it has exclude_if")
            alias, sources = field.get("validation_alias", name), [name]
            if not config.get("validate_by_name") or config.get("validate_by_alias", True):
                if not isinstance(alias, str):
                    raise ViewCompileError(f"{path}.{name}", "its validation_alias isn't a name")
                sources = [*dict.fromkeys([alias, *(sources if config.get("validate_by_name") else ())])]
            yield name, field.get("serialization_alias", name), sources, field["schema"]

    def _plain(self, node: Any, path: str) -> Any:
        """The node without the definitions, references and defaults around it."""
        while True:
            if "serialization" in node:
                raise ViewCompileError(path, "it has a serializer, which runs in Python")
            if node["type"] == "definitions":
                self._definitions |= {each["ref"]: each for each in node["definitions"]}
                node = node["schema"]
            elif node["type"] == "definition-ref":
                node = self._definitions[node["schema_ref"]]
            elif node["type"] == "default":
                node = node["schema"]
            elif node["type"].startswith("function-"):
                function = node.get("function", {}).get("function")
                if not is_email_validator(function):
                    raise ViewCompileError(path, "it has a validator, which runs in Python")
                node = node["schema"]
            else:
                return node

    def optional(self, node: Any, path: str) -> tuple[bool, Any]:
        """Whether the value may be None, and the node of its other values."""
        node, optional = self._plain(node, path), False
        while node["type"] == "nullable":
            node, optional = self._plain(node["schema"], path), True
        return optional or node["type"] == "any", node

    def default(self, node: Any) -> Any:
        """The node with the field's default, or None."""
        while node["type"] in {"definitions", "definition-ref"}:
            node = node["schema"] if node["type"] == "definitions" else self._definitions[node["schema_ref"]]
        return node if node["type"] == "default" else None


def refuse_text_changes(node: Any, path: str) -> None:
    """Raise `ViewCompileError` for a text that Pydantic changes, for example to lower case."""
    changes = [change for change in _TEXT_CHANGES if node.get(change)]
    if changes:
        reason = f"{', '.join(changes)} changes its text in Python: use it in the schema for input, not in this one"
        raise ViewCompileError(path, reason)
