"""SQL expressions that write the same JSON as a Pydantic model: one for each field, or `ViewCompileError`.

The model is read as its core schema (`schema_nodes`). A field is rendered from the mapped attribute of the same name:
a column (`scalars`), a value inside of a JSON column (`json_values`), or the rows of a relationship (`relationships`).
"""

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
from howdah._reads.json_values import JsonValues, coalesce_to_empty_list
from howdah._reads.nullability import can_be_null
from howdah._reads.relationships import RelatedRows, iterate_tables
from howdah._reads.row_filters import RowFilters
from howdah._reads.scalars import SCALARS, get_stored_type, is_decimal, is_float
from howdah._reads.schema_nodes import SchemaNodes, reject_text_changes
from howdah._reads.viewers import ViewerColumns
from howdah._sqlalchemy import is_auto_correlated
from howdah.errors import ViewCompileError

# PostgreSQL truncates longer column names, which `row_to_json` uses as the keys.
_MAX_NAME_BYTES: Final = 63

_ROW: Final = "howdah_row"
# `howdah_row.*` is always the whole row. Without `.*` it would be a field of the row that is called `howdah_row`.
_WHOLE_ROW: Final[ColumnElement[Any]] = literal_column(f"{_ROW}.*")

# The types that a config with `ser_json_temporal` writes in another form.
_TIMES: Final = frozenset({"date", "datetime", "time", "timedelta"})


_CHANGE_TYPE: Final = "change the field's type, or read the row with a repository"


class _Place(NamedTuple):
    """A position in the schema."""

    path: str
    models: tuple[type[Any], ...]
    """The models that contain it, from the outermost."""
    config: Mapping[str, Any]
    """The config of the innermost of these models."""
    entities: tuple[Any, ...]
    """The entities of these models' rows, in the same order."""


