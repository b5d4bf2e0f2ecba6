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
    Column,
    Date,
    DateTime,
    Double,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    Select,
    String,
    Text,
    Time,
    Uuid,
    case,
    cast,
    column,
    func,
    inspect,
    literal_column,
    null,
    select,
)
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.dialects.postgresql import INTERVAL, JSONB, aggregate_order_by
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    ColumnProperty,
    CompositeProperty,
    Mapper,
    RelationshipDirection,
    RelationshipProperty,
    aliased,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.util import ClauseAdapter
from sqlalchemy.sql.visitors import replacement_traverse
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from howdah.errors import CannotRender
from howdah.keys import key_attributes

Where = Mapping[type[Any], Callable[[Any], ColumnElement[bool]]]

# PostgreSQL cuts longer names of columns, and a row's JSON has its columns' names.
_LONGEST_NAME_BYTES: Final = 63

# What PostgreSQL's functions take.
_MOST_ARGUMENTS: Final = 100

_ROW: Final = "howdah_row"
_WHOLE_ROW: Final[ColumnElement[Any]] = literal_column(f"{_ROW}.*")  # a field may have this name, too

_DAY_SECONDS: Final = 86_400

# These change a text before it is compared or sent.
_TEXT_CHANGES: Final = ("strip_whitespace", "to_lower", "to_upper", "coerce_numbers_to_str")
_TIMES: Final = frozenset({"date", "datetime", "time", "timedelta"})
_MODEL_CHANGES: Final = ("str_strip_whitespace", "str_to_lower", "str_to_upper")


class _Place(NamedTuple):
    """Where in the schema something is rendered."""

    path: str
    above: tuple[type[Any], ...]
    """The models around it."""
    config: Mapping[str, Any]
    """Of the innermost of them."""


class Renderer:
    """Renders entities as a Pydantic model writes them. `where` has a criterion for each class of which not all rows
    may be seen."""

    def __init__(self, schema: type[BaseModel], where: Where) -> None:
        self._where = where
        self._definitions: dict[str, Any] = {}
        self._checked: set[int] = set()
        self._schema = schema

    def object_of(self, entity: Any) -> ColumnElement[Any]:
        """The JSON object of one row of the entity, an alias of a mapped class."""
        root = _Place(self._schema.__name__, (), {})
        return _object(self._columns(entity, self._schema.__pydantic_core_schema__, root), entity)

    def criteria(self, entity: Any) -> list[ColumnElement[bool]]:
        """What the rows of an entity must fulfil to be seen."""
        mapped = inspect(entity).mapper
        return [criterion(entity) for model, criterion in self._where.items() if mapped.isa(inspect(model))]

    def _columns(self, entity: Any, node: Any, place: _Place) -> list[ColumnElement[Any]]:
        """An expression for each field, under the name that it has in the JSON."""
        model = self._model(node, place.path)
        if model["cls"] in place.above:
            raise CannotRender(place.path, f"{model['cls'].__name__} contains itself, which has no end")
        columns: list[ColumnElement[Any]] = []
        for name, output, source, inner in self._fields(model, place.path):
            here = _Place(f"{place.path}.{name}", (*place.above, model["cls"]), model.get("config", {}))
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
        if name not in mapper.all_orm_descriptors:
            raise CannotRender(place.path, f"{mapper.class_.__name__} has no mapped attribute {name!r}")
        prop: Any = mapper.attrs.get(name)
        optional, inner = self._optional(node, place.path)
        if isinstance(prop, RelationshipProperty):
            return self._related(entity, prop, (optional, inner), place)
        if isinstance(prop, CompositeProperty):
            raise CannotRender(place.path, "it is a composite: name its columns")
        expression = getattr(entity, name)
        try:
            expression = expression.__clause_element__() if hasattr(expression, "__clause_element__") else expression
        except InvalidRequestError as error:
            raise CannotRender(place.path, "it is no SQL expression of the class") from error
        expression = _correlated(expression, entity)
        column = prop.columns[0] if isinstance(prop, ColumnProperty) else None
        if isinstance(column, Column) and column.nullable and not optional:
            raise CannotRender(place.path, f"{column} may be NULL: make the field Optional, or the column NOT NULL")
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
        if prop.lazy in {"dynamic", "write_only"} or (prop.uselist and prop.collection_class not in {None, list}):
            raise CannotRender(place.path, "the relationship isn't a list")
        if bool(prop.uselist) is not (node["type"] == "list"):
            raise CannotRender(place.path, "a list for a to-many relationship, a model for a to-one")
        target = aliased(prop.mapper)
        hidden = self.criteria(target)
        if not prop.uselist and not optional and (hidden or not _is_always_there(prop)):
            raise CannotRender(place.path, "there may be none, or none to be seen: make the field Optional")
        columns = self._columns(target, node["items_schema"] if prop.uselist else node, place)
        related = getattr(entity, prop.key).of_type(target)
        order = _order_of(prop, target, related)
        if not prop.uselist:
            found = select(_object(columns, target)).where(related, *hidden).correlate(entity)
            if prop.direction is not RelationshipDirection.MANYTOONE:  # of which there can be several, in spite of all
                found = found.order_by(*order).limit(1)
            return found.scalar_subquery()
        rows = select(*columns).where(related, *hidden).correlate(entity).order_by(*order)
        items = func.coalesce(func.json_agg(_WHOLE_ROW), _json_literal([]))
        return select(items).select_from(rows.subquery(_ROW)).scalar_subquery()

    def _value(self, value: ColumnElement[Any], node: Any, place: _Place) -> ColumnElement[Any]:
        """A column's value, such that `row_to_json` writes it as the model does."""
        kind = _stored(value.type, place.path)
        if isinstance(kind, JSON):
            return self._json(value, node, place.path, ())
        if isinstance(kind, ARRAY):
            return self._array(value, kind, node, place)
        if node["type"] in _TIMES and place.config.get("ser_json_temporal", "iso8601") != "iso8601":
            raise CannotRender(place.path, "its model_config has ser_json_temporal")
        render = _SCALARS.get(node["type"])
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
        item = _stored(kind.item_type, path)
        if items["type"] == "decimal" and isinstance(item, Numeric):
            return cast(value, ARRAY(Text))
        if items["type"] == "float" and isinstance(item, Float):
            return cast(value, ARRAY(Double))
        render = _SCALARS.get(items["type"])
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
                pairs += [literal_column(_quoted(output)), self._or_default(value, source, picked, inner, here)]
            built = func.json_build_object(*pairs)
            return case((func.jsonb_typeof(value) == "object", built), else_=null())
        if node["type"] == "list" and self._optional(node["items_schema"], path)[1]["type"] == "model":
            each = func.jsonb_array_elements(value).table_valued("value", with_ordinality="place").render_derived()
            item = self._json(each.c.value, node["items_schema"], path, above)
            every = select(func.json_agg(aggregate_order_by(item, each.c.place)))
            listed = func.coalesce(every.select_from(each).scalar_subquery(), _json_literal([]))
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
        if any(node.get(change) for change in _TEXT_CHANGES):
            raise CannotRender(path, "its text is changed in Python")
        parts = [node[name] for name in ("items_schema", "keys_schema", "values_schema") if name in node]
        for part in [*parts, *node.get("choices", ())]:
            self._refuse_code(part[0] if isinstance(part, tuple) else part, path)


