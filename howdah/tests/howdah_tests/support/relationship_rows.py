"""Random rows of the mapped classes with relationships."""

from __future__ import annotations

from random import Random
from typing import Any

from sqlalchemy import (
    insert,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession

from howdah_tests.support.relationship_inheritance import Animal, Boat, Dog, Invoice, Puppy, Reminder, Vehicle
from howdah_tests.support.relationship_models import (
    Association,
    Child,
    Folder,
    Parent,
    Separate,
    Toy,
    bag,
    elsewhere,
    friends,
    pairs,
)


async def make_tables(session: AsyncSession) -> None:
    await session.execute(text("CREATE SCHEMA other_schema"))
    await (await session.connection()).run_sync(Separate.metadata.create_all)


async def make_rows(session: AsyncSession, seed: int) -> None:
    """Insert at most nine rows per table, with random references between them."""
    random = Random(seed)
    parents, children = range(1, 5), range(1, random.randint(1, 8) + 1)

    def some(values: Any) -> Any:
        return random.choice([None, *values])

    async def add(table: Any, rows: list[dict[str, Any]]) -> None:
        if rows:
            await session.execute(insert(table), rows)

    await session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    await add(Parent, [{"id": id, "letters": random.choice(["a", "ab", "ba"])} for id in parents])
    await add(
        Child,
        [
            {
                "id": id,
                "parent_id": some(parents),
                "home_id": random.choice(parents),
                "deputy_id": some(range(1, id)),
                "name": random.choice(["a", "b", "ab", "A", ""]),
                "number_text": str(random.choice(parents)),
            }
            for id in children
        ],
    )
    for parent in parents:
        row = await session.get_one(Parent, parent)
        row.favourite_id, row.billing_id = some(children), some(children)
    await session.flush()
    await add(Toy, [{"id": id, "child_id": random.choice(children)} for id in range(1, random.randint(1, 9))])
    for table, right in ((bag, children), (elsewhere, children)):
        await add(
            table, [{"left_id": random.choice(parents), "right_id": random.choice(right), "place": n} for n in range(9)]
        )
    for table, left in ((pairs, parents), (friends, children)):
        every = [(a, b) for a in left for b in children]
        some_pairs = random.sample(every, min(len(every), 9))
        await add(table, [{"left_id": a, "right_id": b, "place": random.randint(0, 3)} for a, b in some_pairs])
    every = [(a, b) for a in parents for b in children]
    await add(Association, [{"parent_id": a, "child_id": b} for a, b in random.sample(every, min(len(every), 5))])
    await add(
        Folder,
        [
            {"account_id": a, "folder_id": f, "parent_id": some(range(1, f)), "twin_id": some(range(1, f))}
            for a in (1, 2)
            for f in range(1, 5)
        ],
    )
    for id in range(1, 8):
        kind: Any = random.choice([Animal, Dog, Puppy])
        hunter = {} if kind is Animal else {"hunter_id": some(range(1, id))}
        session.add(kind(id=id, owner_id=some(parents), **hunter))
        await session.flush()
    await add(
        Vehicle,
        [{"id": id, "wheels": random.choice([2, 3, 4]), "garage_id": some(parents)} for id in range(1, 7)],
    )
    await add(
        Boat.__table__,
        [
            {
                "id": id,
                "kind": random.choice(["boat", "tug"]),
                "harbour_id": random.choice(parents),
                "towed_by_id": some(range(1, id)),
            }
            for id in range(1, 8)
        ],
    )
    await add(Invoice.__table__, [{"id": id, "payer_id": some(parents)} for id in range(1, 4)])
    await add(Reminder.__table__, [{"id": id, "payer_id": some(parents), "fee": id} for id in range(4, 7)])
    session.expunge_all()
