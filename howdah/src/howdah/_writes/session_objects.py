"""Objects in the session whose rows a bulk write has changed or deleted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah._keys import build_key, get_key_attributes, has_exact_keys, has_key_in, join_requested_keys


def has_objects(session: AsyncSession, model: type[Any]) -> bool:
    """Whether the session has an object of the model."""
    return any(isinstance(instance, model) for instance in session.identity_map.values())


async def find_objects(session: AsyncSession, model: type[Any], keys: Iterable[Any]) -> list[tuple[Any, Any]]:
    """The session's objects of the rows with these keys, each with the key of its row.

    `keys` are the keys as the rows have them, not as a caller may have spelled them.
    """
    if not has_objects(session, model):
        return []
    wanted = {*keys}
    candidates = [
        (instance, _get_identity(instance)) for instance in session.identity_map.values() if isinstance(instance, model)
    ]
    found = [(instance, key) for instance, key in candidates if key in wanted]
    others = [(instance, key) for instance, key in candidates if key not in wanted]
    if not wanted or not others or has_exact_keys(model):
        return found
    # An object keeps the key that it was created with, but the row may have another spelling of that key.
    requested_position, same_row = join_requested_keys(model, [key for _, key in others])
    for position, *values in await session.execute(
        select(requested_position, *get_key_attributes(model)).where(same_row)
    ):
        if build_key(values) in wanted:
            found.append((others[position - 1][0], build_key(values)))
    return found


async def refresh_objects(session: AsyncSession, model: type[Any], keys: Iterable[Any]) -> None:
    """Refresh the session's objects of the rows with these keys, with one statement for each class."""
    by_class: dict[type[Any], list[Any]] = {}
    for instance, key in await find_objects(session, model, keys):
        if key == _get_identity(instance):
            by_class.setdefault(type(instance), []).append(key)
        else:  # a SELECT would create a second object, because the row's key isn't the object's
            await session.refresh(instance)
    for kind, keys_of_class in by_class.items():
        statement = select(kind).where(has_key_in(kind, keys_of_class))
        await session.execute(statement, execution_options={"populate_existing": True})


def _get_identity(instance: Any) -> Any:
    """The key under which the session has the object."""
    return build_key(inspect(instance).identity)
