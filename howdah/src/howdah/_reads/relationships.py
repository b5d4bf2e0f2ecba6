"""The rows of a relationship in SQL: the same rows that SQLAlchemy loads, each once, in the relationship's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    BinaryExpression,
    Column,
    ColumnElement,
    Join,
    Select,
    SelectBase,
    Table,
    UniqueConstraint,
    inspect,
    literal,
    select,
)
from sqlalchemy.orm import Mapper, RelationshipDirection, RelationshipProperty, aliased
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BooleanClauseList
from sqlalchemy.sql.util import ClauseAdapter

from howdah._keys import get_key_attributes
from howdah._reads.nullability import can_be_null
from howdah.errors import ViewCompileError

Property = RelationshipProperty[Any]


class RelatedRows:
    """The rows that a relationship has for one row of `entity`, a mapped class or an alias of one.

    `target` is the entity to select columns from. Raises `ViewCompileError` if SQL might select other rows than
    SQLAlchemy loads.
    """

    def __init__(self, entity: Any, prop: Property, path: str) -> None:
        self._entity, self._prop = entity, prop
        _reject_inexact_relationship(prop, path)
        # The target is aliased, so that the same table can occur at several depths of one statement.
        related = getattr(entity, prop.key)
        if isinstance(prop.entity, Mapper):
            self.target: Any = aliased(prop.mapper)
            related = related.of_type(self.target)
        else:  # an aliased class, whose subquery is part of the relationship's definition
            self.target = prop.entity.entity
        self._criterion = related.__clause_element__()
        ends = {*iterate_tables(inspect(entity).selectable), *iterate_tables(inspect(self.target).selectable)}
        sources = select(literal(1)).where(self._criterion).get_final_froms()
        self._association_tables = [each for source in sources for each in iterate_tables(source) if each not in ends]
        association = set() if prop.secondary is None else {*iterate_tables(prop.secondary)}
        if any(getattr(each, "element", None) not in association for each in self._association_tables):
            raise ViewCompileError(path, "its join condition has columns of a table that it doesn't join")
        self.has_no_duplicates = isinstance(prop.entity, Mapper) and _has_no_duplicates(prop)
        """Whether the query returns each row at most once."""

    def can_be_absent(self) -> bool:
        """Whether a row may have no related row, because no foreign key guarantees one."""
        return not _is_foreign_key(self._prop) or any(
            can_be_null(_get_attribute(self._entity, column), [inspect(self._entity).selectable])
            for column in self._prop.local_columns
        )

    def has_at_most_one(self) -> bool:
        """Whether there is never more than one related row."""
        return (
            self.has_no_duplicates
            and self._prop.direction is RelationshipDirection.MANYTOONE
            and (_is_foreign_key(self._prop) or self._prop.remote_side.issuperset(self._prop.mapper.primary_key))
        )

    def select(self, columns: Sequence[ColumnElement[Any]], criteria: Sequence[ColumnElement[bool]]) -> Select[Any]:
        """A SELECT of these columns of the rows that satisfy the criteria, in any order."""
        # The criterion adds the tables of an association to FROM, each as an alias, but not their join conditions.
        joins = [
            _adapt(condition, self._association_tables) for condition in _iterate_join_conditions(self._prop.secondary)
        ]
        return select(*columns).where(self._criterion, *joins, *criteria).correlate(self._entity)

    def get_order(self) -> list[Any]:
        """The relationship's own order, then the key. Without the key the order wouldn't be defined."""
        selectables = [inspect(self.target).selectable, *self._association_tables]
        own_order = [_adapt(clause, selectables) for clause in self._prop.order_by or ()]
        return [*own_order, *get_key_attributes(self.target)]


def _adapt(clause: Any, selectables: Sequence[Any]) -> Any:
    """The clause, with its columns replaced by those of the selectables, which are aliases of its tables."""
    for selectable in selectables:
        clause = ClauseAdapter(selectable).traverse(clause)
    return clause


def _reject_inexact_relationship(prop: Property, path: str) -> None:
    """Raise `ViewCompileError` if the relationship's rows in SQL might differ from those that SQLAlchemy loads."""
    if prop.lazy in {"dynamic", "write_only"} or (prop.uselist and prop.collection_class not in {None, list}):
        raise ViewCompileError(
            path, "the relationship isn't a list: its lazy= or collection_class= makes it another type"
        )
    if prop.mapper.single and not isinstance(prop.mapper.polymorphic_on, Column):
        # SQLAlchemy would add the subclass's criterion a second time, for the table instead of its alias.
        raise ViewCompileError(
            path,
            f"{prop.mapper.class_.__name__} is distinguished by an expression (polymorphic_on): distinguish it by a "
            "column",
        )
    if _has_outer_join(prop.secondary):
        raise ViewCompileError(path, "its association (`secondary`) is an outer join")
    for condition in (prop.primaryjoin, prop.secondaryjoin):
        if condition is not None and any(isinstance(part, SelectBase) for part in visitors.iterate(condition)):
            raise ViewCompileError(
                path, "its join condition has a subquery: make it a relationship to an aliased class"
            )


