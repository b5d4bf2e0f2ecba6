"""A view doesn't write a time that Python can't represent. The read fails, as through the ORM."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import DateTime, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import MetaData

from howdah import Base, Database, InvalidValue, JsonView
from howdah_tests.support.view_schemas import create_schema


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Moment(Separate):
    __tablename__ = "moments_of_views"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    aware: Mapped[datetime | None]
    naive: Mapped[datetime | None] = mapped_column(DateTime())
    day: Mapped[date | None]
    hour: Mapped[time | None]
    span: Mapped[timedelta | None]


def schema_of(name: str, kind: Any, **config: Any) -> type[BaseModel]:
    class Configured(BaseModel):
        model_config = ConfigDict(**config)  # type: ignore[typeddict-item]

    return create_schema({name: kind | None}, Configured)


CASES = [
    ("aware", datetime, "0001-01-01 00:00:00+00", "0001-01-01T00:00:00Z", "0044-03-15 12:00:00+00 BC"),
    ("aware", datetime, "9999-12-31 23:59:59+00", "9999-12-31T23:59:59Z", "10000-01-01 00:00:00+00"),
    ("aware", datetime, "infinity", "9999-12-31T23:59:59.999999Z", "294276-12-31 23:59:59+00"),
    ("naive", datetime, "0001-01-01 00:00:00", "0001-01-01T00:00:00", "0001-12-31 23:59:59 BC"),
    ("naive", datetime, "-infinity", "0001-01-01T00:00:00", "10000-01-01 00:00:00"),
    ("day", date, "0001-01-01", "0001-01-01", "0001-12-31 BC"),
    ("day", date, "9999-12-31", "9999-12-31", "10000-01-01"),
    ("hour", time, "23:59:59.999999", "23:59:59.999999", "24:00:00"),
    ("span", timedelta, "999999999 days", "P999999999DT0", "1000000000 days"),
]


@pytest.mark.parametrize("case", CASES)
async def test_the_last_valid_value_is_written_and_the_next_one_rejected(
    session: AsyncSession, database: Database, case: tuple[str, Any, str, str, str]
) -> None:
    name, kind, stored, written, rejected = case
    await (await session.connection()).run_sync(Separate.metadata.create_all)
    insert = f"INSERT INTO moments_of_views (id, {name}) VALUES (:id, '{{}}')"
    await session.execute(text(insert.format(stored)), {"id": 1})
    await session.execute(text(insert.format(rejected)), {"id": 2})
    async with JsonView(Moment, schema_of(name, kind)).open(database) as view:
        assert written in (await view.get(1)).decode()
        with pytest.raises(InvalidValue):
            await view.get(2)


@pytest.mark.parametrize("form", ["iso8601", "float"])
async def test_an_infinite_interval_is_rejected(session: AsyncSession, database: Database, form: str) -> None:
    if (await session.scalar(text("SHOW server_version_num")) or "") < "170000":
        pytest.skip("intervals are finite before PostgreSQL 17")
    await (await session.connection()).run_sync(Separate.metadata.create_all)
    await session.execute(text("INSERT INTO moments_of_views (id, span) VALUES (1, '-infinity'), (2, '1.5 s')"))
    async with JsonView(Moment, schema_of("span", timedelta, ser_json_timedelta=form)).open(database) as view:
        assert (await view.get(2)) in (b'{"span":"P0DT1.500000S"}', b'{"span":1.500000}')
        with pytest.raises(InvalidValue):
            await view.get(1)
