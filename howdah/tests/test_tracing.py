"""The spans of statements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from pydantic import BaseModel
from sqlalchemy import Text, event, func, select, text

from howdah import Database, JsonView, StatementTimeout, UniqueViolation, bulk
from howdah._connections.prepared import PreparedSelect
from howdah.tracing import trace_statements
from howdah_tests.support.sample_models import User
from howdah_tests.support.sample_rows import user_rows
from howdah_tests.support.spans import exported

SECRET = "ada@example.org"


class UserOut(BaseModel):
    id: UUID


@pytest.fixture
async def traced(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as database:
        yield trace_statements(database)


@pytest.fixture(autouse=True)
def _forget_earlier_spans() -> Iterator[None]:
    exported.clear()
    yield
    for span in exported.get_finished_spans():
        assert SECRET not in span.to_json()


def statements() -> list[ReadableSpan]:
    return [span for span in exported.get_finished_spans() if span.kind is trace.SpanKind.CLIENT]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_statement_has_a_span_without_its_parameters(traced: Database) -> None:
    with trace.get_tracer("test").start_as_current_span("request") as request:
        async with traced.session() as session:
            await session.execute(select(User.id).where(User.email == SECRET))
    [span] = statements()
    assert span.name == "SELECT"
    assert span.parent is not None
    assert span.parent.span_id == request.get_span_context().span_id
    found = attributes(span)
    assert found["db.system.name"] == "postgresql"
    assert found["db.namespace"] == traced.engine.url.database
    assert found["db.query.summary"] == "SELECT"
    assert "WHERE users.email = $1" in found["db.query.text"]
    assert "db.operation.batch.size" not in found


async def test_copy_and_changes_have_spans_that_name_the_table(traced: Database) -> None:
    async with traced.session() as session:
        await bulk.insert_many(session, User, user_rows(50))
        session.add(User(email=SECRET, name="Ada"))
        await session.flush()
    names = [span.name for span in statements()]
    assert names == ["SAVEPOINT", "COPY users", "RELEASE", "INSERT users"]


async def test_an_executemany_has_the_number_of_its_rows(traced: Database) -> None:
    async with traced.engine.connect() as connection:
        await connection.execute(text("UPDATE users SET name = :name"), [{"name": f"{n}"} for n in range(3)])
    [span] = statements()
    assert span.name == "BATCH UPDATE users"
    assert attributes(span)["db.operation.batch.size"] == 3


async def test_a_failed_statement_has_its_sqlstate_and_no_text_of_the_error(traced: Database) -> None:
    async with traced.session() as session:
        session.add_all([User(email=SECRET, name="a"), User(email=SECRET, name="b")])
        with pytest.raises(UniqueViolation):
            await session.flush()
    span = statements()[-1]
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (attributes(span)["db.response.status_code"], attributes(span)["error.type"]) == ("23505", "23505")
    assert span.events == ()


async def test_a_copy_that_is_rejected_has_an_error_and_the_insert_a_span(traced: Database) -> None:
    rows = [*user_rows(30), user_rows(1)[0]]
    async with traced.session() as session:
        with pytest.raises(UniqueViolation):
            await bulk.insert_many(session, User, rows)
    [copy] = [span for span in statements() if span.name == "COPY users"]
    assert copy.status.status_code is trace.StatusCode.ERROR
    assert any(span.name == "INSERT users" for span in statements())


async def _wait_for_sleep(url: str) -> None:
    """Wait until the server runs the statement."""
    running = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    )
    async with Database(url, pool_size=1) as observer, asyncio.timeout(10):
        while not await observer.read(lambda connection: connection.scalar(running)):
            await asyncio.sleep(0.005)


async def test_a_cancelled_statement_has_an_error(traced: Database, database_url: str) -> None:
    async with traced.session() as session:
        running = asyncio.create_task(session.execute(text("SELECT pg_sleep(60)")))
        await _wait_for_sleep(database_url)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    [span] = statements()
    assert attributes(span)["error.type"] == "CancelledError"


async def test_a_timeout_has_its_sqlstate(database_url: str) -> None:
    async with Database(database_url, statement_timeout=0.05) as database:
        trace_statements(database)
        async with database.session() as session:
            with pytest.raises(StatementTimeout):
                await session.execute(text("SELECT pg_sleep(60)"))
    assert attributes(statements()[-1])["error.type"] == "57014"


async def test_the_statement_of_a_view_is_shared_and_is_a_child_of_its_batch(traced: Database) -> None:
    assert traced.shares_reads()
    async with JsonView(User, UserOut).open(traced) as users:
        ids = [UUID(int=n) for n in range(5)]
        await asyncio.gather(*(users.get(id) for id in ids), return_exceptions=True)
    [span] = statements()
    [batch] = [each for each in exported.get_finished_spans() if each.name == "howdah batch"]
    assert span.parent is not None
    assert span.parent.span_id == batch.context.span_id
    assert attributes(batch)["howdah.batch.size"] == 5


async def test_a_failed_read_of_a_view_has_its_sqlstate(database_url: str) -> None:
    async with Database(database_url, statement_timeout=0.05) as slow:
        trace_statements(slow)
        statement = PreparedSelect(select(func.pg_sleep(60).cast(Text)))
        with pytest.raises(StatementTimeout):
            await slow.read(lambda connection: statement.rows(connection, {}))
    [span] = statements()
    assert attributes(span)["error.type"] == "57014"


async def test_a_statement_has_one_span_if_the_database_is_traced_twice_or_by_the_instrumentation(
    traced: Database, database_url: str
) -> None:
    trace_statements(traced)
    async with traced.session() as session:
        await session.execute(text("SELECT 1"))
    assert len(statements()) == 1

    def listener(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return statement, parameters

    listener.__module__ = "opentelemetry.instrumentation.sqlalchemy.engine"
    async with Database(database_url) as other:
        event.listen(other.engine.sync_engine, "before_cursor_execute", listener, retval=True)
        trace_statements(other)
        async with other.session() as session:
            await session.execute(text("SELECT 1"))
    assert len(statements()) == 1


async def test_control_a_database_that_is_not_traced_has_no_spans(real_database: Database) -> None:
    async with real_database.session() as session:
        await session.execute(text("SELECT 1"))
    assert statements() == []