def _has_no_duplicates(prop: Property) -> bool:
    """Whether no row is returned twice.

    This is true without an association table. With one, the join must use all columns of a key that is unique in it.
    """
    if prop.secondary is None:
        return True
    if not isinstance(prop.secondary, Table):
        return False
    joined_columns = {column for _, column in (*prop.synchronize_pairs, *(prop.secondary_synchronize_pairs or ()))}
    constraints = (each for each in prop.secondary.constraints if isinstance(each, UniqueConstraint))
    # A partial unique index doesn't exclude duplicates among the other rows.
    indexes = (
        each for each in prop.secondary.indexes if each.unique and each.dialect_options["postgresql"]["where"] is None
    )
    keys: list[list[Any]] = [[*prop.secondary.primary_key.columns]]
    keys += [[*each.columns] for each in constraints] + [[*each.columns] for each in indexes]
    return any(key and joined_columns.issuperset(key) for key in keys)


def _is_foreign_key(prop: Property) -> bool:
    """Whether the join condition is exactly a foreign key, and each row of the referenced table is of the target class.

    With single-table inheritance the referenced table also has rows of other classes.
    """
    if prop.direction is not RelationshipDirection.MANYTOONE or not isinstance(prop.entity, Mapper):
        return False
    pairs = {*prop.local_remote_pairs}
    if prop.mapper.single or {remote.table for _, remote in pairs} != {prop.mapper.local_table}:
        return False
    conditions = [*_split_conjunction(prop.primaryjoin)]
    if len(conditions) != len(pairs) or not all(_is_equality_of(each, pairs) for each in conditions):
        return False
    return any(
        {(key.parent, key.column) for key in constraint.elements} == pairs
        for table in {local.table for local, _ in pairs}
        if isinstance(table, Table)
        for constraint in table.foreign_key_constraints
    )


def _split_conjunction(criterion: Any) -> Iterator[Any]:
    """The conditions that AND connects."""
    if isinstance(criterion, BooleanClauseList) and criterion.operator is operators.and_:
        for each in criterion.clauses:
            yield from _split_conjunction(each)
    else:
        yield criterion


def _is_equality_of(condition: Any, pairs: set[Any]) -> bool:
    """Whether the condition is `a = b` for one of the pairs of columns."""
    if not isinstance(condition, BinaryExpression) or condition.operator is not operators.eq:
        return False
    return (condition.left, condition.right) in pairs or (condition.right, condition.left) in pairs


def _get_attribute(entity: Any, column: ColumnElement[Any]) -> Any:
    """The entity's own expression for a column of its table."""
    mapper = inspect(entity).mapper
    return getattr(entity, mapper.get_property_by_column(column).key).__clause_element__()


def iterate_tables(source: Any) -> Iterator[Any]:
    """The tables that a FROM element joins."""
    if isinstance(source, Join):
        yield from iterate_tables(source.left)
        yield from iterate_tables(source.right)
    else:
        yield source


def _has_outer_join(source: Any) -> bool:
    if not isinstance(source, Join):
        return False
    return source.isouter or source.full or _has_outer_join(source.left) or _has_outer_join(source.right)


def _iterate_join_conditions(source: Any) -> Iterator[Any]:
    """The ON conditions of a FROM element and of the joins in it."""
    if isinstance(source, Join):
        yield source.onclause
        yield from _iterate_join_conditions(source.left)
        yield from _iterate_join_conditions(source.right)
