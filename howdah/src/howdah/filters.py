"""Filters and sorting of a list, declared on the fields of a Pydantic model.

class OrderFilters(Filters):
    user_id: Annotated[UUID | None, Filter(Order.user_id)] = None
    status: Annotated[list[OrderStatus] | None, Filter(Order.status, "in")] = None
    placed_from: Annotated[RFC3339Datetime | None, Filter(Order.placed_at, ">=")] = None
    sort: Annotated[Literal["placed_at", "-placed_at"], Sort({"placed_at": Order.placed_at})] = "-placed_at"

statement = filters.apply(select(Order))

A client can send only the fields of the model. Each field has one column and one operator.
`howdah.fastapi.PageParameters` is such a model, so these declarations work on the parameters of a list route.

- `howdah._reads.filter_markers`: `Filter` and `Condition`, and what each operator means.
- `howdah._reads.sort_markers`: `Sort`.
- `howdah._reads.filter_values`: which types a column can be compared with, and which values PostgreSQL accepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final, TypeVar
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from sqlalchemy import (
    FromClause,
    Join,
    Select,
    SelectBase,
    select,
)
from sqlalchemy.sql.selectable import FromGrouping

from howdah._reads.filter_markers import Condition, Filter, FilterMarker
from howdah._reads.filter_values import (
    iterate_nested,
)
from howdah._reads.sort_markers import Sort

# Not `Select[Any]`: in SQLAlchemy 2.1 a `Select` of two columns has another type.
StatementT = TypeVar("StatementT", bound=SelectBase)

# For each statement, the classes of which it has all tables. They aren't checked again, because `list_response` passes
# the same statement again and again.
_checked_classes: Final[WeakKeyDictionary[Select[Any], set[type[Filters]]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Declarations:
    """The filters of a class by the name of their field, and its `Sort`."""

    filters: Mapping[str, Filter | Condition]
    sort: tuple[str, Sort] | None

    @cached_property
    def tables(self) -> dict[str, Sequence[FromClause]]:
        """The tables of each field's columns."""
        # not computed when the class is created, because its mapped classes may be incomplete then
        fields: dict[str, FilterMarker] = {**self.filters, **({} if self.sort is None else dict([self.sort]))}
        return {
            name: select(*columns).get_final_froms()
            for name, marker in fields.items()
            if (columns := [*marker.get_columns()])
        }


class Filters(BaseModel):
    """A model whose fields are filters of a list: `filters.apply(select(Order))`.

    A field that is declared with `Filter` or `Condition` is a filter. A field that is declared with `Sort` is the
    order. Other fields don't change the statement. Unknown names are rejected. The declarations are checked when the
    class is created: `TypeError` names the field whose type, column or operator don't fit.
    """

    model_config = ConfigDict(extra="forbid")

    _declared: ClassVar[_Declarations | None] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        cls._declared = None
        if cls.__pydantic_complete__:  # otherwise a type isn't defined yet
            get_declarations(cls)

    def apply(self, statement: StatementT) -> StatementT:
        """The statement with the conditions of all fields whose value isn't None, and with the order of the `Sort`.

        The order replaces that of the statement, unless the value of the `Sort` is None. Raises `ValueError` if the
        statement doesn't select from the table of a declared column or of a `Condition`, because PostgreSQL would
        combine all rows.
        """
        if not isinstance(statement, Select):
            raise TypeError(f"filters apply to a select(), not to a {type(statement).__name__}")
        declared = get_declarations(type(self))
        if type(self) not in _checked_classes.get(statement, ()):
            _reject_missing_tables(type(self), declared.tables, statement)
            _checked_classes.setdefault(statement, set()).add(type(self))
        filtered: Any = statement
        for name, each in declared.filters.items():
            if (value := getattr(self, name)) is not None:
                condition = each.build_condition(value)
                if isinstance(each, Condition):
                    _reject_missing_tables(type(self), {name: select(condition).get_final_froms()}, statement)
                filtered = filtered.where(condition)
        if declared.sort is not None:
            name, sort = declared.sort
            if order := sort.build_order(getattr(self, name)):
                filtered = filtered.order_by(None).order_by(*order)
        result: StatementT = filtered
        return result


def get_declarations(model: type[Filters]) -> _Declarations:
    """The declarations of the class. Raises `TypeError` if one of them is wrong."""
    declared = model.__dict__.get("_declared")
    if declared is None:
        declared = model._declared = _read_declarations(model)
    assert isinstance(declared, _Declarations)
    return declared


