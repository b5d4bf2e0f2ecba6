"""Values within a JSON column, written as a Pydantic model writes them."""

from __future__ import annotations

from typing import Any, Final

import orjson
from pydantic_core import to_jsonable_python
from sqlalchemy import JSON, Boolean, case, cast, func, literal_column, null, or_, select
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by
from sqlalchemy.sql.elements import ColumnElement

from howdah._reads.scalars import quote_literal
from howdah._reads.schema_nodes import ModelField, SchemaNodes, reject_text_changes
from howdah.errors import ViewCompileError

# PostgreSQL's limit for the arguments of a function (FUNC_MAX_ARGS). Each field takes two, its name and its value.
_MAX_FUNCTION_ARGUMENTS: Final = 100

# The nodes whose JSON is written as it is stored.
_PLAIN_JSON: Final = frozenset(
    {"any", "bool", "date", "datetime", "dict", "float", "int", "list", "literal", "str", "time", "union", "uuid"}
)


class JsonValues:
    """Renders the values of JSON columns. Raises `ViewCompileError` for a field that needs code in Python."""

    def __init__(self, nodes: SchemaNodes) -> None:
        self._nodes = nodes
        self._checked: set[int] = set()

    def render(
        self, value: ColumnElement[Any], node: Any, path: str, enclosing_models: tuple[type[Any], ...] = ()
    ) -> ColumnElement[Any]:
        """The value of a JSON column. For a model only its fields are written, with defaults for missing ones."""
        node = self._nodes.unwrap_optional(node, path)[1]
        # Only `jsonb` has the operator `?`. A value that needs no changes is returned as it is stored, not converted.
        stored, value = value, value if isinstance(value.type, JSONB) else cast(value, JSONB)
        if node["type"] == "model":
            return self._render_model(value, node, path, enclosing_models)
        if node["type"] == "list" and self._nodes.unwrap_optional(node["items_schema"], path)[1]["type"] == "model":
            each = func.jsonb_array_elements(value).table_valued("value", with_ordinality="place").render_derived()
            item = self.render(each.c.value, node["items_schema"], path, enclosing_models)
            every = select(func.json_agg(aggregate_order_by(item, each.c.place)))
            items = coalesce_to_empty_list(every.select_from(each).scalar_subquery())
            return case((func.jsonb_typeof(value) == "array", items), else_=null())
        self._reject_python_code(node, path)
        return stored

    def _render_model(
        self, value: ColumnElement[Any], node: Any, path: str, enclosing_models: tuple[type[Any], ...]
    ) -> ColumnElement[Any]:
        """A JSON object with the model's fields. `enclosing_models` has the models that contain it."""
        model = self._nodes.unwrap_model(node, path)
        if model["cls"] in enclosing_models:
            raise ViewCompileError(path, f"{model['cls'].__name__} contains itself, so the JSON would never end")
        if model.get("config", {}).get("extra_fields_behavior") == "allow":
            raise ViewCompileError(
                path, "its model_config has extra='allow': make the field a dict to write all members"
            )
        pairs: list[Any] = []
        for field in self._nodes.iterate_fields(model, path):
            here = f"{path}.{field.name}"
            if len(pairs) >= _MAX_FUNCTION_ARGUMENTS:
                raise ViewCompileError(
                    path, f"it has more than {_MAX_FUNCTION_ARGUMENTS // 2} fields, PostgreSQL's limit for one object"
                )
            *preferred, last = field.source_names
            alternatives = [(_has_key(value, each), value[each]) for each in preferred]
            source = case(*alternatives, else_=value[last]) if alternatives else value[last]
            member = self.render(source, field.schema, here, (*enclosing_models, model["cls"]))
            pairs += [
                literal_column(quote_literal(field.json_name)),
                self._add_default(value, field, member, here),
            ]
        built = func.json_build_object(*pairs)
        return case((func.jsonb_typeof(value) == "object", built), else_=null())

    def _add_default(
        self, value: ColumnElement[Any], field: ModelField, member: ColumnElement[Any], path: str
    ) -> ColumnElement[Any]:
        """The member, or the field's default if the JSON object lacks it. A member that is null stays null."""
        node = self._nodes.find_default(field.schema)
        if node is None:
            return member
        if "default" not in node and node["default_factory"] not in {list, dict}:
            raise ViewCompileError(path, "its default_factory runs in Python: use `default`, or `list` or `dict`")
        default = node["default"] if "default" in node else node["default_factory"]()
        has_member = or_(*(_has_key(value, each) for each in field.source_names))
        return case((has_member, cast(member, JSON)), else_=to_json_literal(to_jsonable_python(default)))

    def _reject_python_code(self, node: Any, path: str) -> None:
        """Raise `ViewCompileError` if a part of the node runs in Python, or is a model or another type with fields."""
        node = self._nodes.unwrap_optional(node, path)[1]
        if id(node) in self._checked:  # reached again in a recursive type
            return
        self._checked.add(id(node))
        if node["type"] not in _PLAIN_JSON:
            raise ViewCompileError(
                path,
                f"a field of type {node['type']} doesn't fit a value inside of JSON: use a plain JSON type, "
                "or store the value in a column",
            )
        reject_text_changes(node, path)
        parts = [node[name] for name in ("items_schema", "keys_schema", "values_schema") if name in node]
        for part in [*parts, *node.get("choices", ())]:
            self._reject_python_code(part[0] if isinstance(part, tuple) else part, path)


def coalesce_to_empty_list(items: ColumnElement[Any]) -> ColumnElement[Any]:
    """The aggregated array, or an empty one: PostgreSQL's aggregates return NULL for no rows."""
    return func.coalesce(items, to_json_literal([]))


def to_json_literal(value: Any) -> ColumnElement[Any]:
    """The value as an SQL literal of the type `json`."""
    return literal_column(f"CAST({quote_literal(orjson.dumps(value).decode())} AS JSON)", JSON)


def _has_key(value: ColumnElement[Any], key: str) -> ColumnElement[bool]:
    return value.op("?", return_type=Boolean())(key)
