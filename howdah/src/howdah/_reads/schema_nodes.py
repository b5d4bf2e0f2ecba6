"""The parts of a Pydantic model's core schema that a view supports. Parts that run in Python are rejected.

Pydantic builds the core schema from annotations, constraints, validators and serializers. It is a tree with a few dozen
types of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from howdah._sqlalchemy import is_email_validator
from howdah.errors import ViewCompileError

_TEXT_CHANGES: Final = ("strip_whitespace", "to_lower", "to_upper", "coerce_numbers_to_str")
_MODEL_CHANGES: Final = ("str_strip_whitespace", "str_to_lower", "str_to_upper")


class ModelField(NamedTuple):
    """One field of a model."""

    name: str
    json_name: str
    source_names: Sequence[str]
    """The names of the attribute or member that the field is read from. The first one that exists is used."""
    schema: Any


class SchemaNodes:
    """Reads the nodes of one model, and keeps the definitions that they refer to. Raises `ViewCompileError`."""

    def __init__(self) -> None:
        self._definitions: dict[str, Any] = {}

    def unwrap_model(self, node: Any, path: str) -> Any:
        """The node of a model. Raises `ViewCompileError` for another node, or if the model has code in Python."""
        node = self._unwrap(node, path)
        if node["type"] != "model" or node.get("root_model"):
            raise ViewCompileError(path, f"a {node['type']} isn't a Pydantic model: nest a model with fields")
        changes = [name for name in _MODEL_CHANGES if node.get("config", {}).get(name)]
        if changes:
            raise ViewCompileError(
                path, f"its model_config has {', '.join(changes)}, which runs in Python: use it in the schema for input"
            )
        if node["schema"]["type"] != "model-fields":
            raise ViewCompileError(path, "it has a model_validator, which runs in Python")
        if node["schema"].get("computed_fields"):
            raise ViewCompileError(
                path,
                f"{node['cls'].__name__} has a computed_field, which runs in Python: use a hybrid property of the "
                "mapped class",
            )
        return node

    def iterate_fields(self, model: Any, path: str) -> Iterator[ModelField]:
        """The fields of a model that are written. Raises `ViewCompileError` for `exclude_if` or a complex alias."""
        config = model.get("config", {})
        for name, field in model["schema"]["fields"].items():
            if field.get("serialization_exclude"):
                continue
            if field.get("serialization_exclude_if"):
                raise ViewCompileError(f"{path}.{name}", "it has exclude_if, which runs in Python")
            alias, source_names = field.get("validation_alias", name), [name]
            if not config.get("validate_by_name") or config.get("validate_by_alias", True):
                if not isinstance(alias, str):
                    raise ViewCompileError(
                        f"{path}.{name}", "its validation_alias is a path or a choice: give it a single name"
                    )
                # Pydantic prefers the alias to the name.
                source_names = [*dict.fromkeys([alias, *(source_names if config.get("validate_by_name") else ())])]
            yield ModelField(name, field.get("serialization_alias", name), source_names, field["schema"])

    def _unwrap(self, node: Any, path: str) -> Any:
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
                # EmailStr is the exception: its validator checks the address, and a view validates nothing.
                if not is_email_validator(function):
                    raise ViewCompileError(path, "it has a validator, which runs in Python")
                node = node["schema"]
            else:
                return node

    def unwrap_optional(self, node: Any, path: str) -> tuple[bool, Any]:
        """Whether the value may be None, and the node of its other values."""
        node, is_optional = self._unwrap(node, path), False
        while node["type"] == "nullable":
            node, is_optional = self._unwrap(node["schema"], path), True
        return is_optional or node["type"] == "any", node

    def find_default(self, node: Any) -> Any:
        """The node with the field's default, or None if the field has no default."""
        while node["type"] in {"definitions", "definition-ref"}:
            node = node["schema"] if node["type"] == "definitions" else self._definitions[node["schema_ref"]]
        return node if node["type"] == "default" else None


def reject_text_changes(node: Any, path: str) -> None:
    """Raise `ViewCompileError` for a text that Pydantic changes, for example to lower case."""
    changes = [change for change in _TEXT_CHANGES if node.get(change)]
    if changes:
        raise ViewCompileError(
            path, f"{', '.join(changes)} changes its text in Python: use it in the schema for input, not in this one"
        )
