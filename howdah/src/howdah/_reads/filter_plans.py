"""Find out from PostgreSQL's query plans whether an index supports a condition or an order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, Final, Literal, get_args, get_origin
from uuid import UUID

from pydantic import AwareDatetime, EmailStr, NaiveDatetime
from sqlalchemy import ClauseElement, ColumnElement, Executable, FromClause, Select, literal_column, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.compiler import compiles

from howdah._reads.filter_values import get_item, strip_optional

_NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
_SAMPLES: Final[dict[Any, Any]] = {
    AwareDatetime: _NOON,
    Decimal: Decimal(1),
    EmailStr: "a",
    NaiveDatetime: _NOON.replace(tzinfo=None),
    UUID: UUID(int=0),
    bool: True,
    date: _NOON.date(),
    float: 1.0,
    int: 1,
    str: "a",
    time: _NOON.time(),
}


_FIRST_COLUMNS: Final = text(
    "SELECT method.amname, pg_get_indexdef(relation.oid, 1, false) FROM pg_class AS relation "
    "JOIN pg_am AS method ON method.oid = relation.relam WHERE relation.relkind = 'i' AND relation.relname = :name"
)
_QUOTED: Final = re.compile("'(?:[^']|'')*'")
_CAST: Final = re.compile(
    r"""::[\w."]+(?: varying| precision| with(?:out)? time zone)?(?:\([\d,]+\))?(?: with(?:out)? time zone)?(?:\[\])?"""
)


class _Explain(Executable, ClauseElement):
    inherit_cache = False

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement


@compiles(_Explain)
def _compile_explain(element: _Explain, compiler: Any, **options: Any) -> str:
    return f"EXPLAIN (FORMAT JSON) {compiler.process(element.statement, **options)}"


def make_sample(annotation: Any) -> Any:
    """A value for a parameter with this annotation. In an empty table the plan doesn't depend on the value."""
    if (item := get_item(annotation)) is not None:
        return [make_sample(item)]
    kind = strip_optional(annotation)
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind))
    if kind in _SAMPLES:
        return _SAMPLES[kind]
    return next(value for each, value in _SAMPLES.items() if isinstance(each, type) and issubclass(kind, each))


async def prefer_indexes(session: AsyncSession) -> None:
    """Make PostgreSQL use an index wherever it can, even in a small table, until the transaction or savepoint ends."""
    for name in ("enable_seqscan", "enable_sort"):
        await session.execute(text("SELECT set_config(:name, 'off', true)"), {"name": name})


async def is_condition_indexed(session: AsyncSession, base: Select[Any] | None, condition: ColumnElement[bool]) -> bool:
    """Whether the plan of `base` with the condition has an index condition that the plan of `base` alone lacks."""
    statement = select(literal_column("1")) if base is None else _select_nothing(base)
    before = [] if base is None else await _explain(session, statement)
    nodes = await _explain(session, statement.where(condition))
    known = {each.get("Index Cond") for each in before}
    searches = [each for each in nodes if "Index Cond" in each and each["Index Cond"] not in known]
    if searches:
        return any([await _begins_with_index(session, each) for each in searches])
    # the condition may be that of a partial index
    return not any("Filter" in each or each["Node Type"] == "Seq Scan" for each in nodes)


async def is_order_indexed(
    session: AsyncSession, base: Select[Any] | None, tables: Sequence[FromClause], order: Sequence[ColumnElement[Any]]
) -> bool:
    """Whether an index has the order, or the order of its first expressions."""
    statement = select(literal_column("1")).select_from(*tables) if base is None else _select_nothing(base)
    nodes = await _explain(session, statement.order_by(*order).limit(1))
    return all(each["Node Type"] != "Sort" for each in nodes)


async def _begins_with_index(session: AsyncSession, node: dict[str, Any]) -> bool:
    """Whether the index condition has the first column of its index.

    Otherwise PostgreSQL reads the whole B-tree, which it does here because sequential scans are disabled.
    """
    found = await session.execute(_FIRST_COLUMNS, {"name": node["Index Name"]})
    condition = _simplify(node["Index Cond"])
    return any(
        method != "btree" or re.search(rf'(?<![\w"]){re.escape(_simplify(column))}(?![\w"])', condition)
        for method, column in found
    )


def _simplify(expression: str) -> str:
    """The expression without its texts and casts, which may have the name of a column."""
    return _CAST.sub("", _QUOTED.sub("''", expression))


def _select_nothing(base: Select[Any]) -> Select[Any]:
    return base.order_by(None).with_only_columns(literal_column("1"), maintain_column_froms=True)


async def _explain(session: AsyncSession, statement: Select[Any]) -> list[dict[str, Any]]:
    plan = (await session.execute(_Explain(statement))).scalar_one()
    return [*_iterate_nodes((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])]


def _iterate_nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for each in node.get("Plans", ()):
        yield from _iterate_nodes(each)
