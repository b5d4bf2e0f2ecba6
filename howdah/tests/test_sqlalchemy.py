"""The private names in `howdah._sqlalchemy` exist in this version of SQLAlchemy and work as expected."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from pydantic import BaseModel, EmailStr, TypeAdapter, field_validator
from sqlalchemy import (
    BindParameter,
    Column,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    TypeDecorator,
    bindparam,
    event,
    func,
    literal,
    select,
    text,
    union,
)
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.dialects.postgresql import asyncpg as dialect_module
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, selectinload
from sqlalchemy.sql import visitors
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

import howdah
from howdah import Database, InvalidStatement
from howdah import _sqlalchemy as private
from howdah_tests.support.sample_models import Order, User
from howdah_tests.support.sample_rows import new_user

SOURCE = Path(inspect.getfile(howdah)).parent
# Documented although they begin with an underscore: the methods of named tuples, `Row._mapping`, and `os._exit`.
DOCUMENTED = frozenset({"_asdict", "_exit", "_fields", "_make", "_mapping", "_replace"})
# `howdah.serving` parses requests itself. It leaves the change to a WebSocket to uvicorn's protocol.
PROTOCOL_NAMES = {
    "_should_upgrade": "(self)",
    "_unsupported_upgrade_warning": "(self)",
}

# Private names of FastAPI and Starlette, by module. FastAPI has no public list of the routes of `frontend()`: tests of
# `howdah.fastapi.access` fail if these names change. The tests of direct routes fail if one of the others changes.
FASTAPI_NAMES = {
    "route_rules": {"_iter_low_priority_routes"},
    "_route_lists": {"_low_priority_routes"},
    "_compiled_routes": {"_embed_body_fields"},
    "direct_routes": {"_route_context"},
    "_native_telemetry": {"_api", "_native_telemetry", "_route_selected", "_validation_failed"},
}


class Uncached(TypeDecorator[str]):
    """A type whose statements SQLAlchemy doesn't cache."""

    impl = String
    cache_ok = False


class TestSelect:
    def test_the_structure_of_a_statement_does_not_depend_on_its_values(self) -> None:
        first, second = (private.find_structure(select(User).where(User.age > age)) for age in (1, 2))
        other = private.find_structure(select(User).where(User.age < 1))
        assert first is not None
        assert second is not None
        assert other is not None
        assert first[0] == second[0] != other[0]
        assert [bind.value for bind in (*first[1], *second[1])] == [1, 2]
        assert private.find_structure(select(User).where(User.name == literal("Ada", Uncached()))) is None

    def test_the_values_of_params_are_found_or_make_the_structure_unknown(self) -> None:
        """SQLAlchemy 2.1 keeps them apart."""
        found = private.find_structure(select(User).where(User.name == bindparam("n")).params(n="Ada"))
        assert found is None or [bind.value for bind in found[1]] == ["Ada"]

    def test_a_copied_parameter_knows_its_original(self) -> None:
        condition = User.age > 1
        (original,) = [each for each in visitors.iterate(condition) if isinstance(each, BindParameter)]
        copied = visitors.cloned_traverse(condition, {}, {})
        (copy,) = [each for each in visitors.iterate(copied) if isinstance(each, BindParameter)]
        assert copy.key != original.key
        assert any(each is original for each in private.originals_of(copy))

    def test_order_by_is_read(self) -> None:
        assert len(private.order_by_of(select(User).order_by(User.name, User.id.desc()))) == 2
        assert not private.order_by_of(select(User))

    def test_labels_and_texts_in_order_by_are_recognized(self) -> None:
        (label,) = private.order_by_of(select(User.name.label("shown")).order_by(User.name.label("shown")))
        assert isinstance(label, private.LABEL_REFERENCE)
        (name,) = private.order_by_of(select(User).order_by("name"))
        assert isinstance(name, private.TEXT_REFERENCE)

    @pytest.mark.parametrize(
        ("has_part", "statement"),
        [
            (private.has_group_by, select(User.name).group_by(User.name)),
            (private.has_group_by, union(select(User.name), select(User.nickname)).group_by(User.name)),
            (private.has_having, select(func.count()).select_from(User).having(func.count() > 1)),
            (private.has_limit, select(User).limit(1)),
            (private.has_limit, select(User).offset(1)),
            (private.has_limit, select(User).fetch(1)),
            (private.has_distinct, select(User).distinct()),
            (private.has_joins, select(User).join(User.orders)),
            (private.has_joins, select(User).select_from(Order)),
            (private.has_for_update, select(User).with_for_update()),
            (private.options_of, select(User).options(selectinload(User.orders))),
        ],
    )
    def test_a_part_is_found_only_if_the_statement_has_it(self, has_part: Any, statement: Select[Any]) -> None:
        assert has_part(statement)
        assert not has_part(select(User))

    def test_types_are_compared_by_their_arguments(self) -> None:
        class Custom(TypeDecorator[str]):
            impl = String

        assert private.cache_key_of(String(5)) == private.cache_key_of(String(5)) != private.cache_key_of(String(6))
        custom = Custom()
        assert private.cache_key_of(custom) is custom

    def test_only_a_select_has_a_group_by(self) -> None:
        assert not private.has_group_by(User.__table__)

    @pytest.mark.filterwarnings("ignore:Passing expression to")  # 2.1 prefers ext(distinct_on(...))
    def test_distinct_on_is_found(self) -> None:
        assert private.has_distinct_on(select(User).distinct(User.name))
        assert not private.has_distinct_on(select(User).distinct())

    def test_distinct_on_is_found_in_the_form_of_sqlalchemy_2_1(self) -> None:
        postgresql: Any = pytest.importorskip("sqlalchemy.dialects.postgresql")
        if not hasattr(postgresql, "distinct_on"):
            pytest.skip("SQLAlchemy 2.0 has no distinct_on()")
        assert private.has_distinct_on(select(User).ext(postgresql.distinct_on(User.name)))

    def test_correlate_ends_the_automatic_correlation(self) -> None:
        assert private.is_auto_correlated(select(User))
        assert not private.is_auto_correlated(select(User).correlate(Order))
        assert not private.is_auto_correlated(select(User).correlate_except(Order))

    def test_options_are_removed_from_a_copy(self) -> None:
        statement = select(User).options(selectinload(User.orders))
        assert not private.options_of(private.without_options(statement))
        assert len(private.options_of(statement)) == 1


