"""The viewer (who reads a view) in row filters: `lambda order, viewer: order.user_id == viewer.user_id`.

A row filter is evaluated when the view is made, with a `Viewer` that has no values. Each `viewer.user_id` is an SQL
parameter without a type. Its type is that of the expression that it is compared with. So the filter becomes SQL in two
forms: with parameters, for a statement of one viewer, and with columns of the table of requested keys, for a statement
with one viewer for each key.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from sqlalchemy import (
    ARRAY,
    CTE,
    BinaryExpression,
    BindParameter,
    Boolean,
    Cast,
    Integer,
    String,
    UnaryExpression,
    all_,
    any_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import (
    BooleanClauseList,
    CollectionAggregate,
    ColumnElement,
    False_,
    Grouping,
    True_,
)
from sqlalchemy.sql.operators import ColumnOperators
from sqlalchemy.types import NullType, TypeEngine, UserDefinedType

from howdah._arrays import Array
from howdah._reads.viewer_types import SUPPORTED, ViewerType, find_viewer_type, flatten, merge_types
from howdah.errors import ViewCompileError

_PREFIX: Final = "howdah_viewer_"
_IN: Final = frozenset({operators.in_op, operators.not_in_op})
_IS: Final = frozenset({operators.is_, operators.is_not})
_COMPARISONS: Final = frozenset(
    {operators.eq, operators.ne, operators.lt, operators.le, operators.gt, operators.ge}
    | {operators.is_distinct_from, operators.is_not_distinct_from}
)
_PATTERNS: Final = frozenset({operators.like_op, operators.not_like_op, operators.ilike_op, operators.not_ilike_op})


class Viewer:
    """The viewer that a row filter is called with. Its attributes stand for values that a later read passes."""

    def __init__(self, element: type[ViewerParameter]) -> None:
        self._element = element

    def __getattr__(self, name: str) -> ViewerAttribute:
        if name.startswith("_"):
            raise AttributeError(f"viewer.{name} can't be used in a row filter: its name begins with an underscore")
        return ViewerAttribute(name, self._element)


class ViewerAttribute(ColumnOperators):
    """`viewer.user_id` in a row filter: an SQL expression, which has no value yet."""

    __slots__ = ("_element", "_name")

    def __init__(self, name: str, element: type[ViewerParameter]) -> None:
        self._name, self._element = name, element

    def __clause_element__(self) -> ViewerParameter:
        return self._element(self._name)

    def operate(self, op: Any, *other: Any, **options: Any) -> Any:
        return op(self.__clause_element__(), *other, **options)

    def reverse_operate(self, op: Any, other: Any, **options: Any) -> Any:
        return op(other, self.__clause_element__())

    def __repr__(self) -> str:
        return f"viewer.{self._name}"

    def _reject(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"viewer.{self._name} has no value while the view is made, so Python can't use it: write an SQL expression "
            "with ==, in_(), or_(), case() or cast()"
        )

    __bool__ = __str__ = __iter__ = __contains__ = __hash__ = __format__ = _reject

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"viewer.{self._name}.{name} can't be used in a row filter: an attribute of the viewer is one value. Give "
            f"the viewer an attribute with the value of {name!r}"
        )


class ViewerParameter(BindParameter[Any]):
    """The value of an attribute, as a parameter."""

    inherit_cache = True

    def __init__(self, attribute: str) -> None:
        super().__init__(_PREFIX + attribute, type_=NullType(), required=True)
        self.attribute = attribute


class ViewerValue(ViewerParameter):
    """The value of an attribute, as a parameter that has its value. A statement may have those of several viewers."""

    inherit_cache = True

    def __init__(self, attribute: str) -> None:
        BindParameter.__init__(self, _PREFIX + attribute, None, type_=NullType(), unique=True)
        self.attribute = attribute


class ViewerColumn(ViewerParameter):
    """The value of an attribute, as a column of the table of requested keys. Its type holds the SQL text."""

    inherit_cache = True


class _ColumnText(UserDefinedType[Any]):
    """The type of a `ViewerColumn`. The text is in the type, because SQLAlchemy's statement cache compares types."""

    cache_ok = True

    def __init__(self, text: str) -> None:
        self.text = text


class _SlicedArray(Array):
    """The type of a `ViewerColumn` whose value is a part of an array parameter."""

    cache_ok = True

    def __init__(self, item_type: TypeEngine[Any], bounds: str) -> None:
        super().__init__(item_type)
        self.bounds = bounds


@compiles(ViewerParameter)
def _compile_parameter(element: ViewerParameter, compiler: Any, **options: Any) -> str:
    if isinstance(element.type, NullType):  # a part of the criterion that the traversal didn't reach
        raise _build_error(element.attribute)
    text: str = compiler.visit_bindparam(element, **options)
    return text


