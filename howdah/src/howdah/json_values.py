"""Values within a JSON column, written as a Pydantic model writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson
from pydantic_core import to_jsonable_python
from sqlalchemy import JSON, Boolean, case, cast, func, literal_column, null, or_, select
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by
from sqlalchemy.sql.elements import ColumnElement

from howdah._reads.scalars import quoted
from howdah._reads.schema_nodes import SchemaNodes, refuse_text_changes
from howdah.errors import ViewCompileError

# PostgreSQL's limit for the arguments of a function.
_MOST_ARGUMENTS: Final = 100

_PLAIN_JSON: Final = frozenset(
    {"any", "bool", "date", "datetime", "dict", "float", "int", "list", "literal", "str", "time", "union", "uuid"}
)


class JsonValues:
    """Renders the values of JSON columns."""

    def __init__(self, nodes: SchemaNodes) -> None:
        self._nodes = nodes
        self._checked: set[int] = set()

    def render(
        self, value: ColumnElement[Any], node: Any, path: str, above: tuple[type[Any], ...] = ()
    ) -> ColumnElement[Any]:
        """The value of a JSON column. Of a model only its fields are written, with defaults for missing ones."""
        node = self._nodes.optional(node, path)[1]
        plain, value = value, value if isinstance(value.type, JSONB) else cast(value, JSONB)
        if node["type"] == "model":
            model = self._nodes.model(node, path)
            if model["cls"] in above:
                raise ViewCompileError(path, f"{model['cls'].__name__} contains itself, so the JSON would never end")
            if model.get("config", {}).get("extra_fields_behavior") == "allow":
                raise ViewCompileError(path, "its model_config has extra='allow'")
            pairs: list[Any] = []
            for name, output, sources, inner in self._nodes.fields(model, path):
                here = f"{path}.{name}"
                if len(pairs) >= _MOST_ARGUMENTS:
                    raise ViewCompileError(path, f"it has more than {_MOST_ARGUMENTS // 2} fields")
                last, found = sources[-1], [(_has_key(value, each), value[each]) for each in sources[:-1]]
                source = case(*found, else_=value[last]) if found else value[last]
                picked = self.render(source, inner, here, (*above, model["cls"]))
                pairs += [literal_column(quoted(output)), self._or_default(value, sources, picked, inner, here)]
            built = func.json_build_object(*pairs)
            return case((func.jsonb_typeof(value) == "object", built), else_=null())
        if node["type"] == "list" and self._nodes.optional(node["items_schema"], path)[1]["type"] == "model":
            each = func.jsonb_array_elements(value).table_valued("value", with_ordinality="place").render_derived()
            item = self.render(each.c.value, node["items_schema"], path, above)
            every = select(func.json_agg(aggregate_order_by(item, each.c.place)))
            items = listed(every.select_from(each).scalar_subquery())
            return case((func.jsonb_typeof(value) == "array", items), else_=null())
        self._refuse_code(node, path)
        return plain

    def _or_default(
        self, value: ColumnElement[Any], sources: Sequence[str], picked: ColumnElement[Any], node: Any, path: str
    ) -> ColumnElement[Any]:
        node = self._nodes.default(node)
        if node is None:
            return picked
        if "default" not in node and node["default_factory"] not in {list, dict}:
            raise ViewCompileError(path, "a default_factory runs in Python")
        default = node["default"] if "default" in node else node["default_factory"]()
        there = or_(*(_has_key(value, each) for each in sources))
        return case((there, cast(picked, JSON)), else_=json_literal(to_jsonable_python(default)))

    def _refuse_code(self, node: Any, path: str) -> None:
        """Raise `ViewCompileError` if a part of the node runs in Python, or is a model or another type with fields."""
        node = self._nodes.optional(node, path)[1]
        if id(node) in self._checked:  # reached again in a recursive type
            return
        self._checked.add(id(node))
        if node["type"] not in _PLAIN_JSON:
            raise ViewCompileError(path, f"a {node['type']} isn't rendered from inside of JSON")
        refuse_text_changes(node, path)
        parts = [node[name] for name in ("items_schema", "keys_schema", "values_schema") if name in node]
        for part in [*parts, *node.get("choices", ())]:
            self._refuse_code(part[0] if isinstance(part, tuple) else part, path)


def listed(items: ColumnElement[Any]) -> ColumnElement[Any]:
    """An aggregated array, or an empty one if there is nothing in it."""
    return func.coalesce(items, json_literal([]))


def json_literal(value: Any) -> ColumnElement[Any]:
    return literal_column(f"CAST({quoted(orjson.dumps(value).decode())} AS JSON)", JSON)


def _has_key(value: ColumnElement[Any], key: str) -> ColumnElement[bool]:
    return value.op("?", return_type=Boolean())(key)