def _read_declarations(model: type[Filters]) -> _Declarations:
    """Find and check the declarations, and describe their fields."""
    if model.model_config.get("extra") != "forbid":
        raise TypeError(f"{model.__name__}: extra must be 'forbid', because other names would be ignored")
    filters: dict[str, Filter | Condition] = {}
    sorts: list[tuple[str, Sort]] = []
    for name, field in model.model_fields.items():
        marker = _find_marker(model, name, field)
        match marker:
            case Filter() | Condition():
                filters[name] = marker
            case Sort():
                sorts.append((name, marker))
            case _:
                _reject_lost_marker(model, name)
                continue
        if (fault := marker.find_fault(field.annotation)) is not None:
            raise TypeError(f"{model.__name__}.{name}: {fault}")
        if field.description is None:  # FastAPI reads it from here
            field.description = marker.describe()
    if len(sorts) > 1:
        raise TypeError(f"{model.__name__} has more than one Sort: {', '.join(name for name, _ in sorts)}")
    _reject_duplicates(model, filters)
    return _Declarations(filters, sorts[0] if sorts else None)


def _find_marker(model: type[Filters], name: str, field: FieldInfo) -> FilterMarker | None:
    markers = [each for each in field.metadata if isinstance(each, FilterMarker)]
    nested = [each for each in iterate_nested(field.annotation) if isinstance(each, FilterMarker)]
    if nested:
        raise TypeError(
            f"{model.__name__}.{name}: {type(nested[0]).__name__} must be in the outermost Annotated, as in "
            "Annotated[UUID | None, Filter(...)]"
        )
    if len(markers) > 1:
        raise TypeError(f"{model.__name__}.{name} has {len(markers)} declarations: a field can have only one")
    return markers[0] if markers else None


def _reject_lost_marker(model: type[Filters], name: str) -> None:
    """Raise `TypeError` if the field is a filter in a base class: a client could send it without an effect."""
    for base in model.__mro__[1:]:
        fields: Mapping[str, FieldInfo] = getattr(base, "__pydantic_fields__", {})
        if name in fields and any(isinstance(each, FilterMarker) for each in fields[name].metadata):
            raise TypeError(
                f"{model.__name__}.{name}: it is a filter in {base.__name__}, but not here: repeat its "
                "Filter, Condition or Sort, or use another name"
            )


def _reject_duplicates(model: type[Filters], filters: Mapping[str, Filter | Condition]) -> None:
    """Raise `TypeError` if two fields are the same filter. One of them is probably a mistake."""
    plain = [(name, each) for name, each in filters.items() if isinstance(each, Filter)]
    for index, (name, each) in enumerate(plain):
        for other_name, other in plain[:index]:
            same = (each.operator, each.ignore_case, each.config) == (other.operator, other.ignore_case, other.config)
            if same and each.column.compare(other.column):
                raise TypeError(
                    f"{model.__name__}.{name} is the same filter as {other_name}: {each.column} {each.operator}"
                )


def _reject_missing_tables(
    model: type[Filters], needed: Mapping[str, Sequence[FromClause]], statement: Select[Any]
) -> None:
    """Raise `ValueError` if a field needs a table that the statement doesn't select from."""
    tables = {each for from_clause in statement.columns_clause_froms for each in _split_joins(from_clause)}
    if all(each in tables for froms in needed.values() for each in froms):
        return
    # Finding the joins takes 0.3 ms, so it is done only if a table is missing.
    tables = {each for from_clause in statement.get_final_froms() for each in _split_joins(from_clause)}
    for name, froms in needed.items():
        for each in froms:
            if each not in tables:
                raise ValueError(
                    f"{model.__name__}.{name} needs {_describe(each)}, which the statement doesn't select from: join "
                    "it, or use Condition with any() or has()"
                )


def _split_joins(from_clause: FromClause) -> Iterator[FromClause]:
    if isinstance(from_clause, FromGrouping):  # the tables of a subclass, in parentheses
        from_clause = from_clause.element
    yield from_clause
    if isinstance(from_clause, Join):
        yield from _split_joins(from_clause.left)
        yield from _split_joins(from_clause.right)


def _describe(from_clause: FromClause) -> str:
    if isinstance(from_clause, Join):
        return f"{_describe(from_clause.left)} and {_describe(from_clause.right)}"
    return from_clause.description
