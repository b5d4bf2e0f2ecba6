"""SQL expressions that write the same JSON as a Pydantic model: one for each field, or `ViewCompileError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from sqlalchemy import (
    ARRAY,
    JSON,
    Double,
    Enum,
    Select,
    Text,
    cast,
    column,
    func,
    inspect,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import DOMAIN, aggregate_order_by
from sqlalchemy.ext.associationproxy import AssociationProxyExtensionType
from sqlalchemy.orm import CompositeProperty, Mapper, RelationshipProperty, SynonymProperty
from sqlalchemy.sql.elements import ColumnClause, ColumnElement
from sqlalchemy.sql.visitors import replacement_traverse

from howdah._keys import get_key_attributes
from howdah._reads.json_values import JsonValues, listed
from howdah._reads.nullability import can_be_null
from howdah._reads.relationships import RelatedRows, leaves
from howdah._reads.row_filters import RowFilter, check_row_filter
from howdah._reads.scalars import SCALARS, is_decimal, is_float, stored_type
from howdah._reads.schema_nodes import SchemaNodes, refuse_text_changes
from howdah._sqlalchemy import is_auto_correlated
from howdah.errors import ViewCompileError

# PostgreSQL truncates longer column names, which `row_to_json` uses as the keys.
_LONGEST_NAME_BYTES: Final = 63

_ROW: Final = "howdah_row"
_WHOLE_ROW: Final[ColumnElement[Any]] = literal_column(f"{_ROW}.*")  # with `.*` it isn't a field of the same name

_TIMES: Final = frozenset({"date", "datetime", "time", "timedelta"})


class _Place(NamedTuple):
    """A position in the schema."""

    path: str
    above: tuple[type[Any], ...]
    """The models that contain it."""
    config: Mapping[str, Any]
    """The config of the innermost of these models."""
    entities: tuple[Any, ...]
    """The entities of these models' rows."""