async def test_a_stream_is_exhausted_after_its_last_row_or_its_end(session: AsyncSession) -> None:
    numbers = select(func.generate_series(1, 3)).execution_options(yield_per=2)
    stream = await session.stream(numbers)
    assert await anext(stream.partitions()) == [(1,), (2,)]
    assert not private.is_exhausted(stream)
    assert await stream.all() == [(3,)]
    assert private.is_exhausted(stream)
    closed = await session.stream(numbers)
    await closed.close()
    assert private.is_exhausted(closed)


async def test_a_result_requires_unique_only_if_a_collection_is_loaded_by_a_join(session: AsyncSession) -> None:
    assert private.requires_unique(await session.execute(select(User).options(joinedload(User.orders))))
    assert not private.requires_unique(await session.execute(select(User)))


def test_the_properties_of_a_mapper_are_known_while_it_is_configured() -> None:
    found: list[Any] = []

    class Local(DeclarativeBase):
        pass

    @event.listens_for(Local, "before_mapper_configured", propagate=True)
    def read(mapper: Any, _class: Any) -> None:
        found.extend(private.properties_of(mapper))

    class Item(Local):
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True)

    Local.registry.configure()
    assert [each.key for each in found] == ["id"]
    assert sa_inspect(Item).attrs.keys() == ["id"]


async def test_a_session_is_flushing_only_during_a_flush(session: AsyncSession) -> None:
    seen: list[bool] = []

    @event.listens_for(session.sync_session, "before_flush")
    def read(sync: Session, *_: Any) -> None:
        seen.append(private.is_flushing(sync))

    session.add(new_user())
    assert not private.is_flushing(session.sync_session)
    await session.flush()
    assert seen == [True]
    assert not private.is_flushing(session.sync_session)


async def test_a_wrapped_loader_is_called_to_load_an_attribute(session: AsyncSession) -> None:
    loaded: list[Any] = []

    class Local(DeclarativeBase):
        pass

    class Stored(Local):
        __tablename__ = "users"
        id: Mapped[UUID] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(deferred=True)

    def recorded(load: private.Loader) -> private.Loader:
        def load_and_record(state: Any, passive: Any) -> Any:
            loaded.append(state.obj())
            return load(state, passive)

        return load_and_record

    @event.listens_for(Local, "attribute_instrument", propagate=True)
    def wrap(_class: Any, key: str, attribute: Any) -> None:
        if key == "name":
            private.wrap_loader(attribute, recorded)

    Local.registry.configure()
    session.add(user := new_user())
    await session.flush()
    (stored,) = await session.scalars(select(Stored))
    assert not loaded
    assert await session.run_sync(lambda _: stored.name) == user.name
    assert loaded == [stored]