@compiles(ViewerColumn)
def _compile_column(element: ViewerColumn, compiler: Any, **options: Any) -> str:
    kind = element.type
    if isinstance(kind, _ColumnText):
        return kind.text
    text = _compile_parameter(element, compiler, **options)
    assert isinstance(kind, _SlicedArray)
    return f"({text})[{kind.bounds}]"


class ViewerAttributes:
    """The attributes of the viewer that the row filters of a view use, with their types."""

    def __init__(self) -> None:
        self._types: dict[str, ViewerType] = {}
        self._has_exact_values = True

    def collect(self, criterion: Any, path: str) -> None:
        """Add the attributes of this criterion. Raises `ViewCompileError` if the type of one is unknown."""
        _reject_common_table_expressions(criterion, path)
        for parameter, kind, is_list in _iterate_uses(criterion):
            name = parameter.attribute
            if kind is None or isinstance(kind, NullType):
                raise _build_error(name, path)
            found = find_viewer_type(kind, is_list=is_list)
            if found is None:
                raise ViewCompileError(
                    path, f"viewer.{name} is compared with a {kind!r}, but a value of a viewer can only be {SUPPORTED}"
                )
            earlier = self._types.get(name)
            merged = found if earlier is None else merge_types(earlier, found)
            if merged is None:
                raise ViewCompileError(
                    path,
                    f"viewer.{name} is compared with two types, {earlier and earlier.parameter_type!r} and "
                    f"{found.parameter_type!r}: use two attributes, or compare with cast(column, type)",
                )
            self._types[name] = merged
            self._has_exact_values = self._has_exact_values and merged.has_exact_items

    def finish(self, criterion: Any, columns: ViewerColumns | None) -> Any:
        """Set the type of each attribute in a criterion that was just made. It is changed in place.

        A copy would be wrong: SQLAlchemy's traversals don't copy the criteria of `any()` and `has()`, and a copied
        alias would no longer be correlated.
        """
        for part in [*visitors.iterate(criterion)]:
            if isinstance(part, ViewerParameter):
                kind = self._types.get(part.attribute)
                if kind is None:
                    raise _build_error(part.attribute)
                part.type = kind.parameter_type if columns is None else columns.types[part.attribute]
                part.expanding = False
        for part in [*visitors.iterate(criterion)]:
            if isinstance(part, BinaryExpression) and part.operator in _IN and isinstance(part.right, ViewerParameter):
                # An IN would need one parameter for each item.
                is_in = part.operator is operators.in_op
                part.operator, part.negate = (operators.eq, operators.ne) if is_in else (operators.ne, operators.eq)
                part.right = any_(part.right) if is_in else all_(part.right)
        return criterion

    def read(self, viewer: Any) -> tuple[Any, ...]:
        """The values of a viewer in the form that is sent. The viewer is an object with these attributes, or a mapping.

        Raises `TypeError` without a viewer or if it lacks an attribute. Raises `InvalidValue` for a wrong value.
        """
        if viewer is None:
            needed = ", ".join(self._types) or "no attributes"
            raise TypeError(f"this view needs a viewer (with {needed}): pass viewer=...")
        return tuple(kind.convert(_get_value(viewer, name), name) for name, kind in self._types.items())

    def identify(self, values: Sequence[Any]) -> Hashable:
        """A key that is equal for two viewers only if PostgreSQL can't distinguish them."""
        return values if self._has_exact_values else object()

    def bind(self, values: Sequence[Any]) -> dict[str, Any]:
        """The parameters for one viewer, from the result of `read`."""
        return {
            _PREFIX + name: [*value] if kind.is_list and value is not None else value
            for (name, kind), value in zip(self._types.items(), values, strict=True)
        }

    def set_values(self, criterion: Any, values: Sequence[Any]) -> None:
        """Set the values of one viewer, from the result of `read`, in a criterion of `ViewerValue`s."""
        parameters = self.bind(values)
        for part in visitors.iterate(criterion):
            if isinstance(part, ViewerValue):
                part.value = parameters[_PREFIX + part.attribute]

    def columns(self, table: str) -> ViewerColumns:
        return ViewerColumns(self._types, table)