class Renderer:
    """Renders entities as a Pydantic model writes them. `where` has the row filters of some mapped classes."""

    def __init__(self, schema: type[BaseModel], where: Mapping[type[Any], RowFilter]) -> None:
        for model, row_filter in where.items():
            check_row_filter(model, row_filter)
        self._where = where
        self._nodes = SchemaNodes()
        self._json = JsonValues(self._nodes)
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
                raise ViewCompileError(
                    f"where[{model.__name__}]", f"its rows are read as {mapped.class_.__name__}, too: filter that class"
                )
        return criteria

    def _columns(self, entity: Any, node: Any, place: _Place) -> list[ColumnElement[Any]]:
        """An expression for each field, labelled with the field's name in the JSON."""
        model = self._nodes.model(node, place.path)
        if model["cls"] in place.above:
            raise ViewCompileError(place.path, f"{model['cls'].__name__} contains itself, so the JSON would never end")
        columns: list[ColumnElement[Any]] = []
        class_ = inspect(entity).mapper.class_
        for name, output, sources, inner in self._nodes.fields(model, place.path):
            here = place._replace(
                path=f"{place.path}.{name}",
                above=(*place.above, model["cls"]),
                config=model.get("config", {}),
                entities=(*place.entities, entity),
            )
            if len(output.encode()) > _LONGEST_NAME_BYTES:
                raise ViewCompileError(here.path, f"its name is longer than {_LONGEST_NAME_BYTES} bytes")
            source = next((each for each in sources if _has_attribute(class_, each)), sources[0])
            if not _has_attribute(class_, source) and _has_attribute(class_, name):
                raise ViewCompileError(
                    here.path,
                    f"{class_.__name__} has no attribute {source!r}, which is its alias: with validate_by_name=True in "
                    "the model_config it is read by its name, too",
                )
            columns.append(self._attribute(entity, source, inner, here).label(output))
        return columns

    def _attribute(self, entity: Any, name: str, node: Any, place: _Place) -> ColumnElement[Any]:
        mapper: Mapper[Any] = inspect(entity).mapper
        descriptor = mapper.all_orm_descriptors.get(name)
        if descriptor is None:
            raise ViewCompileError(place.path, f"{mapper.class_.__name__} has no mapped attribute {name!r}")
        if descriptor.extension_type is AssociationProxyExtensionType.ASSOCIATION_PROXY:
            collection = descriptor.target_collection  # type: ignore[attr-defined]
            raise ViewCompileError(place.path, f"it is an association proxy: nest a model of {collection!r} instead")
        prop: Any = mapper.attrs.get(name)
        while isinstance(prop, SynonymProperty):
            prop = mapper.attrs.get(prop.name)
        optional, inner = self._nodes.optional(node, place.path)
        if isinstance(prop, RelationshipProperty):
            return self._related(entity, prop, (optional, inner), place)
        if isinstance(prop, CompositeProperty):
            raise ViewCompileError(place.path, "it is a composite: name its columns")
        try:
            expression = getattr(entity, name)
            expression = expression.__clause_element__() if hasattr(expression, "__clause_element__") else expression
            if not isinstance(expression, ColumnElement):
                raise TypeError(f"{expression!r} is no expression")
        except Exception as error:  # a hybrid property's own code may raise anything
            raise ViewCompileError(
                place.path,
                f"it is no SQL expression of {mapper.class_.__name__}: give the hybrid property an `expression`",
            ) from error
        expression = _correlated(expression, entity)
        _refuse_other_rows(expression, entity, place.path)
        if not optional and can_be_null(expression, [inspect(entity).selectable]):
            raise ViewCompileError(
                place.path,
                f"{_shown(expression)} may be NULL: make the field Optional, the column NOT NULL, or coalesce() it",
            )
        return self._value(expression, inner, place)

    def _related(
        self, entity: Any, prop: RelationshipProperty[Any], wanted: tuple[bool, Any], place: _Place
    ) -> ColumnElement[Any]:
        optional, node = wanted
        related = RelatedRows(entity, prop, place.path)
        target = related.target
        if bool(prop.uselist) is not (node["type"] == "list"):
            raise ViewCompileError(
                place.path, "a to-many relationship needs a list of models, a to-one relationship a model"
            )
        if any(target is each for each in place.entities):
            raise ViewCompileError(place.path, "it is nested in rows of the same aliased class")
        hidden = self.criteria(target)
        for criterion in hidden:
            _refuse_other_rows(criterion, target, place.path)
        if not prop.uselist and not optional and (hidden or related.can_be_absent()):
            raise ViewCompileError(
                place.path, "its row may be absent, or a row filter may hide it: make the field Optional"
            )
        columns = self._columns(target, node["items_schema"] if prop.uselist else node, place)
        if not prop.uselist:
            one = related.select([_object(columns, target)], hidden)
            if not related.has_at_most_one():
                one = one.order_by(*related.order()).limit(1)
            return one.scalar_subquery()
        if related.has_each_once:
            rows = related.select(columns, hidden).order_by(*related.order()).subquery(_ROW)
            return select(listed(func.json_agg(_WHOLE_ROW))).select_from(rows).scalar_subquery()
        copy = func.row_number().over(partition_by=get_key_attributes(target), order_by=related.order())
        position = func.row_number().over(order_by=related.order())
        numbered = [_object(columns, target).label("item"), copy.label("copy"), position.label("position")]
        found = related.select(numbered, hidden).subquery(_ROW)
        items = func.json_agg(aggregate_order_by(found.c.item, found.c.position))
        return select(listed(items)).where(found.c.copy == literal_column("1")).scalar_subquery()

    def _value(self, value: ColumnElement[Any], node: Any, place: _Place) -> ColumnElement[Any]:
        """The value of a column, in a form that `row_to_json` writes as the model does."""
        kind = stored_type(value.type, place.path)
        if isinstance(value.type, DOMAIN):  # SQLAlchemy has no operators for a DOMAIN
            value = type_coerce(value, kind)
        if isinstance(kind, JSON):
            return self._json.render(value, node, place.path)
        if isinstance(kind, ARRAY):
            return self._array(value, kind, node, place)
        if node["type"] in _TIMES and place.config.get("ser_json_temporal", "iso8601") != "iso8601":
            raise ViewCompileError(place.path, "its model_config has ser_json_temporal")
        refuse_text_changes(node, place.path)
        render = SCALARS.get(node["type"])
        rendered = None if render is None else render(value, kind, node, place.config)
        if rendered is None:
            hint = f": use {kind.enum_class.__name__}" if isinstance(kind, Enum) and kind.enum_class else ""
            raise ViewCompileError(place.path, f"a {node['type']} isn't made of {value.type!r}{hint}")
        return rendered

    def _array(self, value: ColumnElement[Any], kind: ARRAY[Any], node: Any, place: _Place) -> ColumnElement[Any]:
        path = place.path
        items, dimensions = node, 0
        while items["type"] == "list":
            items, dimensions = self._nodes.optional(items["items_schema"], path)[1], dimensions + 1
        if not dimensions or (kind.dimensions or 1) != dimensions:
            raise ViewCompileError(path, f"a {node['type']} isn't made of {value.type!r}")
        item = stored_type(kind.item_type, path)
        if items["type"] == "decimal" and is_decimal(item):
            return cast(value, ARRAY(Text))
        if items["type"] == "float" and is_float(item):
            return cast(value, ARRAY(Double))
        refuse_text_changes(items, path)
        render = SCALARS.get(items["type"])
        sample = column("item", kind.item_type)
        if render is None or render(sample, item, items, place.config) is not sample:
            raise ViewCompileError(path, f"a list of {items['type']} isn't made of {value.type!r}")
        return value


