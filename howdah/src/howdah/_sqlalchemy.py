"""All private and undocumented names of SQLAlchemy, Pydantic and asyncpg that this library uses.

The docstring of each name, or the comment of its section, says why there is no public way. `tests/test_sqlalchemy.py`
checks each of them on every supported version, and that no other module uses such a name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, NoReturn, TypeAlias

from pydantic import EmailStr
from sqlalchemy import BindParameter, Connection, GenerativeSelect, Select, Table
from sqlalchemy.engine import Result
from sqlalchemy.ext.asyncio import AsyncResult
from sqlalchemy.orm import (
    InstanceState,
    Mapper,
    MapperProperty,
    PassiveFlag,
    QueryableAttribute,
    Session,
)
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.schema import SchemaItem
from sqlalchemy.sql.base import ExecutableOption
from sqlalchemy.sql.elements import ClauseElement, ColumnElement, _label_reference, _textual_label_reference
from sqlalchemy.types import TypeEngine

Loader: TypeAlias = Callable[[InstanceState[Any], PassiveFlag], Any]

# --- SQLAlchemy: the parts of a Select -------------------------------------------------------------------------------
# A Select has methods that add to these parts, but only its columns, its FROM elements and its WHERE can be read.


def order_by_of(statement: Select[Any]) -> Sequence[ColumnElement[Any]]:
    """The expressions of ORDER BY."""
    return statement._order_by_clauses


def has_group_by(statement: object) -> bool:
    """Whether the object is a SELECT or a UNION with GROUP BY."""
    return isinstance(statement, GenerativeSelect) and bool(statement._group_by_clauses)


def has_having(statement: Select[Any]) -> bool:
    return bool(statement._having_criteria)


def has_limit(statement: Select[Any]) -> bool:
    """Whether the SELECT has LIMIT, OFFSET or FETCH."""
    return bool(statement._has_row_limiting_clause)


def has_distinct(statement: Select[Any]) -> bool:
    """Whether the SELECT has DISTINCT. In SQLAlchemy 2.0 this includes DISTINCT ON."""
    return bool(statement._distinct)


def has_distinct_on(statement: Select[Any]) -> bool:
    """Whether the SELECT has DISTINCT ON: SQLAlchemy 2.1 keeps `ext(distinct_on(...))` in an attribute of its own."""
    return bool(statement._distinct_on) or getattr(statement, "_pre_columns_clause", None) is not None


def has_joins(statement: Select[Any]) -> bool:
    """Whether `join()` or `select_from()` was called. `get_final_froms()` doesn't show that."""
    return bool(statement._setup_joins or statement._from_obj)


def has_for_update(statement: Select[Any]) -> bool:
    return statement._for_update_arg is not None


def is_auto_correlated(statement: Select[Any]) -> bool:
    """Whether neither `correlate()` nor `correlate_except()` was called."""
    return bool(statement._auto_correlate)


def options_of(statement: Select[Any]) -> Sequence[ExecutableOption]:
    """The options of `options()`."""
    return statement._with_options


def without_options(statement: Select[Any]) -> Select[Any]:
    """A copy without the options. `options()` only adds to them."""
    bare = statement.where()
    bare._with_options = ()
    return bare


def find_structure(statement: Select[Any]) -> tuple[Hashable, Sequence[BindParameter[Any]]] | None:
    """A value that is equal for two statements with the same text, and the statement's parameters in a fixed order.

    It is SQLAlchemy's key for its statement cache. None if the statement has a part or a type that SQLAlchemy
    doesn't cache, or values of `params()`.
    """
    key: Any = statement._generate_cache_key()
    if key is None or getattr(key, "params", None):  # SQLAlchemy 2.1 has the values of `params()` apart
        return None
    # SQLAlchemy has the same key for parameters of all types that it doesn't cache
    if any(cache_key_of(bind.type) is bind.type for bind in key.bindparams):
        return None
    return key.key, key.bindparams


def originals_of(bind: BindParameter[Any]) -> Iterable[BindParameter[Any]]:
    """The parameter itself, and those of which SQLAlchemy has made it as a copy while it compiled a statement."""
    originals: Iterable[BindParameter[Any]] = bind._cloned_set
    return originals


def cache_key_of(kind: TypeEngine[Any]) -> object:
    """A value that is equal for two types that convert values in the same way.

    It is SQLAlchemy's key for its statement cache. A custom type without `cache_ok = True` has none, and is equal to
    itself only. Types have no public comparison.
    """
    if getattr(kind, "cache_ok", True) is not True:  # SQLAlchemy would warn about None
        return kind
    key: object = kind._static_cache_key
    return key if isinstance(key, tuple) else kind


# `order_by` wraps its arguments in these classes. The public classes in `sqlalchemy` don't include them.
LABEL_REFERENCE: Final[type[ClauseElement]] = _label_reference
TEXT_REFERENCE: Final[type[ClauseElement]] = _textual_label_reference


# --- SQLAlchemy: results, mappers and sessions -----------------------------------------------------------------------


def requires_unique(result: Result[Any]) -> bool:
    """Whether SQLAlchemy requires `unique()`, because collections are loaded by a join. No public attribute says so."""
    return result._unique_filter_state is not None


def is_exhausted(result: AsyncResult[Any]) -> bool:
    """Whether all rows of a stream were read, or it was closed. The public `closed` stays false after the last row."""
    real: Any = result._real_result
    return bool(real._soft_closed)


