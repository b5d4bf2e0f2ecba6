"""The target of ON CONFLICT: which unique index decides whether a row exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnClause,
    ColumnElement,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Select,
    Table,
    TextClause,
    UnaryExpression,
    UniqueConstraint,
    func,
    inspect,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql import operators
from sqlalchemy.sql.visitors import iterate, replacement_traverse

from howdah._arrays import fits_in_array, unnest_arrays
from howdah._keys import find_free_name, get_key_names
from howdah._writes.rows import reject_non_columns

Unique: TypeAlias = Index | UniqueConstraint | PrimaryKeyConstraint
ConflictOn: TypeAlias = Sequence[str] | str | Unique

_DIRECTIONS: Final = (operators.asc_op, operators.desc_op, operators.nulls_first_op, operators.nulls_last_op)

_POSITION: Final = Column("position", Integer)

# invalid_column_reference: no unique index fits the target of ON CONFLICT.
_NO_SUCH_INDEX: Final = "42P10"


@dataclass(frozen=True)
class ConflictTarget:
    """A unique index: its `elements`, which are columns or expressions, and the predicate of a partial index.

    `names` are the attributes of the columns in the elements. If `is_plain` is true, a row has at most one row with
    equal values of these attributes, and none if one of them is NULL. Otherwise only PostgreSQL knows which rows
    conflict: the index has expressions, a predicate, or NULLS NOT DISTINCT.
    """

    names: tuple[str, ...]
    elements: tuple[ColumnElement[Any], ...]
    predicate: ColumnElement[bool] | None = None
    is_plain: bool = True

    def get_arguments(self) -> dict[str, Any]:
        """The arguments of `on_conflict_do_update` and `on_conflict_do_nothing`."""
        return {"index_elements": self.elements, "index_where": self.predicate}

    def has_array_columns(self, model: type[Any]) -> bool:
        """Whether the values of the target can be sent as arrays."""
        return all(fits_in_array(inspect(model).columns[name]) for name in self.names)

    def select_occurrences(self, model: type[Any], columns: Mapping[str, Sequence[Any]]) -> Select[Any]:
        """A SELECT of each row's position, and of its number among the rows with an equal target, from 1."""
        sent: dict[str, tuple[Column[Any], Iterable[Any]]] = {}
        for name in self.names:
            column = inspect(model).columns[name]
            sent[column.key] = column, columns[name]
        position = find_free_name(model, "howdah_position")
        source, _ = unnest_arrays({**sent, position: (_POSITION, range(len(columns[self.names[0]])))})
        equal = self.build_expressions(lambda column: source.c[column.key])
        return select(
            source.c[position], func.row_number().over(partition_by=equal, order_by=source.c[position])
        ).select_from(source)

    def build_expressions(self, replace: Callable[[Column[Any]], Any]) -> list[ColumnElement[Any]]:
        """The elements, with `replace(column)` instead of each column."""
        return [_replace_columns(element, replace) for element in self.elements]


def resolve_conflict_target(model: type[Any], on: ConflictOn | None) -> ConflictTarget:
    """The target that `on` names: attributes, or a unique constraint or index, by its name or as an object.

    Raises `UnknownAttribute`, and `ValueError` if the model has no such unique constraint or index.
    """
    if isinstance(on, Unique):
        return _build_target(model, on)
    if isinstance(on, str):
        return _build_target(model, _find_by_name(model, on))
    names = get_key_names(model) if on is None else tuple(on)
    if not names:
        raise ValueError("`on` must name at least one attribute: leave it out to find rows by their key")
    reject_non_columns(model, names)
    mapper: Mapper[Any] = inspect(model)
    return ConflictTarget(names, tuple(mapper.columns[name] for name in names))


def has_unique_constraint(model: type[Any], names: Iterable[str]) -> bool:
    """Whether the model declares a unique constraint or index on exactly these attributes, in any order."""
    columns = {inspect(model).columns[name] for name in names}
    for unique in _find_unique(model):
        elements: Iterable[Any] = _get_elements(unique)
        is_whole = not isinstance(unique, Index) or unique.dialect_options["postgresql"]["where"] is None
        if is_whole and {*elements} == columns and not _is_deferrable(unique):
            return True
    return False