class Renderer:
    """Renders entities as a Pydantic model writes them. Nested rows are filtered by the row filters.

    With `columns` the values of the viewer are columns of the table of requested keys, otherwise they are parameters.
    Raises `ViewCompileError` for a field that can't be rendered.
    """

    def __init__(
        self, schema: type[BaseModel], row_filters: RowFilters, *, columns: ViewerColumns | None = None
    ) -> None:
        self._row_filters, self._columns = row_filters, columns
        self._nodes = SchemaNodes()
        self._json_values = JsonValues(self._nodes)
        self._schema = schema

    def render_object(self, entity: Any) -> ColumnElement[Any]:
        """The JSON object of one row of the entity, an alias of a mapped class."""
        root = _Place(self._schema.__name__, (), {}, ())
        return _build_json_object(self._render_fields(entity, self._schema.__pydantic_core_schema__, root), entity)

    def get_row_filters(self, entity: Any) -> list[ColumnElement[bool]]:
        """The row filters of the entity's class and of its base classes."""
        return [_correlate(criterion, entity) for criterion in self._row_filters.get(entity, self._columns)]

    def _render_fields(self, entity: Any, node: Any, place: _Place) -> list[ColumnElement[Any]]:
        """An expression for each field, labelled with the field's name in the JSON."""
        model = self._nodes.unwrap_model(node, place.path)
        if model["cls"] in place.models:
            raise ViewCompileError(place.path, f"{model['cls'].__name__} contains itself, so the JSON would never end")
        columns: list[ColumnElement[Any]] = []
        class_ = inspect(entity).mapper.class_
        for field in self._nodes.iterate_fields(model, place.path):
            here = place._replace(
                path=f"{place.path}.{field.name}",
                models=(*place.models, model["cls"]),
                config=model.get("config", {}),
                entities=(*place.entities, entity),
            )
            if len(field.json_name.encode()) > _MAX_NAME_BYTES:
                raise ViewCompileError(
                    here.path, f"its name is longer than {_MAX_NAME_BYTES} bytes, PostgreSQL's limit"
                )
            existing = [each for each in field.source_names if _has_attribute(class_, each)]
            source = existing[0] if existing else field.source_names[0]
            if not existing and _has_attribute(class_, field.name):
                raise ViewCompileError(
                    here.path,
                    f"{class_.__name__} has no attribute {source!r}, which is its alias: set validate_by_name=True in "
                    "the model_config to read the field by its name",
                )
            columns.append(self._render_attribute(entity, source, field.schema, here).label(field.json_name))
        return columns

    def _render_attribute(self, entity: Any, name: str, node: Any, place: _Place) -> ColumnElement[Any]:
        """The value of one mapped attribute of the entity."""
        mapper: Mapper[Any] = inspect(entity).mapper
        descriptor = mapper.all_orm_descriptors.get(name)
        if descriptor is None:
            raise ViewCompileError(
                place.path,
                f"{mapper.class_.__name__} has no mapped attribute {name!r}: rename the field or map the attribute",
            )
        if descriptor.extension_type is AssociationProxyExtensionType.ASSOCIATION_PROXY:
            collection = descriptor.target_collection  # type: ignore[attr-defined]
            raise ViewCompileError(place.path, f"it is an association proxy: nest a model of {collection!r} instead")
        prop: Any = mapper.attrs.get(name)
        while isinstance(prop, SynonymProperty):
            prop = mapper.attrs.get(prop.name)
        is_optional, inner = self._nodes.unwrap_optional(node, place.path)
        if isinstance(prop, RelationshipProperty):
            return self._render_relationship(entity, prop, inner, place, is_optional=is_optional)
        if isinstance(prop, CompositeProperty):
            raise ViewCompileError(place.path, "it is a composite: use a field for each of its columns")
        try:
            expression = getattr(entity, name)
            expression = expression.__clause_element__() if hasattr(expression, "__clause_element__") else expression
            if not isinstance(expression, ColumnElement):
                raise TypeError(f"{expression!r} isn't an SQL expression")
        except Exception as error:  # a hybrid property's own code may raise anything
            raise ViewCompileError(
                place.path,
                f"it isn't an SQL expression of {mapper.class_.__name__}: give the hybrid property an `expression`",
            ) from error
        expression = _correlate(expression, entity)
        _reject_other_rows(expression, entity, place.path)
        if not is_optional and can_be_null(expression, [inspect(entity).selectable]):
            raise ViewCompileError(
                place.path,
                f"{_describe(expression)} may be NULL: make the field Optional, the column NOT NULL, or coalesce() it",
            )
        return self._render_value(expression, inner, place)

    def _render_relationship(
        self, entity: Any, prop: RelationshipProperty[Any], node: Any, place: _Place, *, is_optional: bool
    ) -> ColumnElement[Any]:
        """The related rows: a JSON array, or for a to-one relationship an object or NULL."""
        related = RelatedRows(entity, prop, place.path)
        target = related.target
        if bool(prop.uselist) is not (node["type"] == "list"):
            raise ViewCompileError(
                place.path,
                "the field must be a list of models for a to-many relationship, or a model for a to-one relationship",
            )
        if any(target is each for each in place.entities):
            raise ViewCompileError(
                place.path, "it is nested in rows of the same aliased class: use a relationship to another alias"
            )
        row_filters = self.get_row_filters(target)
        for criterion in row_filters:
            _reject_other_rows(criterion, target, place.path)
        if not prop.uselist and not is_optional and (row_filters or related.can_be_absent()):
            raise ViewCompileError(
                place.path, "the related row may not exist, or the view's `where` may hide it: make the field Optional"
            )
        columns = self._render_fields(target, node["items_schema"] if prop.uselist else node, place)
        if not prop.uselist:
            one = related.select([_build_json_object(columns, target)], row_filters)
            if not related.has_at_most_one():
                one = one.order_by(*related.get_order()).limit(1)
            return one.scalar_subquery()
        if related.has_no_duplicates:
            ordered = related.select(columns, row_filters).order_by(*related.get_order()).subquery(_ROW)
            return select(coalesce_to_empty_list(func.json_agg(_WHOLE_ROW))).select_from(ordered).scalar_subquery()
        # The association may have several rows for one target. SQLAlchemy loads the target once, at its first position.
        copy = func.row_number().over(partition_by=get_key_attributes(target), order_by=related.get_order())
        position = func.row_number().over(order_by=related.get_order())
        numbered = [_build_json_object(columns, target).label("item"), copy.label("copy"), position.label("position")]
        rows = related.select(numbered, row_filters).subquery(_ROW)
        items = func.json_agg(aggregate_order_by(rows.c.item, rows.c.position))
        return select(coalesce_to_empty_list(items)).where(rows.c.copy == literal_column("1")).scalar_subquery()

    def _render_value(self, value: ColumnElement[Any], node: Any, place: _Place) -> ColumnElement[Any]:
        """The value of a column, in a form that `row_to_json` writes as the model does."""
        kind = get_stored_type(value.type, place.path)
        if isinstance(value.type, DOMAIN):  # SQLAlchemy has no operators for a DOMAIN
            value = type_coerce(value, kind)
        if isinstance(kind, JSON):
            return self._json_values.render(value, node, place.path)
        if isinstance(kind, ARRAY):
            return self._render_array(value, kind, node, place)
        if node["type"] in _TIMES and place.config.get("ser_json_temporal", "iso8601") != "iso8601":
            raise ViewCompileError(place.path, "its model_config has ser_json_temporal: a view writes ISO 8601 only")
        reject_text_changes(node, place.path)
        render = SCALARS.get(node["type"])
        rendered = None if render is None else render(value, kind, node, place.config)
        if rendered is None:
            remedy = f"use {kind.enum_class.__name__}" if isinstance(kind, Enum) and kind.enum_class else _CHANGE_TYPE
            raise ViewCompileError(
                place.path,
                f"a field of type {node['type']} doesn't fit a column of type {value.type!r}: {remedy}",
            )
        return rendered

    def _render_array(
        self, value: ColumnElement[Any], kind: ARRAY[Any], node: Any, place: _Place
    ) -> ColumnElement[Any]:
        """The value of an array column. PostgreSQL must write its items in the same way as the model."""
        path = place.path
        items, dimensions = node, 0
        while items["type"] == "list":
            items, dimensions = self._nodes.unwrap_optional(items["items_schema"], path)[1], dimensions + 1
        if not dimensions or (kind.dimensions or 1) != dimensions:
            raise ViewCompileError(
                path,
                f"a field of type {node['type']} doesn't fit a column of type {value.type!r}: use one list "
                "for each dimension",
            )
        item = get_stored_type(kind.item_type, path)
        if items["type"] == "decimal" and is_decimal(item):
            return cast(value, ARRAY(Text))
        if items["type"] == "float" and is_float(item):
            return cast(value, ARRAY(Double))
        reject_text_changes(items, path)
        render = SCALARS.get(items["type"])
        sample = column("item", kind.item_type)
        # The items of an array can't be converted one by one, so their type must be one that is rendered unchanged.
        if render is None or render(sample, item, items, place.config) is not sample:
            raise ViewCompileError(
                path,
                f"a list of {items['type']} doesn't fit a column of type {value.type!r}: {_CHANGE_TYPE}",
            )
        return value


