"""A COPY calls the listeners of SQLAlchemy's events like any other statement."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, LockTimeout, UniqueViolation, bulk
from howdah._sqlalchemy import copy_in
from howdah_tests.support.sample_models import User
from howdah_tests.support.sample_rows import user_rows


@contextmanager
def record_spans(session: AsyncSession) -> Iterator[list[str]]:
    """Record statements and their outcomes with the same events and context that OpenTelemetry's listeners use."""
    engine = session.get_bind().engine
    ended: list[str] = []
    opened: list[Any] = []

    def before(_connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, many: bool) -> None:
        assert not many or not statement.startswith("COPY")
        context.span = statement.partition(" ")[0]
        opened.append(context)

    def after(_connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool) -> None:
        opened.remove(context)
        ended.append(context.span)

    def failed(context: Any) -> None:
        opened.remove(context.execution_context)
        ended.append(f"{context.execution_context.span} failed")

    names: dict[str, Callable[..., None]] = {
        "before_cursor_execute": before,
        "after_cursor_execute": after,
        "handle_error": failed,
    }
    for name, listener in names.items():
        event.listen(engine, name, listener)
    try:
        yield ended
    finally:
        for name, listener in names.items():
            event.remove(engine, name, listener)
    assert not opened


def written(ended: list[str]) -> list[str]:
    return [each for each in ended if each.split()[0] in {"COPY", "INSERT"}]


async def test_a_copy_begins_and_ends_a_span(session: AsyncSession) -> None:
    with record_spans(session) as ended:
        await bulk.insert_many(session, User, user_rows(30))
    assert written(ended) == ["COPY"]


async def test_a_copy_with_a_rejected_row_has_failed(session: AsyncSession) -> None:
    await bulk.insert_many(session, User, user_rows(1))
    with record_spans(session) as ended, pytest.raises(UniqueViolation) as caught:
        await bulk.insert_many(session, User, user_rows(30))
    assert caught.value.row_index == 0
    assert written(ended)[0] == "COPY failed"
    assert written(ended)[-1] == "INSERT failed"


async def test_a_copy_of_rows_with_different_attributes_has_failed(session: AsyncSession) -> None:
    rows = [*user_rows(1100), {"email": "odd@x", "name": "N", "nickname": "odd"}]
    with record_spans(session) as ended:
        await bulk.insert_many(session, User, rows)
    assert written(ended) == ["COPY failed", "COPY", "COPY"]


@pytest.mark.parametrize("position", [0, 25, 1050])
async def test_a_copy_of_a_value_that_the_driver_cannot_encode_has_failed(session: AsyncSession, position: int) -> None:
    rows = user_rows(1100)
    rows[position]["age"] = "old"
    with record_spans(session) as ended, pytest.raises(Exception, match="a value was rejected") as caught:
        await bulk.insert_many(session, User, rows)
    assert caught.value.row_index == position  # type: ignore[attr-defined]
    assert written(ended)[0] == "COPY failed"


async def test_a_copy_that_times_out_has_failed(committed_database: Database, committed_url: str) -> None:
    rows = user_rows(30)
    async with Database(committed_url, lock_timeout=0.05) as with_timeout, committed_database.begin() as other:
        await bulk.insert_many(other, User, rows)
        async with with_timeout.session() as session:
            with record_spans(session) as ended, pytest.raises(LockTimeout):
                await bulk.insert_many(session, User, rows)
    assert written(ended) == ["COPY failed"]


async def test_the_text_that_a_listener_returns_is_sent(session: AsyncSession) -> None:
    """For example, some listeners add a trace id to each statement."""
    engine = session.get_bind().engine

    def mark(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return f"{statement} /* trace */" if not statement.startswith("COPY") else "COPY nowhere FROM STDIN", parameters

    event.listen(engine, "before_cursor_execute", mark, retval=True)
    try:
        with pytest.raises(Exception, match="nowhere"):
            await bulk.insert_many(session, User, user_rows(30))
    finally:
        event.remove(engine, "before_cursor_execute", mark)


async def test_the_log_shows_a_copy_without_its_rows(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Database(database_url) as database, database.session() as session:
        with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
            await bulk.insert_many(session, User, user_rows(30))
    logged = [record.getMessage() for record in caplog.records]
    assert any(message.startswith("COPY users (id, email, ") for message in logged)
    assert not any("user1@" in message for message in logged)


async def test_copy_in_works_with_the_private_names_of_the_driver(postgres_url: str) -> None:
    driver = await asyncpg.connect(make_url(postgres_url).set(drivername="postgresql").render_as_string(False))
    try:
        async with driver.transaction():
            await driver.execute("CREATE TEMPORARY TABLE numbers (n bigint)")
            columns = await driver.prepare("SELECT n FROM numbers", name="")
            await copy_in(driver, "COPY numbers (n) FROM STDIN (FORMAT binary)", columns, [(1,), (None,)])
            assert [row["n"] for row in await driver.fetch("SELECT n FROM numbers")] == [1, None]
    finally:
        await driver.close()