_PLAIN_JSON: Final = frozenset(
    {"any", "bool", "date", "datetime", "dict", "float", "int", "list", "literal", "str", "time", "union", "uuid"}
)
Render = Callable[[ColumnElement[Any], TypeEngine[Any], Any, Mapping[str, Any]], ColumnElement[Any] | None]


def _as_it_is(*kinds: type[TypeEngine[Any]]) -> Render:
    def render(
        value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
    ) -> ColumnElement[Any] | None:
        return value if isinstance(kind, kinds) and not isinstance(kind, SqlEnum) else None

    return render


def _text(
    value: ColumnElement[Any], kind: TypeEngine[Any], node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if any(node.get(change) for change in _TEXT_CHANGES):
        return None
    return value if isinstance(kind, String) and not isinstance(kind, SqlEnum) else None


def _decimal(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    exact = isinstance(kind, Integer) or (isinstance(kind, Numeric) and not isinstance(kind, Float) and kind.asdecimal)
    return cast(value, Text) if exact else None


def _moment(
    value: ColumnElement[Any], kind: TypeEngine[Any], node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    """A date, or a date with a time. The driver reads PostgreSQL's infinities as Python's least and greatest."""
    least, greatest = ("0001-01-01", "9999-12-31")
    if node["type"] == "datetime":
        zone = "Z" if getattr(kind, "timezone", False) else ""
        least, greatest = f"{least}T00:00:00{zone}", f"{greatest}T23:59:59.999999{zone}"
        moment = func.timezone(literal_column("'UTC'"), value) if zone else value
        text = func.to_char(moment, literal_column(_quoted('YYYY-MM-DD"T"HH24:MI:SS.US' + (zone and f'"{zone}"'))))
        finite = func.replace(text, literal_column(f"'.000000{zone}'"), literal_column(f"'{zone}'"))
    else:
        finite = func.to_char(value, literal_column("'YYYY-MM-DD'"))
    if not isinstance(kind, DateTime if node["type"] == "datetime" else Date):
        return None
    return case(
        (func.isfinite(value), finite),
        (value.is_(None), null()),
        (value == literal_column("'infinity'"), literal_column(_quoted(greatest))),
        else_=literal_column(_quoted(least)),
    )


def _time(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if not isinstance(kind, Time) or kind.timezone:  # PostgreSQL writes +02, which Pydantic doesn't read
        return None
    text = func.to_char(cast(value, INTERVAL), literal_column("'HH24:MI:SS.US'"))
    return func.replace(text, literal_column("'.000000'"), literal_column("''"))


def _timedelta(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if not isinstance(kind, Interval | INTERVAL):
        return None
    # a year is 365.25 days here, and 365 to the driver
    seconds = func.extract("epoch", value) - func.extract("year", value) * (_DAY_SECONDS // 4)
    if config.get("ser_json_timedelta", "iso8601") == "float":
        return seconds
    size = func.abs(seconds)  # in one number of seconds Pydantic reads no more than 32 bits
    sign = case((seconds < 0, "-"), else_="")
    text = func.concat(sign, "P", func.div(size, _DAY_SECONDS), "DT", func.mod(size, _DAY_SECONDS), "S")
    return case((value.is_(None), null()), else_=text)


def _bytes(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if not isinstance(kind, LargeBinary):
        return None
    written_as = config.get("ser_json_bytes", "utf8")
    if written_as == "hex":
        return func.encode(value, "hex")
    if written_as == "base64":  # of RFC 4648, section 5; PostgreSQL breaks its lines
        return func.translate(func.encode(value, "base64"), "+/\n", "-_")
    return func.convert_from(value, "UTF8")


def _float(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if isinstance(kind, Float) and not isinstance(kind, Double):  # in as many digits as Python has of it
        return cast(value, Double)
    return value if isinstance(kind, Float | Numeric | Integer) else None


def _enum(
    value: ColumnElement[Any], kind: TypeEngine[Any], node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if not isinstance(kind, SqlEnum):
        return value if isinstance(kind, String | Integer) else None
    if kind.enum_class is not node["cls"]:
        return None
    members: Mapping[Any, Any] = kind._object_lookup
    written = {label: members[label].value for label in kind.enums}
    if all(label == json for label, json in written.items()):
        return value
    if len({type(json) for json in written.values()}) > 1 or not isinstance(next(iter(written.values())), str | int):
        return None
    return case(written, value=cast(value, Text))


_SCALARS: Final[Mapping[str, Render]] = {
    "any": _as_it_is(String, Integer, Boolean),
    "bool": _as_it_is(Boolean),
    "bytes": _bytes,
    "date": _moment,
    "datetime": _moment,
    "decimal": _decimal,
    "enum": _enum,
    "float": _float,
    "int": _as_it_is(Integer),
    "literal": _as_it_is(String, Integer, Boolean),
    "str": _text,
    "time": _time,
    "timedelta": _timedelta,
    "uuid": _as_it_is(Uuid),
}


def _stored(kind: TypeEngine[Any], path: str) -> TypeEngine[Any]:
    """The type whose values come from the database as they are stored."""
    if isinstance(kind, NullType):
        raise CannotRender(path, "its type isn't known: give the expression one, func.length(..., type_=Integer)")
    if not isinstance(kind, TypeDecorator) or isinstance(kind, Interval):  # which PostgreSQL has itself
        return kind
    if (
        type(kind).process_result_value is not TypeDecorator.process_result_value
        or type(kind).result_processor is not TypeDecorator.result_processor
    ):
        raise CannotRender(path, f"{kind!r} makes its values in Python")
    return _stored(kind.impl_instance, path)


def _is_always_there(prop: RelationshipProperty[Any]) -> bool:
    """Whether a to-one relationship has its foreign key here, and that is never NULL."""
    return prop.direction is RelationshipDirection.MANYTOONE and not any(c.nullable for c in prop.local_columns)


def _order_of(prop: RelationshipProperty[Any], target: Any, related: Any) -> Sequence[Any]:
    """The relationship's own order, then the key: without one the order would be PostgreSQL's mood."""
    given = list(prop.order_by or ())
    between = (
        each for each in related.__clause_element__()._from_objects if getattr(each, "element", None) is prop.secondary
    )
    for selectable in (inspect(target).selectable, *(between if prop.secondary is not None else ())):
        given = [ClauseAdapter(selectable).traverse(clause) for clause in given]
    return [*given, *key_attributes(target)]


def _correlated(expression: ColumnElement[Any], entity: Any) -> Any:
    """With its subqueries bound to the entity's row, which SQLAlchemy itself would do only if that row were selected
    from right around them."""

    def bind(element: Any, **_options: Any) -> Any:
        if not isinstance(element, Select):
            return None
        return element.correlate(entity) if element._auto_correlate else element

    return replacement_traverse(expression, {}, bind)


def _object(columns: Sequence[ColumnElement[Any]], entity: Any) -> ColumnElement[Any]:
    """The JSON object of one row."""
    row = select(*columns).correlate(entity).subquery(_ROW)
    return select(func.row_to_json(_WHOLE_ROW)).select_from(row).scalar_subquery()


def _json_literal(value: Any) -> ColumnElement[Any]:
    return literal_column(f"CAST({_quoted(orjson.dumps(value).decode())} AS JSON)", JSON)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