def _correlate(expression: ColumnElement[Any], entity: Any) -> Any:
    """The expression, with its subqueries correlated to the entity's row.

    SQLAlchemy correlates them automatically only if the directly enclosing SELECT has the entity in its FROM. A
    subquery within a subquery isn't changed here: SQLAlchemy correlates it to the outer subquery.
    """
    selectable = inspect(entity).selectable
    own = (selectable, *iterate_tables(selectable))

    def correlate_select(element: Any, **_options: Any) -> Any:
        if not isinstance(element, Select):
            return None  # the traversal goes on inside of the element
        sources = element.get_final_froms()
        outer = [source for source in sources if source in own]
        has_rest = len(outer) < len(sources)  # a subquery on this table alone isn't correlated
        return element.correlate(*own) if is_auto_correlated(element) and outer and has_rest else element

    return replacement_traverse(expression, {}, correlate_select)


def _has_attribute(class_: type[Any], name: str) -> bool:
    return any(name in vars(each) for each in class_.__mro__)  # getattr() would run the code of a hybrid property


def _reject_other_rows(expression: Any, entity: Any, path: str) -> None:
    """Raise `ViewCompileError` if the expression has a column that the aliased class lacks.

    SQLAlchemy would add the table itself to FROM, with all its rows.
    """
    if not inspect(entity).is_aliased_class:
        return
    selectable = inspect(entity).selectable
    if not {selectable, *iterate_tables(selectable)}.issuperset(select(expression).get_final_froms()):
        raise ViewCompileError(path, f"its aliased class has no column for {_describe(expression)}")


def _describe(expression: Any) -> str:
    """The name of a column; a general text for any other expression."""
    return str(expression) if isinstance(expression, ColumnClause) else "its expression"


def _build_json_object(columns: Sequence[ColumnElement[Any]], entity: Any) -> ColumnElement[Any]:
    """The JSON object of one row."""
    row = select(*columns).correlate(entity).subquery(_ROW)
    return select(func.row_to_json(_WHOLE_ROW)).select_from(row).scalar_subquery()
