"""How PostgreSQL writes what a Pydantic model would: one SQL expression for each field, or `CannotRender`.

The model is read from its core schema (`__pydantic_core_schema__`), in which annotations, constraints, validators and
serializers have become a tree of a few dozen kinds of node. What has no branch here is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson
from pydantic import BaseModel, EmailStr
from pydantic_core import to_jsonable_python
from sqlalchemy import (
    ARRAY,
    JSON,
    Boolean,
    Double,
    Select,
    Text,
    case,
    cast,
    column,
    func,
    inspect,
    literal_column,
    null,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import DOMAIN, JSONB, aggregate_order_by
from sqlalchemy.ext.associationproxy import AssociationProxyExtensionType
from sqlalchemy.orm import CompositeProperty, Mapper, RelationshipProperty, SynonymProperty
from sqlalchemy.sql.elements import ColumnClause, ColumnElement
from sqlalchemy.sql.visitors import replacement_traverse

from howdah.errors import CannotRender
from howdah.keys import key_attributes
from howdah.nullability import can_be_null
from howdah.relationships import RelatedRows, leaves
from howdah.row_filters import RowFilter, check_row_filter
from howdah.scalars import SCALARS, TEXT_CHANGES, is_decimal, is_float, quoted, stored_type

# PostgreSQL cuts longer names of columns, and a row's JSON has its columns' names.
_LONGEST_NAME_BYTES: Final = 63

# What PostgreSQL's functions take.
_MOST_ARGUMENTS: Final = 100

_ROW: Final = "howdah_row"
_WHOLE_ROW: Final[ColumnElement[Any]] = literal_column(f"{_ROW}.*")  # a field may have this name, too

_TIMES: Final = frozenset({"date", "datetime", "time", "timedelta"})
_MODEL_CHANGES: Final = ("str_strip_whitespace", "str_to_lower", "str_to_upper")


class _Place(NamedTuple):
    """Where in the schema something is rendered."""

    path: str
    above: tuple[type[Any], ...]
    """The models around it."""
    config: Mapping[str, Any]
    """Of the innermost of them."""
    entities: tuple[Any, ...]
    """Whose rows are around it."""


class Renderer:
    """Renders entities as a Pydantic model writes them. `where` has the row filters of some mapped classes."""

    def __init__(self, schema: type[BaseModel], where: Mapping[type[Any], RowFilter]) -> None:
        for model, row_filter in where.items():
            check_row_filter(model, row_filter)
        self._where = where
        self._definitions: dict[str, Any] = {}
        self._checked: set[int] = set()
        self._schema = schema

    def object_of(self, entity: Any) -> ColumnElement[Any]:
        """The JSON object of one row of the entity, an alias of a mapped class."""
        root = _Place(self._schema.__name__, (), {}, ())
        return _object(self._columns(entity, self._schema.__pydantic_core_schema__, root), entity)

    def criteria(self, entity: Any) -> list[ColumnElement[bool]]:
        """The row filters of the entity's class and of its base classes."""
        mapped, criteria = inspect(entity).mapper, []
        for model, row_filter in self._where.items():
            if mapped.isa(inspect(model)):
                criteria.append(_correlated(row_filter(entity), entity))
            elif inspect(model).isa(mapped):
                raise CannotRender(
                    f"where[{model.__name__}]", f"its rows are read as {mapped.class_.__name__}, too: filter that class"
                )
        return criteria

    def _columns(self, entity: Any, node: Any, place: _Place) -> list[ColumnElement[Any]]:
        """An expression for each field, under the name that it has in the JSON."""
        model = self._model(node, place.path)
        if model["cls"] in place.above:
            raise CannotRender(place.path, f"{model['cls'].__name__} contains itself, which has no end")
        columns: list[ColumnElement[Any]] = []
        for name, output, source, inner in self._fields(model, place.path):
            here = place._replace(
                path=f"{place.path}.{name}",
                above=(*place.above, model["cls"]),
                config=model.get("config", {}),
                entities=(*place.entities, entity),
            )
            if len(output.encode()) > _LONGEST_NAME_BYTES:
                raise CannotRender(here.path, f"its name is longer than {_LONGEST_NAME_BYTES} bytes")
            columns.append(self._attribute(entity, source, inner, here).label(output))
        return columns

    def _model(self, node: Any, path: str) -> Any:
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

    def _fields(self, model: Any, path: str) -> Iterator[tuple[str, str, str, Any]]:
        """Of each field its name, that in the JSON, that of the attribute it is read from, and its schema."""
        config = model.get("config", {})
        for name, field in model["schema"]["fields"].items():
            if field.get("serialization_exclude"):
                continue
            if field.get("serialization_exclude_if"):
                raise CannotRender(f"{path}.{name}", "it has exclude_if")
            source = field.get("validation_alias", name)
            if config.get("validate_by_name") and not config.get("validate_by_alias", True):
                source = name
            if not isinstance(source, str):
                raise CannotRender(f"{path}.{name}", "its validation_alias isn't a name")
            yield name, field.get("serialization_alias", name), source, field["schema"]

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

    def _attribute(self, entity: Any, name: str, node: Any, place: _Place) -> ColumnElement[Any]:
        mapper: Mapper[Any] = inspect(entity).mapper
        descriptor = mapper.all_orm_descriptors.get(name)
        if descriptor is None:
            raise CannotRender(place.path, f"{mapper.class_.__name__} has no mapped attribute {name!r}")
        if descriptor.extension_type is AssociationProxyExtensionType.ASSOCIATION_PROXY:
            collection = descriptor.target_collection  # type: ignore[attr-defined]
            raise CannotRender(place.path, f"it is an association proxy: nest a model of {collection!r} instead")
        prop: Any = mapper.attrs.get(name)
        while isinstance(prop, SynonymProperty):
            prop = mapper.attrs.get(prop.name)
        optional, inner = self._optional(node, place.path)
        if isinstance(prop, RelationshipProperty):
            return self._related(entity, prop, (optional, inner), place)
        if isinstance(prop, CompositeProperty):
            raise CannotRender(place.path, "it is a composite: name its columns")
        try:
            expression = getattr(entity, name)
            expression = expression.__clause_element__() if hasattr(expression, "__clause_element__") else expression
            if not isinstance(expression, ColumnElement):
                raise TypeError(f"{expression!r} is no expression")
        except Exception as error:  # a hybrid property's own code may raise anything
            raise CannotRender(
                place.path,
                "it is no SQL expression of the class: give the hybrid property an `expression`, or leave it out",
            ) from error
        expression = _correlated(expression, entity)
        _refuse_other_rows(expression, entity, place.path)
        if not optional and can_be_null(expression, [inspect(entity).selectable]):
            raise CannotRender(
                place.path,
                f"{_shown(expression)} may be NULL: make the field Optional, the column NOT NULL, or coalesce() it",
            )
        return self._value(expression, inner, place)

    def _optional(self, node: Any, path: str) -> tuple[bool, Any]:
        node, optional = self._plain(node, path), False
        while node["type"] == "nullable":
            node, optional = self._plain(node["schema"], path), True
        return optional or node["type"] == "any", node

    def _related(
        self, entity: Any, prop: RelationshipProperty[Any], wanted: tuple[bool, Any], place: _Place
    ) -> ColumnElement[Any]:
        optional, node = wanted
        related = RelatedRows(entity, prop, place.path)
        target = related.target
        if bool(prop.uselist) is not (node["type"] == "list"):
            raise CannotRender(place.path, "a list for a to-many relationship, a model for a to-one")
        if any(target is each for each in place.entities):
            raise CannotRender(place.path, "the same aliased class is read around it")
        hidden = self.criteria(target)
        for criterion in hidden:
            _refuse_other_rows(criterion, target, place.path)
        if not prop.uselist and not optional and (hidden or related.can_be_absent()):
            raise CannotRender(place.path, "there may be none, or none to be seen: make the field Optional")
        columns = self._columns(target, node["items_schema"] if prop.uselist else node, place)
        if not prop.uselist:
            found = related.select([_object(columns, target)], hidden)
            if not related.has_at_most_one():
                found = found.order_by(*related.order()).limit(1)
            return found.scalar_subquery()
        if related.has_each_once:
            rows = related.select(columns, hidden).order_by(*related.order()).subquery(_ROW)
            return select(_listed(func.json_agg(_WHOLE_ROW))).select_from(rows).scalar_subquery()
        copy = func.row_number().over(partition_by=key_attributes(target), order_by=related.order())
        position = func.row_number().over(order_by=related.order())
        numbered = [_object(columns, target).label("item"), copy.label("copy"), position.label("position")]
        found = related.select(numbered, hidden).subquery(_ROW)
        items = func.json_agg(aggregate_order_by(found.c.item, found.c.position))
        return select(_listed(items)).where(found.c.copy == literal_column("1")).scalar_subquery()

    def _value(self, value: ColumnElement[Any], node: Any, place: _Place) -> ColumnElement[Any]:
        """A column's value, such that `row_to_json` writes it as the model does."""
        kind = stored_type(value.type, place.path)
        if isinstance(value.type, DOMAIN):  # which has no operators in SQLAlchemy
            value = type_coerce(value, kind)
        if isinstance(kind, JSON):
            return self._json(value, node, place.path, ())
        if isinstance(kind, ARRAY):
            return self._array(value, kind, node, place)
        if node["type"] in _TIMES and place.config.get("ser_json_temporal", "iso8601") != "iso8601":
            raise CannotRender(place.path, "its model_config has ser_json_temporal")
        render = SCALARS.get(node["type"])
        rendered = None if render is None else render(value, kind, node, place.config)
        if rendered is None:
            raise CannotRender(place.path, f"a {node['type']} isn't made of {value.type!r}")
        return rendered

    def _array(self, value: ColumnElement[Any], kind: ARRAY[Any], node: Any, place: _Place) -> ColumnElement[Any]:
        path = place.path
        items, dimensions = node, 0
        while items["type"] == "list":
            items, dimensions = self._optional(items["items_schema"], path)[1], dimensions + 1
        if not dimensions or (kind.dimensions or 1) != dimensions:
            raise CannotRender(path, f"a {node['type']} isn't made of {value.type!r}")
        item = stored_type(kind.item_type, path)
        if items["type"] == "decimal" and is_decimal(item):
            return cast(value, ARRAY(Text))
        if items["type"] == "float" and is_float(item):
            return cast(value, ARRAY(Double))
        render = SCALARS.get(items["type"])
        sample = column("item", kind.item_type)
        if render is None or render(sample, item, items, place.config) is not sample:
            raise CannotRender(path, f"a list of {items['type']} isn't made of {value.type!r}")
        return value

    def _json(
        self, value: ColumnElement[Any], node: Any, path: str, above: tuple[type[Any], ...]
    ) -> ColumnElement[Any]:
        """What lies in a JSON column: as it is, but a model's fields are picked out, and its defaults filled in."""
        node = self._optional(node, path)[1]
        plain, value = value, value if isinstance(value.type, JSONB) else cast(value, JSONB)
        if node["type"] == "model":
            model = self._model(node, path)
            if model["cls"] in above:
                raise CannotRender(path, f"{model['cls'].__name__} contains itself, which has no end")
            if model.get("config", {}).get("extra_fields_behavior") == "allow":
                raise CannotRender(path, "its model_config has extra='allow'")
            pairs: list[Any] = []
            for name, output, source, inner in self._fields(model, path):
                here = f"{path}.{name}"
                if source != name and model.get("config", {}).get("validate_by_name"):
                    raise CannotRender(here, "it is read by its name or by its alias, whichever is there")
                if len(pairs) >= _MOST_ARGUMENTS:
                    raise CannotRender(path, f"it has more than {_MOST_ARGUMENTS // 2} fields")
                picked = self._json(value[source], inner, here, (*above, model["cls"]))
                pairs += [literal_column(quoted(output)), self._or_default(value, source, picked, inner, here)]
            built = func.json_build_object(*pairs)
            return case((func.jsonb_typeof(value) == "object", built), else_=null())
        if node["type"] == "list" and self._optional(node["items_schema"], path)[1]["type"] == "model":
            each = func.jsonb_array_elements(value).table_valued("value", with_ordinality="place").render_derived()
            item = self._json(each.c.value, node["items_schema"], path, above)
            every = select(func.json_agg(aggregate_order_by(item, each.c.place)))
            listed = _listed(every.select_from(each).scalar_subquery())
            return case((func.jsonb_typeof(value) == "array", listed), else_=null())
        self._refuse_code(node, path)
        return plain

    def _or_default(
        self, value: ColumnElement[Any], source: str, picked: ColumnElement[Any], node: Any, path: str
    ) -> ColumnElement[Any]:
        while node["type"] in {"definitions", "definition-ref"}:
            node = node["schema"] if node["type"] == "definitions" else self._definitions[node["schema_ref"]]
        if node["type"] != "default":
            return picked
        if "default" not in node and node["default_factory"] not in {list, dict}:
            raise CannotRender(path, "a default_factory runs in Python")
        default = node["default"] if "default" in node else node["default_factory"]()
        there = value.op("?", return_type=Boolean())(source)
        return case((there, cast(picked, JSON)), else_=_json_literal(to_jsonable_python(default)))

    def _refuse_code(self, node: Any, path: str) -> None:
        """Raise `CannotRender` if something under the node runs in Python, or names fields."""
        node = self._optional(node, path)[1]
        if id(node) in self._checked:  # of a type that contains itself
            return
        self._checked.add(id(node))
        if node["type"] not in _PLAIN_JSON:
            raise CannotRender(path, f"a {node['type']} isn't rendered from inside of JSON")
        if any(node.get(change) for change in TEXT_CHANGES):
            raise CannotRender(path, "its text is changed in Python")
        parts = [node[name] for name in ("items_schema", "keys_schema", "values_schema") if name in node]
        for part in [*parts, *node.get("choices", ())]:
            self._refuse_code(part[0] if isinstance(part, tuple) else part, path)