@contextmanager
def explain_missing_index(model: type[Any], target: ConflictTarget) -> Iterator[None]:
    """Add a note to PostgreSQL's error if the table has no unique index for the target."""
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _NO_SUCH_INDEX:
            error.add_note(
                f"`on` must name a unique constraint or index of {inspect(model).local_table}, or exactly the "
                f"attributes of one, not {', '.join(target.names)}: create the constraint, or change `on`"
            )
        raise


def _find_unique(model: type[Any]) -> list[Unique]:
    table = inspect(model).local_table
    assert isinstance(table, Table)
    constraints = [each for each in table.constraints if isinstance(each, UniqueConstraint | PrimaryKeyConstraint)]
    return [*constraints, *(index for index in table.indexes if index.unique)]


def _find_by_name(model: type[Any], name: str) -> Unique:
    unique = _find_unique(model)
    for each in unique:
        if each.name == name:
            return each
    names = ", ".join(sorted(str(each.name) for each in unique if each.name))
    raise ValueError(
        f"{model.__name__} declares no unique constraint or index named {name!r}; it has {names}. "
        "To name attributes, pass a list"
    )


def _build_target(model: type[Any], unique: Unique) -> ConflictTarget:
    """The target of a constraint or index. Raises `ValueError` if ON CONFLICT can't use it."""
    mapper: Mapper[Any] = inspect(model)
    if unique.table is not mapper.local_table or (isinstance(unique, Index) and not unique.unique):
        raise ValueError(f"`on` must be a unique constraint or a unique index of {mapper.local_table}, not {unique!r}")
    if _is_deferrable(unique):
        raise ValueError(f"{unique.name} is deferrable, so ON CONFLICT can't use it: make it NOT DEFERRABLE")
    options = unique.dialect_options["postgresql"]
    elements = _get_elements(unique)
    columns = dict.fromkeys(part for element in elements for part in iterate(element) if isinstance(part, Column))
    if any(isinstance(part, TextClause) or type(part) is ColumnClause for each in elements for part in iterate(each)):
        raise ValueError(f"{unique.name} contains SQL text: write its expressions with mapped columns")
    try:
        names = tuple(mapper.get_property_by_column(column).key for column in columns)
    except UnmappedColumnError as error:
        raise ValueError(
            f"{model.__name__} doesn't map all columns of {unique.name}: map them, or change `on`"
        ) from error
    predicate = options.get("where")
    has_expressions = not all(isinstance(element, Column) for element in elements)
    return ConflictTarget(
        names,
        # An index expression other than a function call needs parentheses.
        tuple(each if isinstance(each, Column) else _with_literals(each).self_group() for each in elements),
        None if predicate is None else _with_literals(predicate),
        is_plain=not has_expressions and predicate is None and not options.get("nulls_not_distinct"),
    )


def _get_elements(unique: Unique) -> list[ColumnElement[Any]]:
    expressions: Iterable[Any] = unique.expressions if isinstance(unique, Index) else unique.columns
    return [*map(_without_direction, expressions)]


def _is_deferrable(unique: Unique) -> bool:
    return not isinstance(unique, Index) and bool(unique.deferrable)


def _without_direction(element: ColumnElement[Any]) -> ColumnElement[Any]:
    """The element without ASC, DESC, NULLS FIRST and NULLS LAST, which ON CONFLICT doesn't accept."""
    while isinstance(element, UnaryExpression) and element.modifier in _DIRECTIONS:
        element = element.element
    return element


def _with_literals(element: ColumnElement[Any]) -> Any:
    """The expression with its values as literals. PostgreSQL doesn't match a parameter with a constant in an index."""
    return _replace_parts(
        element, lambda part: part.render_literal_execute() if isinstance(part, BindParameter) else None
    )


def _replace_columns(element: ColumnElement[Any], replace: Callable[[Column[Any]], Any]) -> Any:
    return _replace_parts(element, lambda part: replace(part) if isinstance(part, Column) else None)


def _replace_parts(element: ColumnElement[Any], replace: Callable[[Any], Any]) -> Any:
    """A copy of the expression. Each part is replaced by the result of `replace`, unless that is None."""
    visit: Any = lambda part, **_: replace(part)  # noqa: E731  # SQLAlchemy's protocol for it is private
    return replacement_traverse(element, {}, visit)
