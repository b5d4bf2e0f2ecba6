"""The parts of a statement that a view can't apply to its JSON."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, inspect

from howdah._sqlalchemy import has_for_update, options_of


def reject_unordered_model(model: type[Any]) -> None:
    """Raise `ValueError` for a class whose rows a view can't order."""
    if inspect(model).concrete:
        raise ValueError(
            f"a view can't order the rows of {model.__name__}, which are read from a union of tables: "
            "read them by key, or page and stream them with a repository"
        )


def reject_unsupported_parts(statement: Select[Any]) -> None:
    """Raise `ValueError` for parts of a statement that a view can't apply to its JSON."""
    if options_of(statement):
        raise ValueError(
            "a view's statement takes no options(): they wouldn't apply to nested rows. The schema decides what is "
            "loaded; filter by where() or by the view's `where`"
        )
    if statement.get_execution_options():
        raise ValueError("a view's statement takes no execution_options(): the view sets its own")
    if has_for_update(statement):
        raise ValueError("a view's statement can't have with_for_update(): its locks end with the read. Use lock()")