def _correlated(expression: ColumnElement[Any], entity: Any) -> Any:
    """The expression, with its subqueries correlated to the entity's row.

    SQLAlchemy correlates them automatically only if the directly enclosing SELECT has the entity in its FROM. A
    subquery within a subquery is correlated to that subquery, as in SQLAlchemy.
    """
    selectable = inspect(entity).selectable
    own = (selectable, *leaves(selectable))

    def bind(element: Any, **_options: Any) -> Any:
        if not isinstance(element, Select):
            return None
        sources = element.get_final_froms()
        outer = [source for source in sources if source in own]
        has_rest = len(outer) < len(sources)  # a subquery on this table alone isn't correlated
        return element.correlate(*own) if is_auto_correlated(element) and outer and has_rest else element

    return replacement_traverse(expression, {}, bind)


def _has_attribute(class_: type[Any], name: str) -> bool:
    return any(name in vars(each) for each in class_.__mro__)  # getattr() would run the code of a hybrid property


def _refuse_other_rows(expression: Any, entity: Any, path: str) -> None:
    """Raise `ViewCompileError` if the expression has a column that the aliased class lacks.

    SQLAlchemy would add the table itself to FROM, with all its rows.
    """
    if not inspect(entity).is_aliased_class:
        return
    selectable = inspect(entity).selectable
    if not {selectable, *leaves(selectable)}.issuperset(select(expression).get_final_froms()):
        raise ViewCompileError(path, f"its aliased class has no column for {_shown(expression)}")


def _shown(expression: Any) -> str:
    """The name of a column; a general text for any other expression."""
    return str(expression) if isinstance(expression, ColumnClause) else "its expression"


def _object(columns: Sequence[ColumnElement[Any]], entity: Any) -> ColumnElement[Any]:
    """The JSON object of one row."""
    row = select(*columns).correlate(entity).subquery(_ROW)
    return select(func.row_to_json(_WHOLE_ROW)).select_from(row).scalar_subquery()