def properties_of(mapper: Mapper[Any]) -> Sequence[MapperProperty[Any]]:
    """The properties of a mapper that is being configured. `mapper.attrs` would configure the mappers first."""
    return [*mapper._props.values()]


def is_flushing(session: Session) -> bool:
    """Whether the session is in a flush. The event `after_flush` isn't called for a flush that fails."""
    return session._flushing


def wrap_loader(attribute: QueryableAttribute[Any], wrap: Callable[[Loader], Loader]) -> None:
    """Replace the function that loads a missing attribute with `wrap(function)`, if the attribute has such a function.

    The function is a method of SQLAlchemy's loader strategy. It can only be found in the undocumented `attribute.impl`.
    """
    impl: Any = getattr(attribute, "impl", None)
    load = getattr(impl, "callable_", None)
    if load is not None:
        impl.callable_ = wrap(load)


def has_default_version_generator(mapper: Mapper[Any]) -> bool:
    """Whether versions are made by SQLAlchemy's default `version_id_generator`, which adds one.

    It is a new function for each mapper, so it can only be recognized by its module.
    """
    return getattr(mapper.version_id_generator, "__module__", None) == "sqlalchemy.orm.mapper"


class TableItem(SchemaItem):
    """An item of `__table_args__`. SQLAlchemy has no public class for items that it doesn't know."""

    def attach(self, table: Table) -> None:
        """Called for each table that has the item."""
        raise NotImplementedError

    def _set_parent(self, parent: Any, **_options: Any) -> None:
        if not isinstance(parent, Table):
            raise TypeError(f"{self!r} belongs into __table_args__, not into a {type(parent).__name__}")
        self.attach(parent)


# --- SQLAlchemy: connections and their errors ------------------------------------------------------------------------


class PoolWithReturnHook(AsyncAdaptedQueuePool):
    """A pool with a method that is called when a connection is returned.

    The event `checkin` is called too early: the connection is put into the pool, or closed, after it.
    """

    def return_record(self, record: ConnectionPoolEntry) -> None:
        """Put a connection back into the pool, or close it if the pool has `pool_size` idle connections."""
        super()._do_return_conn(record)

    def close_record(self, record: ConnectionPoolEntry) -> None:
        """Close a connection instead of putting it back. After that the pool may open another one."""
        try:
            record.close()
        finally:
            self._dec_overflow()

    def discard_open(self) -> None:
        """Replace each connection that is open now before its next use.

        SQLAlchemy does this itself after a disconnect. The public `dispose()` doesn't replace connections in use.
        """
        self._invalidate_time = time.time()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        self.return_record(record)


def raise_adapted(adapted_connection: Any, error: Exception) -> NoReturn:
    """Raise the DBAPI error for the driver's error, as SQLAlchemy's own cursor does.

    `connection.run_async` raises the driver's errors unchanged.
    """
    adapted_connection._handle_exception(error)
    raise AssertionError("unreachable") from error


def raise_handled(connection: Connection, error: BaseException, statement: str) -> NoReturn:
    """Raise a DBAPI error as SQLAlchemy does for its own statements.

    SQLAlchemy calls the listeners of `handle_error`, and may invalidate the pool. There is no public function for a
    statement that was sent without SQLAlchemy.
    """
    connection._handle_dbapi_exception(error, statement, None, None, None)
    raise AssertionError("unreachable") from error


# --- Pydantic --------------------------------------------------------------------------------------------------------


def is_email_validator(function: object) -> bool:
    """Whether a function of a core schema is the validator of `EmailStr`.

    `EmailStr` has no documented marker in the core schema. A subclass of it has another bound method,
    but the function of that method is the same.
    """
    validate: Any = EmailStr._validate  # type: ignore[attr-defined]
    return getattr(function, "__func__", None) is validate.__func__


# --- asyncpg ---------------------------------------------------------------------------------------------------------


async def copy_in(connection: Any, statement: str, columns: Any, records: Iterable[Any]) -> int:
    """Run `COPY … FROM STDIN (FORMAT binary)` on the driver's connection, and return how many rows were written.

    The records are encoded for the columns that the prepared statement `columns` returns.

    The public function is `copy_records_to_table`. It takes the column types from the driver's cache of prepared
    statements (<https://github.com/MagicStack/asyncpg/pull/1360>). Neither ALTER TABLE nor a change of `search_path`
    invalidates that cache, so the bytes of an integer could be stored as a double. `prepare` doesn't use the cache.
    """
    status: str = await connection._protocol.copy_in(statement, None, None, records, columns._state, None)
    return int(status.rpartition(" ")[2])


def write_before_next_message(connection: Any, message: bytes) -> None:
    """Send messages of the extended query protocol together with the next statement of the driver's connection.

    They must not return rows, and must not include Sync. The next call on the connection must execute a prepared
    statement: the driver ignores the answers `BindComplete` and `CommandComplete` of further statements before its own,
    and its Sync ends the transaction of all of them. The driver has no public function for this.
    """
    connection._transport.write(message)


def forget_transaction(connection: Any) -> None:
    """Make the driver's connection forget a transaction whose BEGIN was rolled back.

    `Transaction.start` notes the transaction before it sends BEGIN, and keeps the note if that fails. The next
    transaction of the connection would then be a savepoint.
    """
    connection._top_xact = None
