"""The `request.state` of applications that are mounted in each other."""

from __future__ import annotations

from typing import Any, Final

from starlette.types import Scope

from howdah.fastapi.resources import OPENED_KEY

STATES_KEY: Final = "howdah_states"
"""The key in the lifespan's state for the states of all applications: the outermost one, and those mounted in it."""

DATABASE_KEY: Final = "database"


class OwnStates:
    """Finds the state of one application for each request.

    The server gives the state of the outermost application to every request. If this application is mounted in another
    one, the routes would use the other one's database.
    """

    def __init__(self) -> None:
        self.opened = object()
        """The value of `OPENED_KEY` when this application was last the outermost one. For it, `find` returns None."""

    def find(self, scope: Scope) -> dict[str, Any] | None:
        """The state of this application, or None if the scope has it already."""
        outer = scope.get("state", {})
        own = outer.get(STATES_KEY, {}).get(scope["app"])
        if own is None:  # the lifespan of this application has not run, so it has no database
            own = {DATABASE_KEY: None, OPENED_KEY: None}
        elif outer.get(OPENED_KEY) is own[OPENED_KEY]:  # it is the outermost application
            self.opened = own[OPENED_KEY]
            return None
        return {**outer, **own}
