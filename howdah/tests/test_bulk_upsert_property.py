"""`upsert_many` has the same result and counts as single upserts of the rows, compared with a model of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import CHAR, Integer, MetaData, Numeric, String, select, text
from sqlalchemy.dialects.postgresql import ARRAY, CITEXT
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, UpsertResult, bulk
from howdah_tests.support.case_insensitive_types import create_citext, create_nondeterministic_collation

COLUMNS: Final = ["code", "padded", "collated", "name", "amount", "numbers"]


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Loose(Separate):
    """Its rows are found by texts that are equal in PostgreSQL but not in Python."""

    __tablename__ = "loose"
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[Any] = mapped_column(CITEXT, nullable=True, unique=True)
    padded: Mapped[Any] = mapped_column(CHAR(3), nullable=True, unique=True)
    collated: Mapped[Any] = mapped_column(String, nullable=True)
    name: Mapped[Any] = mapped_column(CITEXT, nullable=True)
    amount: Mapped[Any] = mapped_column(Numeric, nullable=True)
    numbers: Mapped[Any] = mapped_column(ARRAY(Integer), nullable=True)


def same_key(column: str, value: Any) -> Any:
    if value is None:
        return object()  # equal to no other key
    return value.rstrip(" ") if column == "padded" else value.lower()


@dataclass
class Model:
    """A model of the table and of a single upsert."""

    on: str
    update: list[str]
    rows: dict[Any, dict[str, Any]] = field(default_factory=dict)
    created: int = 0
    updated: int = 0
    unchanged: int = 0

    def upsert(self, row: dict[str, Any]) -> None:
        key = same_key(self.on, row[self.on])
        old = self.rows.get(key)
        if old is None:
            self.rows[key] = dict(row)
            self.created += 1
        elif any(repr(old[name]) != repr(row[name]) for name in self.update):
            old.update({name: row[name] for name in self.update})
            self.updated += 1
        else:
            self.unchanged += 1

    def stored(self) -> list[str]:
        return sorted(repr(shown(row)) for row in self.rows.values())


def shown(row: Mapping[str, Any]) -> list[Any]:
    """The values in the order of `COLUMNS`. CHAR pads values with blanks."""
    return [None if row[name] is None else row[name].rstrip(" ") if name == "padded" else row[name] for name in COLUMNS]


amounts = st.none() | st.sampled_from([Decimal(each) for each in ("1", "1.0", "1.00", "2")])
names = st.none() | st.sampled_from(["a", "A", "b", ""])


@st.composite
def inputs(draw: st.DrawFn, on: str) -> list[dict[str, Any]]:
    alphabet = ["a", "a ", "b", "b  ", "c"] if on == "padded" else ["a", "A", "b", "B", "aB", "Ab", "AB"]
    with_arrays = draw(st.booleans())  # rows with arrays are sent with VALUES
    row = {"code": st.none(), "padded": st.none(), "collated": st.none(), "name": names, "amount": amounts}
    row[on] = st.none() | st.sampled_from(alphabet)
    row["numbers"] = st.sampled_from([None, [1], [1, 2]]) if with_arrays else st.none()
    return draw(st.lists(st.fixed_dictionaries(row), max_size=8))


@pytest.fixture(params=["code", "padded", "collated"])
async def on(session: AsyncSession, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The conflict column. The table of `Loose` has been created."""
    name: str = request.param
    await create_citext(session)
    if name == "collated" and not await create_nondeterministic_collation(session):
        pytest.skip("nondeterministic collations need ICU, and this server was built without it")
    await session.run_sync(lambda sync: Separate.metadata.create_all(sync.connection()))
    if name == "collated":
        await session.execute(text("ALTER TABLE loose ALTER collated TYPE varchar COLLATE ignores_case"))
        await session.execute(text("CREATE UNIQUE INDEX ON loose (collated)"))
    yield name
    await session.rollback()


async def check(
    session: AsyncSession, on: str, lists: list[list[dict[str, Any]]], update: list[str] | None, chunk_size: int | None
) -> None:
    with_arrays = any(row["numbers"] is not None for rows in lists for row in rows)
    sent_columns = [on, "name", "amount", *(["numbers"] if with_arrays else [])]
    model = Model(on, sent_columns[1:] if update is None else update)
    for rows in lists:
        model.created = model.updated = model.unchanged = 0
        for row in rows:
            model.upsert(row)
        sent = [{name: row[name] for name in sent_columns} for row in rows]
        done = await bulk.upsert_many(session, Loose, sent, on=[on], update=update, chunk_size=chunk_size)
        assert done == UpsertResult(model.created, model.updated, model.unchanged)
    found = await session.execute(select(*(getattr(Loose, name) for name in COLUMNS)))
    assert sorted(repr(shown(row._asdict())) for row in found) == model.stored()


@pytest.mark.timeout(600)
@settings(max_examples=settings().max_examples // 3, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    update=st.sampled_from([None, [], ["name"], ["amount", "name"]]),
    chunk_size=st.sampled_from([None, 1, 3]),
)
async def test_rows_have_the_result_and_the_counts_of_single_upserts(
    session: AsyncSession, on: str, data: st.DataObject, update: list[str] | None, chunk_size: int | None
) -> None:
    lists = data.draw(st.lists(inputs(on), min_size=2, max_size=2))
    nested = await session.begin_nested()
    try:
        await check(session, on, lists, update, chunk_size)
    finally:
        await nested.rollback()
