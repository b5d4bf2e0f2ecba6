"""Declare filters on the fields of a model: `Filter` with its operators, `Condition`, and their base class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, TypeAlias, assert_never, overload

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from sqlalchemy import (
    ColumnElement,
    SQLColumnExpression,
    Text,
    any_,
    func,
    literal,
    literal_column,
)
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import RelationshipProperty
from sqlalchemy.types import TypeEngine

from howdah._arrays import WithoutLength, build_array, resolve_postgresql_type
from howdah._reads.filter_values import (
    find_fault,
    is_time,
    make_value_check,
)

Comparison: TypeAlias = Literal["=", "<", "<=", ">", ">=", "in", "is null", "is not null"]
Operator: TypeAlias = Comparison | Literal["prefix", "full text"]
_Text: TypeAlias = SQLColumnExpression[str] | SQLColumnExpression[str | None]

_BYTE_COLLATIONS: Final = ("C", "POSIX")
_CONFIG: Final = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")
_DESCRIPTIONS: Final = {
    "=": "Equal to this value",
    "<": "Less than this value",
    "<=": "At most this value",
    ">": "More than this value",
    ">=": "At least this value",
    "in": "Equal to one of these values: repeat the parameter for several",
    "prefix": "The text begins with this",
    "is null": "`true`: without a value; `false`: with a value",
    "is not null": "`true`: with a value; `false`: without a value",
    "full text": 'Words of the text, as in a web search: `two words`, `"a phrase"`, `this or that`, `-without`',
}
_TIME_DESCRIPTIONS: Final = {
    "<": "Before this time",
    "<=": "At this time or earlier",
    ">": "After this time",
    ">=": "At this time or later",
}


class FilterMarker:
    """Metadata of a field. It adds a description and a check of the values to the field."""

    def describe(self) -> str | None:
        """The description for OpenAPI, if the field has none of its own."""
        return None

    def check(self, value: Any) -> Any:
        """Return the value. Raises `PydanticCustomError` if PostgreSQL can't compare it with the column."""
        return value

    def get_columns(self) -> Iterator[ColumnElement[Any]]:
        """The columns whose tables the statement must select from."""
        yield from ()

    def find_fault(self, annotation: Any) -> str | None:
        """Why a field with this annotation can't have this declaration, or None."""
        return None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        content = handler(schema)
        description = self.describe()
        if description is not None and "$ref" not in content:
            content.setdefault("description", description)
        return content