_PLAIN_JSON: Final = frozenset(
    {"any", "bool", "date", "datetime", "dict", "float", "int", "list", "literal", "str", "time", "union", "uuid"}
)


def _correlated(expression: ColumnElement[Any], entity: Any) -> Any:
    """With its subqueries bound to the entity's row, which SQLAlchemy itself would do only if that row were selected
    from right around them."""

    def bind(element: Any, **_options: Any) -> Any:
        if not isinstance(element, Select):
            return None
        return element.correlate(entity) if element._auto_correlate else element

    return replacement_traverse(expression, {}, bind)


def _refuse_other_rows(expression: Any, entity: Any, path: str) -> None:
    """A column that an aliased class lacks would be read from the table itself, of every row."""
    inspected = inspect(entity)
    if not inspected.is_aliased_class:
        return
    for source in select(expression).get_final_froms():
        if not ({*leaves(source)} <= {*leaves(inspected.selectable)} or source == inspected.selectable):
            raise CannotRender(path, f"the aliased class has no column for {_shown(expression)}")


def _shown(expression: Any) -> str:
    """A column by its name; what is longer isn't shown."""
    return str(expression) if isinstance(expression, ColumnClause) else "its expression"


def _listed(items: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(items, _json_literal([]))


def _object(columns: Sequence[ColumnElement[Any]], entity: Any) -> ColumnElement[Any]:
    """The JSON object of one row."""
    row = select(*columns).correlate(entity).subquery(_ROW)
    return select(func.row_to_json(_WHOLE_ROW)).select_from(row).scalar_subquery()


def _json_literal(value: Any) -> ColumnElement[Any]:
    return literal_column(f"CAST({quoted(orjson.dumps(value).decode())} AS JSON)", JSON)