def test_a_default_version_generator_is_distinguished_from_a_custom_one() -> None:
    class Local(DeclarativeBase):
        pass

    class Counted(Local):
        __tablename__ = "counted"
        id: Mapped[int] = mapped_column(primary_key=True)
        version = mapped_column(Integer)
        __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

    class Own(Local):
        __tablename__ = "own"
        id: Mapped[int] = mapped_column(primary_key=True)
        version = mapped_column(Integer)
        __mapper_args__ = {"version_id_col": version, "version_id_generator": lambda last: last}  # noqa: RUF012

    assert private.has_default_version_generator(sa_inspect(Counted))
    assert not private.has_default_version_generator(sa_inspect(Own))


async def test_a_returned_connection_passes_the_hook_of_the_pool(
    real_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = real_database.engine.pool
    assert isinstance(pool, private.PoolWithReturnHook)
    returned: list[Any] = []
    put_back = pool.return_record

    def record_and_put_back(record: Any) -> None:
        returned.append(record)
        assert pool.checkedin() == 0
        put_back(record)
        assert pool.checkedin() == 1

    monkeypatch.setattr(pool, "return_record", record_and_put_back)
    async with real_database.engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    assert len(returned) == 1


async def test_a_closed_record_releases_its_slot_in_the_pool(database_url: str) -> None:
    async with Database(database_url, pool_size=1, max_overflow=0) as database:
        pool = database.engine.pool
        assert isinstance(pool, private.PoolWithReturnHook)
        async with database.session() as session:
            await session.execute(text("SELECT 1"))
            assert pool.checkedout() == 1
            await database.engine.dispose()
        assert database.pool_status().in_use == 0
        async with database.session() as session:
            assert await session.scalar(text("SELECT 1")) == 1


async def test_an_error_of_the_driver_is_raised_like_an_error_of_a_statement(real_database: Database) -> None:
    def fail(connection: Any) -> None:
        adapted = connection.connection.dbapi_connection
        try:
            adapted.run_async(lambda driver: driver.execute("SELECT missing"))
        except Exception as error:
            with pytest.raises(dialect_module.AsyncAdapt_asyncpg_dbapi.ProgrammingError) as caught:
                private.raise_adapted(adapted, error)
            private.raise_handled(connection, caught.value, "SELECT missing")

    async with real_database.engine.connect() as connection:
        with pytest.raises(InvalidStatement) as caught:
            await connection.run_sync(fail)
    assert isinstance(caught.value, ProgrammingError)
    assert caught.value.statement == "SELECT missing"


def test_the_validator_of_email_addresses_is_recognized() -> None:
    pytest.importorskip("email_validator")

    class Checked(BaseModel):
        email: str

        @field_validator("email")
        @classmethod
        def check(cls, value: str) -> str:
            return value

    schema: Any = TypeAdapter(EmailStr).core_schema
    assert private.is_email_validator(schema["function"]["function"])
    assert not private.is_email_validator(Checked.check)


async def test_copy_encodes_for_the_columns_of_a_prepared_statement(real_database: Database) -> None:
    async with real_database.engine.connect() as connection:
        await connection.execute(text("CREATE TEMP TABLE numbers (n bigint, half double precision)"))
        driver: Any = (await connection.get_raw_connection()).driver_connection
        columns = await driver.prepare("SELECT n, half FROM numbers", name="")
        statement = "COPY numbers (n, half) FROM STDIN (FORMAT binary)"
        assert await private.copy_in(driver, statement, columns, [(1, 0.5), (2, 1.0)]) == 2
        assert (await connection.execute(text("SELECT n, half FROM numbers"))).all() == [(1, 0.5), (2, 1.0)]


async def test_messages_are_sent_with_the_next_statement_and_are_a_part_of_its_transaction(
    real_database: Database,
) -> None:
    async with real_database.autocommit() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        set_it = await driver.prepare("SELECT WHERE set_config('app.sent', 'yes', true) IS NULL", name="set_it")
        seen = await driver.prepare("SELECT current_setting('app.sent', true)")
        bind = b"\x00set_it\x00" + bytes(6)
        message = b"B" + (len(bind) + 4).to_bytes(4) + bind + b"E\x00\x00\x00\x09\x00\x00\x00\x00\x00"
        private.write_before_next_message(driver, message)
        assert [row[0] for row in await seen.fetch()] == ["yes"]
        assert [row[0] or None for row in await seen.fetch()] == [None]
        del set_it


async def test_a_transaction_whose_begin_failed_can_be_forgotten(real_database: Database) -> None:
    async with real_database.autocommit() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        failed = driver.transaction(isolation="read_committed")
        await driver.execute("BEGIN")
        with pytest.raises(asyncpg.InterfaceError):  # the driver finds a transaction that it hasn't begun
            await failed.start()
        driver._top_xact = failed
        await driver.execute("ROLLBACK")
        private.forget_transaction(driver)
        async with driver.transaction():
            assert driver.is_in_transaction()


def test_an_item_of_a_table_is_attached_to_it() -> None:
    class Item(private.TableItem):
        def attach(self, table: Table) -> None:
            attached.append(table.name)

    attached: list[str] = []
    item = Item()
    Table("one", MetaData(), item)
    Table("two", MetaData(), Column("id", Integer), item)
    assert attached == ["one", "two"]
    with pytest.raises(TypeError, match="__table_args__"):
        Column("id", Integer, item)
    with pytest.raises(NotImplementedError):
        Table("three", MetaData(), private.TableItem())


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name not in ("_sqlalchemy.py", "_private_names.py"):  # the second one is that of Alembic
            yield path, ast.parse(path.read_text())


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in DOCUMENTED


def _defined_names(tree: ast.Module) -> Iterator[str]:
    """The names of functions, classes and variables, and of attributes that a method assigns to `self` or `cls`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name


def _used_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The private names that are read from something: attributes, imports from other packages, and `getattr`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name):
                yield node.lineno, name
            case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] != "howdah":
                yield from ((node.lineno, each.name) for each in names)
                yield from ((node.lineno, part) for part in module.split("."))
            case ast.Import(names=names):
                yield from ((node.lineno, part) for each in names for part in each.name.split(".")[1:])
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(str(name)), *_]):
                yield node.lineno, name
            case _:
                pass


def test_no_other_module_uses_a_private_name() -> None:
    defined = {name for _, tree in _modules() for name in _defined_names(tree)}
    found = [
        f"{path.relative_to(SOURCE)}:{line} {name}"
        for path, tree in _modules()
        for line, name in _used_names(tree)
        if _is_private(name)
        and name not in defined
        and not (path.parent.name == "serving" and name in PROTOCOL_NAMES)
        and path.stem != "_fastapi_internals"
        and name not in FASTAPI_NAMES.get(path.stem, ())
    ]
    assert not found, "move these to howdah/_sqlalchemy.py, each with its reason and a test"


def test_no_other_class_overrides_a_private_method_of_another_library() -> None:
    found = []
    for each in pkgutil.walk_packages([str(SOURCE)], "howdah."):
        if each.name == "howdah._sqlalchemy":
            continue
        module = importlib.import_module(each.name)
        for cls in (value for value in vars(module).values() if inspect.isclass(value)):
            if cls.__module__ != each.name:
                continue
            methods = [
                name
                for name, value in vars(cls).items()
                if inspect.isfunction(value)
                and value.__code__.co_filename == module.__file__
                and _is_private(name)
                and not (each.name.startswith("howdah.serving.") and name in PROTOCOL_NAMES)
            ]
            others = [base for base in cls.__mro__[1:] if not base.__module__.startswith("howdah")]
            found += [
                f"{each.name}.{cls.__name__}.{name}" for name in methods for base in others if hasattr(base, name)
            ]
    assert not found


@pytest.mark.parametrize("name", PROTOCOL_NAMES)
def test_the_private_names_of_uvicorn_exist(name: str) -> None:
    signature = inspect.signature(vars(HttpToolsProtocol)[name])
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    assert str(inspect.Signature(parameters)) == PROTOCOL_NAMES[name]


@pytest.mark.parametrize(
    "line", ["x._private", "self._private", "from a import _private", "import a._private", "getattr(x, '_private')"]
)
def test_a_new_private_name_is_found(line: str) -> None:
    assert "_private" in {name for _, name in _used_names(ast.parse(line))}