class Filter(FilterMarker):
    """Compares a column with the value of the field: `Annotated[UUID | None, Filter(Order.user_id)] = None`.

    A value of None, also a missing parameter, means no filter. To find NULL use "is null" or "is not null", whose value
    is a bool. No other operator finds rows in which the column is NULL.

    - "=", "<", "<=", ">", ">=": one value. A range is half-open with ">=" and "<".
    - "in": a list of any length. An empty list finds no rows.
    - "prefix": the text begins with the value. `%` and `_` are ordinary characters. An index with `text_pattern_ops`
      supports it.
    - "full text": the text matches the value in the syntax of `websearch_to_tsquery`. `config` is the text search
      configuration. An index on `to_tsvector('<config>', column)` supports it, or an index on a column of `TSVECTOR`.

    Text comparison is case-sensitive. With `ignore_case` "=" and "prefix" compare `lower(column)` with `lower(value)`,
    as PostgreSQL's `lower` converts them. An index on `lower(column)` supports it.

    A value that the column's type can't hold, such as a too large integer or a text with NUL, is a validation error.
    """

    @overload
    def __init__(self, column: SQLColumnExpression[Any], operator: Comparison = "=") -> None: ...
    @overload
    def __init__(self, column: _Text, operator: Literal["=", "prefix"], *, ignore_case: bool = False) -> None: ...
    @overload
    def __init__(self, column: SQLColumnExpression[Any], operator: Literal["full text"], *, config: str) -> None: ...
    def __init__(
        self,
        column: SQLColumnExpression[Any],
        operator: Operator = "=",
        *,
        ignore_case: bool = False,
        config: str | None = None,
    ) -> None:
        if operator not in _DESCRIPTIONS:
            raise ValueError(f"{operator!r} is not an operator: use one of {', '.join(map(repr, _DESCRIPTIONS))}")
        if ignore_case and operator not in ("=", "prefix"):
            raise ValueError(f"ignore_case is for the operators '=' and 'prefix', not for {operator!r}")
        if (config is not None) is not (operator == "full text"):
            raise ValueError("the operator 'full text' needs config, such as 'english'; other operators have no config")
        if config is not None and _CONFIG.fullmatch(config) is None:
            raise ValueError(f"{config!r} is not the name of a text search configuration, such as 'english'")
        self.column = require_column(column)
        # The attribute's operators may differ from those of its expression, for example in a hybrid with a comparator.
        self._attribute = column
        self.operator = operator
        self.ignore_case = ignore_case
        self.config = config
        self._check = make_value_check(lambda: self.kind, operator)

    @property
    def kind(self) -> TypeEngine[Any]:
        """The type of the column."""
        return self.column.type

    def describe(self) -> str:
        if is_time(self.kind) and self.operator in _TIME_DESCRIPTIONS:
            return _TIME_DESCRIPTIONS[self.operator]
        return _DESCRIPTIONS[self.operator] + (", ignoring case" if self.ignore_case else "")

    def check(self, value: Any) -> Any:
        return self._check(value)

    def get_columns(self) -> Iterator[ColumnElement[Any]]:
        yield self.column

    def find_fault(self, annotation: Any) -> str | None:
        return find_fault(annotation, self.kind, self.operator, ignore_case=self.ignore_case)

    def build_condition(self, value: Any) -> ColumnElement[bool]:
        """The condition for a value that isn't None."""
        column: Any = self._attribute
        condition: ColumnElement[bool]
        match self.operator:
            case "=":
                condition = self._fold(column) == self._fold(self._bind(value))
            case "<":
                condition = column < self._bind(value)
            case "<=":
                condition = column <= self._bind(value)
            case ">":
                condition = column > self._bind(value)
            case ">=":
                condition = column >= self._bind(value)
            case "in":
                # the order of a set differs between processes, and a cursor is bound to the values
                values = value if isinstance(value, list) else sorted(value, key=repr)
                condition = column == any_(build_array(values, self.kind))
            case "prefix":
                # Unlike LIKE, this operator has no wildcards. It uses the same indexes.
                condition = self._fold(column).op("^@", is_comparison=True)(self._fold(literal(value, Text)))
            case "is null" | "is not null":
                condition = column.is_(None) if value is (self.operator == "is null") else column.is_not(None)
            case "full text":
                condition = self._search(value)
            case _:
                assert_never(self.operator)
        return condition

    def build_indexed_condition(self, value: Any) -> ColumnElement[bool]:
        """A condition to test whether an index supports this filter, independent of the database's collation.

        In a column with the collation C, a plain index supports prefixes. Under another collation the index needs
        `text_pattern_ops`, whose operators compare by bytes. `~>=~` is one of them.
        """
        if self.operator != "prefix" or getattr(self.kind, "collation", None) in _BYTE_COLLATIONS:
            return self.build_condition(value)
        compares: ColumnElement[bool] = self._fold(self._attribute).op("~>=~", is_comparison=True)(
            self._fold(literal(value, Text))
        )
        return compares

    def _bind(self, value: Any) -> ColumnElement[Any]:
        return literal(value, WithoutLength(self.kind))

    def _fold(self, expression: Any) -> Any:
        return func.lower(expression) if self.ignore_case else expression

    def _search(self, value: str) -> ColumnElement[bool]:
        # The configuration is a part of the SQL text, because an index on `to_tsvector` contains it as a constant.
        config: ColumnElement[Any] = literal_column(f"'{self.config}'::regconfig")
        is_vector = isinstance(resolve_postgresql_type(self.kind), TSVECTOR)
        vector: Any = self.column if is_vector else func.to_tsvector(config, self.column)
        matches: ColumnElement[bool] = vector.op("@@", is_comparison=True)(
            func.websearch_to_tsquery(config, literal(value, Text))
        )
        return matches


class Condition(FilterMarker):
    """Any other filter: a function that builds the condition from the value of the field.

    label: Annotated[str | None, Condition(lambda name: Issue.labels.any(Label.name == name))] = None

    The function isn't called for None. A condition on another table must be an EXISTS, such as `any()` and `has()`
    build it, or the statement must join the table; otherwise `apply` raises `ValueError`.
    """

    def __init__(self, build: Callable[[Any], ColumnElement[bool]]) -> None:
        self._build = build

    def check(self, value: Any) -> Any:
        return make_value_check(Text, "=")(value) if _has_text(value) else value

    def build_condition(self, value: Any) -> ColumnElement[bool]:
        """The condition for a value that isn't None. Raises `TypeError` if the function returns anything else."""
        condition: Any = self._build(value)
        if not isinstance(condition, ColumnElement) and not hasattr(condition, "__clause_element__"):
            raise TypeError(f"the function of a Condition must return an SQL expression, not {condition!r}")
        return condition  # type: ignore[no-any-return]


def require_column(column: Any) -> ColumnElement[Any]:
    """The column. Raises `TypeError` for anything else, such as a relationship."""
    if isinstance(getattr(column, "comparator", None), RelationshipProperty.Comparator):
        raise TypeError(f"{column} is a relationship: use a column, or Condition with any() or has()")
    expression = column.__clause_element__() if hasattr(column, "__clause_element__") else column
    if not isinstance(expression, ColumnElement):
        raise TypeError(f"{column!r} is not a column")
    return expression


def _has_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))
