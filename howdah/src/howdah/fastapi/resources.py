"""Resources: objects that an application opens once and its routes use, such as the reader of a view."""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of `__call__` as texts.

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from copy import copy
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from starlette.requests import HTTPConnection

from howdah.database import Database

ResourceT = TypeVar("ResourceT")

MAIN_DATABASE: Final = "main"
"""The name of an application's own database, next to the names of its further databases."""

OPENED_KEY: Final = "howdah_opened"
"""The attribute of `request.state` that has the `Opened` of the application."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The open objects of an application: databases by name, and the values of resources by `Resource.key`.

    `jobs` are the runners of its jobs (`howdah.fastapi.jobs.JobRunner`).
    """

    databases: Mapping[str, Database]
    values: Mapping[object, Any]
    names: Mapping[object, str]
    jobs: Sequence[Any]


class Resource(Generic[ResourceT]):
    """Something that an application opens at startup, closes at shutdown, and gives to its routes.

    It is a dependency of FastAPI, and it holds no state. So it may be a constant of a module:

        order_reader = Resource("order", OrderView.open)
        OrderReader = Annotated[JsonViewReader[Order], Depends(order_reader)]

    `factory` is called with the application's `Database` when the application starts, and returns an async context
    manager. `configure_app(app, resources=[order_reader], ...)` does this. With `database`, `factory` gets the further
    database of this name instead. If the opened object is a `Coalescer` or a view reader, `/metrics` shows its metrics.
    Their label `queue` is `name`.

    Periodic work is a `Job`. A task that runs without a break, such as a listener, is a resource: its factory starts
    the task, and cancels it at the end of the block.
    """

    def __init__(
        self,
        name: str,
        factory: Callable[[Database], AbstractAsyncContextManager[ResourceT]],
        *,
        database: str | None = None,
    ) -> None:
        if not callable(factory):
            raise TypeError(f"the factory of the resource {name!r} must be a function of a Database, not {factory!r}")
        self.name = name
        self.factory = factory
        self.database = MAIN_DATABASE if database is None else database
        self.key: Final = object()

    def using(self, factory: Callable[[Database], AbstractAsyncContextManager[ResourceT]]) -> "Resource[ResourceT]":
        """A copy with another factory, for `configure_app`. The new factory may, for example, use the settings."""
        changed = copy(self)
        changed.factory = factory
        return changed

    def __repr__(self) -> str:
        return f"Resource({self.name!r})"

    async def __call__(self, connection: HTTPConnection) -> ResourceT:
        """The opened object, for FastAPI."""
        return self.find(connection)

    def find(self, connection: HTTPConnection) -> ResourceT:
        """The opened object of the application that handles this request or WebSocket, for code without dependencies.

        Raises `RuntimeError` if the application didn't open the resource.
        """
        value: ResourceT
        try:
            value = connection.scope["state"][OPENED_KEY].values[self.key]
        except (KeyError, TypeError, AttributeError):
            find_opened(connection, f"the resource {self.name!r}")  # raises if the application was not started
            raise RuntimeError(
                f"the application has not opened the resource {self.name!r}: add it to "
                "configure_app(..., resources=[...])"
            ) from None
        return value


def find_opened(connection: HTTPConnection, wanted: str) -> Opened:
    """The open objects of the application of this connection. Raises `RuntimeError` if it was not started."""
    state = connection.scope.get("state")  # `connection.state` takes a microsecond longer
    opened = state.get(OPENED_KEY) if state else None
    if not isinstance(opened, Opened):
        raise RuntimeError(  # noqa: TRY004  # the application is set up wrongly
            f"{wanted} isn't open: the application must be set up by configure_app, and its lifespan must have run. "
            "(A test client runs the lifespan only as a context manager. The lifespan of a mounted application runs "
            "only if the outer application is set up by configure_app, too.)"
        )
    return opened


def find_named_database(connection: HTTPConnection, name: str) -> Database:
    """The database with this name in `configure_app(..., databases={...})`. Raises `RuntimeError` if there is none."""
    try:
        database: Database = connection.scope["state"][OPENED_KEY].databases[name]
    except (KeyError, TypeError, AttributeError):
        find_opened(connection, f"the database {name!r}")  # raises if the application was not started
        raise RuntimeError(
            f"the application has no database {name!r}: add it to configure_app(..., databases={{{name!r}: ...}})"
        ) from None
    return database