class ViewerColumns:
    """The columns of the viewers in the table of requested keys.

    A list has two columns, with the positions of its first and last item in one array of all items.
    """

    def __init__(self, types: Mapping[str, ViewerType], table: str) -> None:
        self._attributes = types
        self.arrays: dict[str, TypeEngine[Any]] = {}
        """The columns of the table, in order. Each one is the parameter `howdah_<column>`, an array of this type."""
        self.types: dict[str, TypeEngine[Any]] = {}
        for number, (name, kind) in enumerate(types.items()):
            column = f"viewer{number}"
            if kind.is_list:
                first, last = f"{column}_first", f"{column}_last"
                self.arrays |= {first: Integer(), last: Integer()}
                self.types[name] = _SlicedArray(kind.kind, f"{table}.{first}:{table}.{last}")
            else:
                self.arrays[column] = kind.kind
                self.types[name] = _ColumnText(f"{table}.{column}")

    def bind(self, viewers: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """The parameters for many viewers, from the results of `read`."""
        parameters: dict[str, list[Any]] = {}
        for number, (name, kind) in enumerate(self._attributes.items()):
            values, column = [viewer[number] for viewer in viewers], f"viewer{number}"
            if kind.is_list:
                parameters[_PREFIX + name], first, last = flatten(values)
                parameters |= {f"howdah_{column}_first": first, f"howdah_{column}_last": last}
            else:
                parameters[f"howdah_{column}"] = values
        return parameters


def _get_value(viewer: Any, name: str) -> Any:
    try:
        return viewer[name] if isinstance(viewer, Mapping) else getattr(viewer, name)
    except (AttributeError, KeyError) as error:
        raise TypeError(
            f"the viewer (a {type(viewer).__name__}) has no {name!r}, which the view's row filters need"
        ) from error


def _build_error(name: str, path: str = "where") -> ViewCompileError:
    return ViewCompileError(
        path,
        f"viewer.{name} has no type: compare it with a column (==, !=, <, in_()), combine a boolean with or_() and "
        f"and_(), or write its type, such as cast(viewer.{name}, Uuid)",
    )


def _reject_common_table_expressions(criterion: Any, path: str) -> None:
    """Raise `ViewCompileError` for a CTE with the viewer in it.

    SQLAlchemy writes it at the beginning of the statement, where the table of requested keys can't be used.
    """
    for part in visitors.iterate(criterion):
        if isinstance(part, CTE) and not part.nesting:
            for inner in visitors.iterate(part.element):
                if isinstance(inner, ViewerParameter):
                    raise ViewCompileError(
                        path,
                        f"viewer.{inner.attribute} is in a CTE, which is the same for all viewers of a statement: "
                        "write subquery(), or cte(nesting=True)",
                    )


def _iterate_uses(criterion: Any) -> Iterator[tuple[ViewerParameter, TypeEngine[Any] | None, bool]]:
    """The viewer's attributes in a criterion. For each its type, and whether it is a list of this type."""
    if isinstance(_ungroup(criterion), ViewerParameter):
        yield _ungroup(criterion), Boolean(), False
    for parent in visitors.iterate(criterion):
        if isinstance(parent, Grouping):  # parentheses
            continue
        child: Any
        for child in parent.get_children():
            inner = _ungroup(child)
            if isinstance(inner, ViewerParameter) and not _is_collection(parent):
                yield inner, *_infer_type(parent, child)
            elif _is_collection(child) and isinstance(_ungroup(child.element), ViewerParameter):
                is_compared = isinstance(parent, BinaryExpression) and parent.operator in _COMPARISONS
                yield _ungroup(child.element), _get_other(parent, child).type if is_compared else None, True


def _infer_type(parent: Any, child: Any) -> tuple[TypeEngine[Any] | None, bool]:
    """Infer the type of an attribute (`child`) from its parent expression, and whether it is a list of this type."""
    if isinstance(parent, Cast):
        return _split_list(parent.type)
    if isinstance(parent, BooleanClauseList) or (
        isinstance(parent, UnaryExpression) and parent.operator is operators.inv
    ):
        return Boolean(), False
    if not isinstance(parent, BinaryExpression):
        return None, False
    other, operator = _get_other(parent, child), parent.operator
    if operator in _IN:
        return other.type, child is parent.right
    if operator in _IS:
        return (Boolean() if isinstance(other, True_ | False_) and child is parent.left else None), False
    if operator in _PATTERNS:
        return String(), False
    if operator in _COMPARISONS and _is_collection(other):
        return _split_list(other.element.type)[0], False
    if operator in _COMPARISONS:
        return _split_list(other.type)
    is_custom = isinstance(operator, operators.custom_op) and operator.is_comparison  # @>, <@ and && of arrays
    return _split_list(other.type) if is_custom and isinstance(other.type, ARRAY) else (None, False)


def _get_other(parent: Any, child: Any) -> ColumnElement[Any]:
    other: ColumnElement[Any] = parent.right if parent.left is child else parent.left
    return other


def _is_collection(element: Any) -> bool:
    """Whether the element is `ANY (…)` or `ALL (…)`."""
    return isinstance(element, CollectionAggregate)


def _ungroup(element: Any) -> Any:
    while isinstance(element, Grouping):
        element = element.element
    return element


def _split_list(kind: TypeEngine[Any]) -> tuple[TypeEngine[Any] | None, bool]:
    """The type of the items if this is the type of a one-dimensional array, otherwise the type itself."""
    if isinstance(kind, ARRAY):
        return (kind.item_type if (kind.dimensions or 1) == 1 else None), True
    return kind, False
