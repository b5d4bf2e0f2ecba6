"""Reading an attribute that isn't loaded.

This raises an error if the attribute has `lazy="raise"` or `raiseload=True`, or if it is read outside of an awaited
call of SQLAlchemy. The error says how to load the attribute.

During a flush the attribute is loaded instead. The unit of work reads relationships to put deletes in the right order.
This works because a flush runs in an awaited call. The caller couldn't know which attributes a flush needs.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import InvalidRequestError, MissingGreenlet
from sqlalchemy.orm import ColumnProperty, InstanceState, PassiveFlag, QueryableAttribute, RelationshipProperty

from howdah._sqlalchemy import Loader, is_flushing, wrap_loader


def explain_raising_loads(_class: type[Any], _key: str, attribute: QueryableAttribute[Any]) -> None:
    """A listener for the event `attribute_instrument` of mapped classes."""
    remedy = _remedy(attribute)
    if remedy is None:
        return

    def with_remedy(load: Loader) -> Loader:
        def load_or_explain(state: InstanceState[Any], passive: PassiveFlag) -> Any:
            session = state.session
            if session is not None and is_flushing(session):
                passive |= PassiveFlag.NO_RAISE
            try:
                return load(state, passive)
            except InvalidRequestError as error:
                if type(error) is not InvalidRequestError:  # another error, raised during a load that was allowed
                    raise
                raise InvalidRequestError(f"{error}: {remedy}") from None

        return load_or_explain

    wrap_loader(attribute, with_remedy)


def explain_missing_await(error: MissingGreenlet) -> None:
    """Add a note to SQLAlchemy's error, which doesn't say that an attribute was read. The note says what to do."""
    error.add_note(
        "An attribute was read that isn't loaded, or that a rollback or expire() has expired. Load it before you read "
        "it: load=[...], .options(selectinload(...)), .options(undefer(...)), or await session.refresh(object, [names])"
    )


def _remedy(attribute: QueryableAttribute[Any]) -> str | None:
    """A text that says how to load the attribute, if reading it raises an error. None for other attributes."""
    prop: Any = attribute.comparator.prop  # `attribute.property` would start to configure the mappers again
    if isinstance(prop, RelationshipProperty) and prop.lazy in {"raise", "raise_on_sql"}:
        name = f"{attribute.class_.__name__}.{attribute.key}"
        return (
            f"load it with its object, by load=[{name}] in a call of a repository or "
            f".options(selectinload({name})) of a select()"
        )
    if isinstance(prop, ColumnProperty) and getattr(prop, "raiseload", False):
        name = f"{attribute.class_.__name__}.{attribute.key}"
        return f"load it with its object, by .options(undefer({name})) of a select()"
    return None
